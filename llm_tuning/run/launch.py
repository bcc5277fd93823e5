"""Runs one process a device under torchrun's agent, and turns how they ended into this process's result.

The agent ends with 1 whatever happened, so the exit codes 64 and 75 come from the ranks' error files. The processes are
`python -m llm_tuning.run.rank`, never multiprocessing's: that would import the caller's main module again.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tuning.core.cards import VISIBLE
from llm_tuning.core.console import DEBUG_VARIABLE
from llm_tuning.core.stopping import stop_requested
from llm_tuning.errors import EXIT_INPUT, EXIT_TRY_AGAIN, InputError, Problem, TryAgain
from llm_tuning.run.devices import HUGE_PAGES, gpu_defaults, own_gpu, threads_per_process
from llm_tuning.run.rank import HOSTS_VARIABLE, PARENT_VARIABLE, RENDEZVOUS_VARIABLE, RankFailure
from llm_tuning.run.spec import TRACKING_URI_VARIABLE, RunSpec

if TYPE_CHECKING:
    from llm_tuning.run.nodes import NodeGroup

STOPPED = "Stopped"
AGENT_KILLS_AFTER_SECONDS = 30
"""After the first failure, when the agent sends SIGKILL to ranks that have not ended (torch's own number)."""


def launch(spec: RunSpec, group: NodeGroup | None = None) -> None:
    """Run all ranks of `spec`, of which those of this node where there are several.

    Raises InputError, TryAgain or RuntimeError as the rank did that failed first, on whichever node.
    """
    from llm_tuning.trainers.gpu import check_visible
    from llm_tuning.trainers.parallel import run_ranks

    node = 0 if group is None else group.nodes.index
    devices = spec.devices_of(node)
    check_visible(devices)
    for rank in range(node * len(devices), (node + 1) * len(devices)):
        _error_file(spec, rank).unlink(missing_ok=True)
    # The ranks' rendezvous is a file that they lock: on a network volume that may be slow or hang.
    with nullcontext() if group is not None else tempfile.TemporaryDirectory(prefix="llm-tuning-") as local:
        rendezvous = f"{local}/rendezvous" if group is None else f"tcp://{group.store_address}:{group.nodes.port}"
        failures = run_ranks(
            ["-m", "llm_tuning.run.rank", str(spec.work)],
            environments=_environments(spec, devices, rendezvous, () if group is None else group.nodes.hosts),
            error_file=lambda rank: _error_file(spec, rank),
            stop=stop_requested,
            group=group,
        )
    if group is not None:
        failures = group.share(failures)
    name = None if group is None else group.nodes.of_rank
    raise_cause(failures, ranks=len(spec.devices), stopped=stop_requested(), name=name)


def _error_file(spec: RunSpec, rank: int) -> Path:
    return spec.work / f"error-rank{rank}.json"


def _environments(spec: RunSpec, devices: list[str], rendezvous: str, hosts: tuple[str, ...]) -> list[dict[str, str]]:
    """Build what each rank finds in its environment beside this process's own and torchrun's variables.

    Each has its own card and no other: no library can open a context on a card that belongs to another rank.
    """
    wanted = {PARENT_VARIABLE: str(os.getpid()), RENDEZVOUS_VARIABLE: rendezvous, HOSTS_VARIABLE: ",".join(hosts)}
    if logging.getLogger("llm_tuning").isEnabledFor(logging.DEBUG):
        wanted[DEBUG_VARIABLE] = "1"
    if spec.config.tracking.uri is not None:
        wanted[TRACKING_URI_VARIABLE] = spec.config.tracking.uri
    defaults = {
        "OMP_NUM_THREADS": str(threads_per_process(len(devices))),
        **gpu_defaults(os.environ),
    }
    if spec.config.training.sharding == "full" and "cpu" in devices:
        defaults |= HUGE_PAGES
    if spec.nodes == 1:  # gradients never leave the machine, and both listen on loopback alone
        defaults |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    common = wanted | {name: value for name, value in defaults.items() if name not in os.environ}
    visible = os.environ.get(VISIBLE)
    return [common | ({} if device == "cpu" else {VISIBLE: own_gpu(device, visible)}) for device in devices]


def raise_cause(
    failures: dict[int, RankFailure], *, ranks: int, stopped: bool, name: Callable[[int], str] | None = None
) -> None:
    """Raise what the failing rank did, if any failed; `stopped`: this process was asked to stop and forwarded that.

    One failure makes others: a rank that lost its peer knows it as a broken connection, and the agent ends by a signal
    those that are left. So bad input outranks everything and a stop a crash; a rank that a signal ended is named before
    those that failed with it, and of several failures the first.
    """
    order = sorted(failures.items(), key=lambda item: item[1].seconds)
    causes = [(rank, failure) for rank, failure in order if not _is_the_agents_work(failure, order[0][1])]
    for _, failure in causes:
        if failure.exit_code == EXIT_INPUT:
            raise InputError([Problem(**problem) for problem in failure.error["problems"]])
    stops = [failure.error for _, failure in causes if failure.exit_code == EXIT_TRY_AGAIN]
    for error in sorted(stops, key=lambda error: "reason" not in error):  # a rank whose peer left first gives none
        if stopped or error.get("reason", STOPPED) != STOPPED:
            raise TryAgain(error.get("reason", STOPPED), error.get("message", "stopped on request"))
    crashes = [(rank, failure) for rank, failure in causes if failure.exit_code != EXIT_TRY_AGAIN]
    for rank, failure in sorted(crashes, key=lambda crash: crash[1].exit_code > 0):
        raise RuntimeError(f"{name(rank) if name else f'rank {rank} of {ranks}'} {_end(failure)}")
    if order:  # only ranks that were asked to stop, be it before they could say so
        raise TryAgain(STOPPED, "stopped on request")


def _is_the_agents_work(failure: RankFailure, first: RankFailure) -> bool:
    """Return whether the agent ended this rank because of another: SIGTERM goes to all, SIGKILL to those that hang."""
    late = failure.seconds - first.seconds >= AGENT_KILLS_AFTER_SECONDS - 1  # some times are whole seconds
    return failure.exit_code == -signal.SIGTERM or (failure.exit_code == -signal.SIGKILL and late)


def _end(failure: RankFailure) -> str:
    if failure.exit_code > 0:
        return f"failed with exit code {failure.exit_code}: {failure.error.get('message', 'it left no message')}"
    number = -failure.exit_code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = "; the kernel does so when memory runs out" if number == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
