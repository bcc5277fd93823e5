"""Everything this project uses of torch.distributed, which no other module imports.

Three parts: the start of a run's ranks under torchrun's agent, by the process that was asked for the run; the
collective operations that a recipe needs; and modules whose frozen parameters are sharded over the ranks. With one
process each operation is the identity.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.elastic.rendezvous.api import RendezvousInfo, RendezvousStoreInfo

from llm_tuning.core.stopping import stop_requested
from llm_tuning.errors import TryAgain
from llm_tuning.run.rank import RankFailure

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""A rank that waits longer than this for the others fails instead of hanging: no step takes ten minutes."""

POLL_SECONDS = 0.1


def run_ranks(
    arguments: list[str],
    *,
    environments: list[dict[str, str]],
    error_file: Callable[[int], Path],
    stop: Callable[[], bool],
) -> dict[int, RankFailure]:
    """Run `python ARGUMENTS` once a rank, to its end; returns the ranks that failed, those seen to fail first in front.

    There is a rank for each of `environments`, which are laid over this process's own. It finds its place in RANK,
    LOCAL_RANK and WORLD_SIZE, and leaves what went wrong in its `error_file`, whose
    path is in TORCHELASTIC_ERROR_FILE. When one fails, the agent sends SIGTERM to the others, and SIGKILL to those
    that have not ended 30 s later. `stop` is polled: once it is true, every rank gets a SIGTERM.

    The agent has a thread of its own, where it leaves this process's signal handlers as they are.
    """
    spec = WorkerSpec(
        role="trainer",
        local_world_size=len(environments),
        rdzv_handler=_OneNode(),
        entrypoint=sys.executable,
        args=tuple(argument.replace("$", "$$") for argument in arguments),  # the agent fills in ${local_rank}
        max_restarts=0,  # a run continues from its checkpoint, by the next start: never two generations of ranks
        monitor_interval=POLL_SECONDS,
    )
    agent = LocalElasticAgent(spec, _RankFiles(environments, error_file))
    with _quiet_agent(), ThreadPoolExecutor(1, "torchrun") as thread:
        ended = thread.submit(agent.run)
        try:
            _pass_the_stop_on(agent, ended, stop)
        except BaseException:  # a second Ctrl-C
            while not ended.done():
                _signal_ranks(agent, signal.SIGKILL, set())
                time.sleep(POLL_SECONDS)
            raise
    failures = ended.result().failures
    return {
        rank: RankFailure(
            failure.exitcode, failure.error_file_data.get("timestamp", failure.timestamp), failure.error_file_data
        )
        for rank, failure in failures.items()
    }


def _pass_the_stop_on(agent: LocalElasticAgent, ended: Future[RunResult], stop: Callable[[], bool]) -> None:
    signalled: set[int] = set()
    while not ended.done():
        if stop():
            _signal_ranks(agent, signal.SIGTERM, signalled)
        with suppress(TimeoutError):
            ended.exception(POLL_SECONDS)


def _signal_ranks(agent: LocalElasticAgent, number: signal.Signals, signalled: set[int]) -> None:
    """Send `number` to every rank that has been started and is not in `signalled`, which then has it."""
    for worker in agent.get_worker_group().workers:
        if worker.id is not None and worker.id not in signalled:
            signalled.add(worker.id)
            with suppress(ProcessLookupError):
                os.kill(worker.id, number)


class _OneNode(RendezvousHandler):
    """The rendezvous of an agent that is alone: the ranks meet by a file, and nothing listens for other agents.

    torch's own handlers open a TCPStore, which listens on every address of the machine whatever it is given.
    """

    def get_backend(self) -> str:
        return "one node"

    def next_rendezvous(self) -> RendezvousInfo:
        store = dist.HashStore()  # type: ignore[attr-defined]
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "one-node"

    def shutdown(self) -> bool:
        return True


class _RankFiles(LogsSpecs):
    """Ranks write where this process does; `environments` are for them alone and never enter this process's own."""

    def __init__(self, environments: list[dict[str, str]], error_file: Callable[[int], Path]) -> None:
        super().__init__()
        self._environments, self._error_file = environments, error_file

    @property
    def root_log_dir(self) -> str:
        return os.devnull

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        errors = {local: str(self._error_file(int(env["RANK"]))) for local, env in envs.items()}
        for local, env in envs.items():
            env.update(self._environments[int(env["RANK"])] | {"TORCHELASTIC_ERROR_FILE": errors[local]})
        ours = dict.fromkeys(envs, "")
        return LogsDest(stdouts=ours, stderrs=ours, error_files=errors)


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keep the agent's own account of its ranks off the terminal, unless everything is wanted."""
    logger = logging.getLogger("torch.distributed.elastic")
    propagate, silence = logger.propagate, logging.NullHandler()
    logger.addHandler(silence)
    logger.propagate = logging.getLogger("llm_tuning").isEnabledFor(logging.DEBUG)
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(silence)


@contextmanager
def process_group(rendezvous: Path, *, rank: int, world: int, device: str) -> Iterator[None]:
    """Join the run's process group: gloo on the CPU, NCCL on GPUs; nothing with one process.

    It lasts until the block ends or `leave_process_group` is called. `rendezvous` is a file on a local disk: no port
    that another job may hold. NCCL connects the GPUs here and not at the first collective, so that what keeps it from
    that ends the run before a model is loaded: TryAgain.
    """
    if world == 1:
        yield
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"file://{rendezvous.resolve()}",
            rank=rank,
            world_size=world,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=torch.device(device) if cuda else None,
        )
    except dist.DistBackendError as error:  # type: ignore[attr-defined]
        said = str(error).strip().splitlines()[-1]
        raise TryAgain("GPUUnavailable", f"NCCL cannot connect the {world} GPUs: {said}") from error
    try:
        yield
    finally:
        leave_process_group()


def leave_process_group() -> None:
    """Leave the run's process group, if it has one; all ranks do it together, as NCCL may wait for the others in it.

    What a rank does from then on, it does alone, for as long as it takes.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` in place by all-reduce and return it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: str = "cpu") -> bool:
    """Return on every rank whether any raised its flag (an all-reduce), so that all leave a loop at the same step."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)).item())


def largest(number: int, device: str = "cpu") -> int:
    """Return on every rank the largest `number` of all (an all-reduce)."""
    if not dist.is_initialized():
        return number
    numbers = torch.tensor(number, device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers.item())


def gather_objects(value: T) -> list[T]:
    """Return every rank's `value`, in the order of the ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return cast("list[T]", values)


def stop_together(doing: str, device: str) -> None:
    """Raise TryAgain on every rank if any was asked to stop; `doing` says what is being left."""
    if any_rank(stop_requested(), device):
        raise TryAgain("Stopped", f"stopped {doing} on request; the same command with the same model_id resumes")


def sum_over_ranks(values: torch.Tensor, device: str) -> torch.Tensor:
    """Sum a CPU tensor by all-reduce; each rank has filled in its share and left the rest zero."""
    return all_reduce_sum(values.to(device)).cpu() if world_size() > 1 else values


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients of all ranks by one all-reduce; a rank whose share of a step was empty adds zero."""
    if world_size() == 1:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = all_reduce_sum(torch.cat([grad.reshape(-1) for grad in grads]))
    for parameter, grad in zip(parameters, flat.split([grad.numel() for grad in grads]), strict=True):
        parameter.grad = grad.view_as(parameter)


def shard(groups: Iterable[nn.Module], device: str) -> None:
    """Divide the parameters of each of `groups` over all ranks, by FSDP2, inner modules before those that hold them.

    A group is whole only while it runs, on the way back again. What is put into a module later is whole on each rank.
    """
    from torch.distributed.device_mesh import DeviceMesh  # here, since all runs import this module
    from torch.distributed.fsdp import fully_shard

    everyone = dist.group.WORLD
    assert everyone is not None, "one process has nobody to share with"
    ranks = DeviceMesh.from_group(everyone, torch.device(device).type)
    for module in groups:
        fully_shard(module, mesh=ranks, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Return whether `module` is one of the `groups` that were given to `shard`."""
    return hasattr(module, "unshard")


@contextmanager
def gathered(module: Any) -> Iterator[None]:
    """Have the parameters of a sharded module whole while the block runs; all ranks must come here together."""
    if not is_sharded(module):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
