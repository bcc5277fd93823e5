"""Everything this project uses of torch.distributed, which no other module imports.

Three parts: the start of a run's ranks under torchrun's agent, by the process that was asked for the run, and the store
by which several nodes agree on that; the collective operations that a recipe needs; and modules whose frozen parameters
are sharded over the ranks. With one process each operation is the identity.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from llm_tuning.run.nodes import NodeGroup
from llm_tuning.run.rank import RankFailure

T = TypeVar("T")

TCPStore, PrefixStore = dist.TCPStore, dist.PrefixStore  # type: ignore[attr-defined]

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""A rank that waits longer than this for the others fails instead of hanging. What has ended, or is cut off, is found
much sooner by others: this is for a rank that lives and does nothing, and longer than any slow one takes for a step."""

POLL_SECONDS = 0.1
STORE_SCHEME = "tcp://"
STORE_TIMEOUT = timedelta(seconds=30)
"""For an answer of the nodes' store."""
KILL_SECONDS = 10.0
"""From SIGTERM to SIGKILL for ranks whose peers on another node are gone: they may wait in a collective for ever."""
HANG_SECONDS = 5.0
"""From SIGKILL for the ranks to the end of their agent."""
EXIT_BARRIER_SECONDS = 0.1
"""How long an agent waits for those of other nodes once its ranks have ended: `NodeGroup` knows how they end."""


def run_ranks(
    arguments: list[str],
    *,
    environments: list[dict[str, str]],
    error_file: Callable[[int], Path],
    stop: Callable[[], bool],
    group: NodeGroup | None = None,
) -> dict[int, RankFailure]:
    """Run `python ARGUMENTS` once a rank, to its end; returns the ranks that failed, those seen to fail first in front.

    There is a rank for each of `environments`, which are laid over this process's own. It finds its place in RANK,
    LOCAL_RANK and WORLD_SIZE, and leaves what went wrong in its `error_file`, whose
    path is in TORCHELASTIC_ERROR_FILE. When one fails, the agent sends SIGTERM to the others, and SIGKILL to those
    that have not ended 30 s later. `stop` is polled: once it is true, every rank gets a SIGTERM. So do they where
    `group`, the nodes of the run, is in trouble elsewhere; ranks that this ends are no failures.

    The agent has a thread of its own, where it leaves this process's signal handlers as they are.
    """
    spec = WorkerSpec(
        role="trainer",
        local_world_size=len(environments),
        rdzv_handler=_OneNode() if group is None else _Nodes(group),
        entrypoint=sys.executable,
        args=tuple(argument.replace("$", "$$") for argument in arguments),  # the agent fills in ${local_rank}
        max_restarts=0,  # a run continues from its checkpoint, by the next start: never two generations of ranks
        monitor_interval=POLL_SECONDS,
    )
    if group is not None:
        group.say_it_starts()
    agent = LocalElasticAgent(spec, _RankFiles(environments, error_file), exit_barrier_timeout=EXIT_BARRIER_SECONDS)
    thread = ThreadPoolExecutor(1, "torchrun")
    with _quiet_agent():
        ended = thread.submit(agent.run)
        thread.shutdown(wait=False)  # it may wait for ever for a store that the network has lost
        try:
            trouble = _pass_the_stop_on(agent, ended, stop, group)
        except BaseException:  # a second Ctrl-C
            while not ended.done():
                _signal_ranks(agent, signal.SIGKILL, set())
                time.sleep(POLL_SECONDS)
            raise
    if trouble is not None and not ended.done():
        raise trouble
    try:
        failures = ended.result().failures
    except RuntimeError as error:  # torch's errors of a store: the agent has lost that of node 0, or waited in vain
        if group is None or (trouble := trouble or group.await_trouble() or group.find_unstarted()) is None:
            raise
        raise trouble from error
    return {
        rank: RankFailure(
            failure.exitcode, failure.error_file_data.get("timestamp", failure.timestamp), failure.error_file_data
        )
        for rank, failure in failures.items()
        if not (trouble is not None and failure.exitcode in (-signal.SIGTERM, -signal.SIGKILL))
    }


def _pass_the_stop_on(
    agent: LocalElasticAgent, ended: Future[RunResult], stop: Callable[[], bool], group: NodeGroup | None
) -> RuntimeError | None:
    """Signal the ranks where they are to end; returns the trouble of the nodes that this was for, or None.

    Returns before the agent has ended where that waits for agents of nodes that are lost.
    """
    signalled: set[int] = set()
    killed: set[int] = set()
    trouble: RuntimeError | None = None
    seconds, since = 0.0, time.monotonic()
    while not ended.done() and seconds < KILL_SECONDS + HANG_SECONDS:
        if trouble is None and group is not None and (trouble := group.find_trouble()) is not None:
            since = time.monotonic()
        seconds = 0.0 if trouble is None else time.monotonic() - since
        if trouble is not None or stop():
            _signal_ranks(agent, signal.SIGTERM, signalled)
        if seconds > KILL_SECONDS:
            _signal_ranks(agent, signal.SIGKILL, killed)
        with suppress(TimeoutError):
            ended.exception(POLL_SECONDS)
    return trouble


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


class _Nodes(_OneNode):
    """The rendezvous of agents that have met already: `group` has their store, and which of them this one is."""

    def __init__(self, group: NodeGroup) -> None:
        self._group = group

    def get_backend(self) -> str:
        return "nodes"

    def next_rendezvous(self) -> RendezvousInfo:
        nodes = self._group.nodes
        store = PrefixStore("agents", self._group.agents_store())
        return RendezvousInfo(store, nodes.index, len(nodes.hosts), RendezvousStoreInfo(nodes.hosts[0], nodes.port))


def serve_store(address: str, port: int) -> Any:
    """Serve a store at one address, for as long as what is returned lives. Left to itself torch listens on all."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family)
    return TCPStore(
        address,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=STORE_TIMEOUT,
        master_listen_fd=listener.detach(),
    )


def connect_store(host: str, port: int) -> Any:
    """Connect to the store of node 0, whose every operation raises a RuntimeError once that is gone."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT)


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
            env.update(self._environments[local] | {"TORCHELASTIC_ERROR_FILE": errors[local]})
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
def process_group(rendezvous: Path | str, *, rank: int, world: int, device: str) -> Iterator[None]:
    """Join the run's process group: gloo on the CPU, NCCL on GPUs; nothing with one process.

    It lasts until the block ends or `leave_process_group` is called. `rendezvous` is a file on a local disk (no port
    that another job may hold), or `tcp://HOST:PORT`, the store of a run's nodes. NCCL connects the GPUs here and not at
    the first collective, so that what keeps it from that ends the run before a model is loaded: TryAgain.
    """
    if world == 1:
        yield
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    store = None
    where: dict[str, Any] = {"init_method": f"file://{Path(rendezvous).resolve()}"}
    if str(rendezvous).startswith(STORE_SCHEME):
        host, _, port = str(rendezvous).removeprefix(STORE_SCHEME).rpartition(":")
        store = connect_store(host, int(port))
        store.set(f"connecting/{rank}", "")
        store.set_timeout(COLLECTIVE_TIMEOUT)  # torch gives it to a store of its own alone; NCCL waits there for rank 0
        where = {"store": PrefixStore("ranks", store)}
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=rank,
            world_size=world,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=torch.device(device) if cuda else None,
            **where,
        )
    except dist.DistBackendError as error:  # type: ignore[attr-defined]
        said = str(error).strip().splitlines()[-1]
        raise TryAgain("GPUUnavailable", f"NCCL cannot connect the {world} GPUs: {said}") from error
    if store is not None:
        store.set(f"connected/{rank}", "")
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


def shard(groups: Iterable[nn.Module], device: str, copies: int = 1) -> None:
    """Divide the parameters of each of `groups` over all ranks, by FSDP2, inner modules before those that hold them.

    A group is whole only while it runs, on the way back again. What is put into a module later is whole on each rank.
    Of several `copies` each is divided over as many ranks, next to each other: those of a node. FSDP2 is not told of
    the other copies, as it is in HSDP: it would keep them alike by summing gradients, and what is frozen has none.
    """
    from torch.distributed.device_mesh import DeviceMesh  # here, since all runs import this module
    from torch.distributed.fsdp import fully_shard

    ranks = DeviceMesh.from_group(_sharing(world_size() // copies), torch.device(device).type)
    for module in groups:
        sharded = fully_shard(module, mesh=ranks, reshard_after_forward=True)
        if device == "cpu":
            sharded.set_custom_all_gather(cast(Any, _TimedGather()))


class _TimedGather:
    """FSDP's gather on a CPU, with the time that this rank waits in it: there the others are waited for.

    Each rank broadcasts its part: the same bytes as gloo's all_gather, which copies the whole once more.
    """

    waited_seconds = 0.0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool) -> None:
        """Fill `output_tensor`, of which FSDP has filled this rank's part, `input_tensor`; it is whole on return."""
        began = time.monotonic()
        parts = output_tensor.split(input_tensor.numel())
        for sent in [dist.broadcast(part, group=group, group_src=r, async_op=True) for r, part in enumerate(parts)]:
            sent.wait()
        _TimedGather.waited_seconds += time.monotonic() - began


class OwnTime:
    """How long this rank takes for its own part of a step: from `begin` to `end`, waiting for other ranks left out.

    `seconds` is 0 where that is not known: on a GPU until it has done the step, and with sharding not at all, since
    gathers run beside the rest there.
    """

    def __init__(self, device: str, *, sharded: bool) -> None:
        cuda = device.startswith("cuda")
        self._is_known = world_size() > 1 and not (sharded and cuda)
        self._began = self._waited = self._seconds = 0.0
        self._events: tuple[Any, ...] = ()
        if cuda and self._is_known:
            self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))

    def begin(self) -> None:
        if self._events:
            self._events[0].record()
        self._began, self._waited = time.monotonic(), _TimedGather.waited_seconds

    def end(self) -> None:
        if self._events:
            self._events[1].record()
        self._seconds = time.monotonic() - self._began - (_TimedGather.waited_seconds - self._waited)

    @property
    def seconds(self) -> float:
        if not self._is_known:
            return 0.0
        if self._events:
            done = all(event.query() for event in self._events)
            return self._events[0].elapsed_time(self._events[1]) / 1000 if done else 0.0
        return self._seconds


def fetch_nothing_ahead(module: Any) -> None:
    """Have nothing gathered while a sharded `module` is on its way back, where torch would what ran before it."""
    module.set_modules_to_backward_prefetch([module])


def _sharing(shards: int) -> Any:
    """Return the process group of the ranks that share a copy with this one, `shards` next to each other."""
    everyone, world = dist.group.WORLD, world_size()
    assert everyone is not None, "one process has nobody to share with"
    if shards == world:
        return everyone
    of_copies = [list(range(first, first + shards)) for first in range(0, world, shards)]
    group, _ = dist.new_subgroups_by_enumeration(of_copies, timeout=COLLECTIVE_TIMEOUT)
    return group


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
