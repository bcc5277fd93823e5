"""One rank of a run: find the device, join the others, run the recipe, and on rank 0 report and publish.

`python -m llm_tuning.run.rank WORK_DIR` is how `llm_tuning.run.launch` has it started with several devices; which rank
it is stands in the environment, as torchrun sets it.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_tuning.core.files import write_json
from llm_tuning.core.stopping import raise_if_stopped, stop_on_signals, stop_requested
from llm_tuning.errors import EXIT_INPUT, EXIT_TRY_AGAIN, InputError, TryAgain
from llm_tuning.modes import MODES
from llm_tuning.run.spec import TRACKING_URI_VARIABLE, RunSpec, read_run_spec

if TYPE_CHECKING:
    from llm_tuning.run.context import Reporter

log = logging.getLogger(__name__)

PARENT_VARIABLE = "LLM_TUNING_PARENT"
"""Process id of the one that a rank must not outlive: run.json, checkpoints and the lock are that one's."""

RENDEZVOUS_VARIABLE = "LLM_TUNING_RENDEZVOUS"
"""The file by which the ranks of a run find each other, or `tcp://HOST:PORT`, the store of its nodes."""

HOSTS_VARIABLE = "LLM_TUNING_HOSTS"
"""Names of the nodes of a run, by commas; empty with one."""

PR_SET_PDEATHSIG = 1


class Place(NamedTuple):
    """Which of `world` processes this one is: `rank` in the whole run, `local_rank` on this machine."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    rendezvous: Path | str = Path()
    hosts: tuple[str, ...] = ()
    """Of the nodes, where there are several."""


@dataclass(frozen=True)
class RankFailure:
    """How a rank ended that did not end well."""

    exit_code: int
    """Negative: the number of the signal that ended it."""
    seconds: float
    """Unix time of the failure, as the rank wrote it, or else of the moment at which its end was seen."""
    error: dict[str, Any]
    """What it left in its error file."""


def run_rank(spec: RunSpec, place: Place) -> None:
    """Train as one rank of the run; rank 0 also tracks, evaluates, publishes and registers it."""
    from llm_tuning.run.finish import Finisher

    if place.rank != 0:
        from llm_tuning.run.reporter import SilentReporter

        _train(spec, place, SilentReporter())
        return
    with Finisher(spec) as finisher:
        device = _train(spec, place, finisher.reporter)
        finisher.publish([device] if len(spec.devices) == 1 else spec.devices)


def _train(spec: RunSpec, place: Place, reporter: Reporter) -> str:
    """Run the recipe as this rank and return the device it ran on."""
    from llm_tuning.trainers.gpu import usable_device

    device = usable_device(spec.devices, place.rank)
    raise_if_stopped("before the first step")
    from llm_tuning.run.context import TrainRun
    from llm_tuning.trainers.parallel import process_group

    run = TrainRun(spec, device, place.rank, place.world, reporter, hosts=place.hosts)
    recipe = importlib.import_module(MODES[spec.config.mode].recipe)
    with process_group(place.rendezvous, rank=run.rank, world=run.world, device=device):
        recipe.train(run)
    return device


def main(work: Path) -> int:
    """Run one rank as a process and return its exit code; what went wrong is left in its error file."""
    from llm_tuning.core.console import DEBUG_VARIABLE, quiet_libraries, set_up_logging

    debug = os.environ.get(DEBUG_VARIABLE) == "1"
    set_up_logging(debug=debug)
    if not debug:
        quiet_libraries()
    rank, local_rank, world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    hosts = tuple(host for host in os.environ.get(HOSTS_VARIABLE, "").split(",") if host)
    place = Place(rank, local_rank, world, os.environ[RENDEZVOUS_VARIABLE], hosts)
    with stop_on_signals():
        end_with_parent(int(os.environ[PARENT_VARIABLE]))
        try:
            spec = read_run_spec(work)
            assert spec is not None, f"{work} holds no run.json"
            run_rank(spec.with_tracking_uri(os.environ.get(TRACKING_URI_VARIABLE)), place)
        except InputError as error:
            problems = [asdict(problem) for problem in error.problems]
            _leave_error(str(error), problems=problems)
            return EXIT_INPUT
        except TryAgain as error:
            _leave_error(error.message, reason=error.reason)
            return EXIT_TRY_AGAIN
        except Exception as error:
            if stop_requested():  # a peer left first and the collective broke: this is the stop, seen from here
                return EXIT_TRY_AGAIN
            _leave_error(f"{type(error).__name__}: {error}")
            log.debug("rank %d failed", place.rank, exc_info=True)  # launch says it in one sentence
            return 1
    return 0


def _leave_error(message: str, **fields: Any) -> None:
    """Write the error file of this rank; torchrun reads `message` and `timestamp`, `launch` all of it."""
    path = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    write_json(path, {"message": message, "timestamp": time.time(), **fields})


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process as soon as its parent has gone, however that came about."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # gone before that
        os._exit(EXIT_TRY_AGAIN)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # not sys.exit: a thread blocked on a dead tracking server must not hold the exit code back
