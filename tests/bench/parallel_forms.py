"""One rank of a measured SFT run: `python -m tests.bench.parallel_forms FOLDER RANK WORLD SHARDING TOKENS 0|1`.

The last says whether gradients are checkpointed. It trains on FOLDER/rows with a pass of TOKENS tokens, one row, a step
and rank. It prints as JSON: tokens a second of wall time, of all ranks, and of its own CPU time; bytes of memory at its
peak above what it had before the base, while loading and while training. On GPUs, of which it takes the one of its
rank, memory is what torch had allocated at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 1
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}
"""Its numbers are 0.6 % of the base's where memory is measured; rank 16 is 0.3 % of a 70B."""


def train(folder: Path, rank: int, world: int, sharding: str, tokens: int, *, checkpointed: bool) -> dict[str, float]:
    from llm_tuning.core.console import quiet_libraries

    quiet_libraries()
    import peft.tuners.lora.model  # noqa: F401 - a library's 60 MiB are no rank's share
    import torch
    from peft.helpers import disable_input_dtype_casting

    from llm_tuning.data.token_rows import TokenRows
    from llm_tuning.trainers.division import divided
    from llm_tuning.trainers.fine_tune import load_policy
    from llm_tuning.trainers.loop import fit
    from llm_tuning.trainers.parallel import process_group
    from llm_tuning.trainers.precision import precision_of_run
    from llm_tuning.trainers.recipe import Task
    from llm_tuning.trainers.sft import Sft
    from tests.support.train_run import KeepingReporter, make_run

    ends: list[tuple[float, float]] = []

    class Clock(KeepingReporter):
        def step(self, *args: Any) -> None:
            super().step(*args)
            ends.append((time.perf_counter(), time.process_time()))

    device = "cuda:0" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
    rows = TokenRows.open(folder / "rows")
    everything = torch.arange(len(rows)).numpy()
    training = {
        "precision": "bf16" if device != "cpu" else "fp32",
        "batch_size": 1,
        "max_tokens_per_pass": tokens,
        "save_steps": 10**6,
        "sharding": sharding,
        "gradient_checkpointing": checkpointed,
    }
    with (
        tempfile.TemporaryDirectory(dir=folder) as work,
        process_group(folder / "rendezvous", rank=rank, world=world, device=device),
    ):
        place = {"rank": rank, "world": world, "device": device, "reporter": Clock()}
        run = make_run(Path(work), folder / "base", training=training, lora=LORA, **place)
        dtype = precision_of_run(run)
        run = divided(run, dtype)
        before = memory("VmRSS")
        forget_the_peak()
        policy = load_policy(run, Sft, dtype)
        loading = memory("VmHWM") - before
        forget_the_peak()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        task = Task.of(run, policy, rows, everything, everything[:0])
        with disable_input_dtype_casting(policy.model):
            fit(task, Sft(task))
        peak = torch.cuda.max_memory_allocated() if device != "cpu" else memory("VmHWM") - before
    wall, cpu = (last - first for last, first in zip(ends[-1], ends[WARM_UP_STEPS - 1], strict=True))
    done = tokens * (len(ends) - WARM_UP_STEPS)
    return {"a_second": world * done / wall, "a_cpu_second": done / cpu, "loading": loading, "peak": peak}


def memory(name: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    given = sys.argv[1:]
    measured = train(
        Path(given[0]), int(given[1]), int(given[2]), given[3], int(given[4]), checkpointed=given[5] == "1"
    )
    print(json.dumps(measured), flush=True)
