"""One rank of a run: find the device, join the others, run the recipe, and on rank 0 report and publish.

`python -m llm_tuning.run.rank WORK_DIR RANK` is how `llm_tuning.run.launch` starts it with several devices.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tuning.core.files import write_json
from llm_tuning.core.stopping import raise_if_stopped, stop_on_signals, stop_requested
from llm_tuning.errors import EXIT_INPUT, EXIT_TRY_AGAIN, InputError, Problem, TryAgain
from llm_tuning.modes import MODES
from llm_tuning.run.devices import DEFAULT_DEVICES, gpu_required
from llm_tuning.run.spec import TRACKING_URI_VARIABLE, RunSpec, read_run_spec

if TYPE_CHECKING:
    from llm_tuning.run.context import Reporter

log = logging.getLogger(__name__)


def run_rank(spec: RunSpec, *, rank: int) -> None:
    """Train as rank `rank` of the run; rank 0 also tracks, evaluates, publishes and registers it."""
    from llm_tuning.run.finish import Finisher

    if rank != 0:
        from llm_tuning.run.reporter import SilentReporter

        _train(spec, rank, SilentReporter())
        return
    with Finisher(spec) as finisher:
        device = _train(spec, rank, finisher.reporter)
        finisher.publish([device] if len(spec.devices) == 1 else spec.devices)


def _train(spec: RunSpec, rank: int, reporter: Reporter) -> str:
    """Run the recipe as this rank and return the device it ran on."""
    device = usable_device(spec.devices, rank)
    raise_if_stopped("before the first step")
    from llm_tuning.run.context import TrainRun
    from llm_tuning.trainers.parallel import process_group

    run = TrainRun(
        config=spec.config,
        model_id=spec.model_id,
        base=Path(spec.config.model.path),
        start_adapter=spec.start_adapter,
        work=spec.work,
        cache=spec.cache,
        device=device,
        rank=rank,
        world=len(spec.devices),
        base_weight_hash=spec.base_weight_hash,
        template_hash=spec.template_hash,
        data_hash=spec.data_hash,
        reporter=reporter,
    )
    recipe = importlib.import_module(MODES[spec.config.mode].recipe)
    with process_group(spec.work / "rendezvous", rank=rank, world=run.world, device=device):
        recipe.train(run)
    return device


def usable_device(devices: list[str], rank: int) -> str:
    """The device of this rank, seen to be there; the default falls back to the CPU, with one warning.

    Raises InputError for a GPU number that this machine does not have, TryAgain where it has no CUDA at all.
    """
    device = devices[rank]
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        index, count = int(device.removeprefix("cuda:")), torch.cuda.device_count()
        if index >= count:
            raise InputError(Problem("devices", f"GPU {index} is not there", f"this machine has 0 to {count - 1}"))
        return device
    if devices == DEFAULT_DEVICES and not gpu_required():
        log.warning("no CUDA on this machine: training on the CPU (say --devices cpu to mean it)")
        return "cpu"
    raise TryAgain(
        "GPUUnavailable",
        f"devices {', '.join(devices)} were asked for but torch sees no CUDA; check the driver, or use --devices cpu",
    )


def main(work: Path, rank: int) -> int:
    """Run one rank as a process and return its exit code; what went wrong is left in `error-rank<N>.json`."""
    from llm_tuning.core.console import DEBUG_VARIABLE, quiet_libraries, set_up_logging

    debug = os.environ.get(DEBUG_VARIABLE) == "1"
    set_up_logging(debug=debug)
    if not debug:
        quiet_libraries()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with stop_on_signals():
        try:
            spec = read_run_spec(work)
            assert spec is not None, f"{work} holds no run.json"
            run_rank(spec.with_tracking_uri(os.environ.get(TRACKING_URI_VARIABLE)), rank=rank)
        except InputError as error:
            problems = [{"where": p.where, "rule": p.rule, "fix": p.fix} for p in error.problems]
            write_json(work / f"error-rank{rank}.json", {"problems": problems})
            return EXIT_INPUT
        except TryAgain as error:
            write_json(work / f"error-rank{rank}.json", {"reason": error.reason, "message": str(error)})
            return EXIT_TRY_AGAIN
        except Exception as error:
            if stop_requested():  # a peer left first and the collective broke: this is the stop, seen from here
                return EXIT_TRY_AGAIN
            write_json(work / f"error-rank{rank}.json", {"message": f"{type(error).__name__}: {error}"})
            log.debug("rank %d failed", rank, exc_info=True)  # launch says it in one sentence
            return 1
    return 0


def _leave_with_parent() -> None:
    """Standard input ends when the parent does, however it ended."""
    sys.stdin.buffer.read()
    os._exit(EXIT_TRY_AGAIN)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # not sys.exit: a thread blocked on a dead tracking server must not hold the exit code back
