"""Memory that runs out: said in the run's own words, by stage and cause, and given back."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llm_tuning.errors import InputError, TryAgain
from llm_tuning.trainers import sft
from tests.gpu.findings import Finding, Place, below, not_here
from tests.support.rows import write_rows
from tests.support.tiny_base import make_base
from tests.support.train_run import KeepingReporter, make_run

GIB = 2**30
HOLD = """
import sys, torch
held = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device=sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""
LITTLE = 2 * GIB


def memory_runs_out(place: Place) -> Iterator[Finding]:
    """Run out of memory in training, in an evaluation, and because of another process."""
    if not place.cuda:
        yield not_here("memory of a GPU that runs out", "needs CUDA; tests/train has the words for each cause")
        return
    base = make_base(place.scratch / "memory-base", hidden_size=512, layers=8)
    total = torch.cuda.get_device_properties(place.device).total_memory
    torch.cuda.set_per_process_memory_fraction(LITTLE / total, place.device)
    yield from _ends(
        place, base, "training", kind=InputError, word="training.maxTokensPerPass", reporter=KeepingReporter()
    )
    yield from _ends(place, base, "evaluation", kind=InputError, word="evaluat", reporter=_Shrinks(place.device))
    free, _ = torch.cuda.mem_get_info(place.device)
    with _another_process(place, free - LITTLE):
        yield from _ends(
            place, base, "another process", kind=TryAgain, word="other processes", reporter=KeepingReporter()
        )


class _Shrinks(KeepingReporter):
    """Leaves the run no memory from its last evaluation on."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def stage(self, name: str) -> None:
        super().stage(name)
        if name == "evaluating":
            gc.collect()
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_allocated() / total, self._device)


def _ends(place: Place, base: Path, name: str, *, kind: type[Exception], word: str, reporter: Any) -> Iterator[Finding]:
    """See how a run ends, how soon, and what it leaves on the card; afterwards it may use the whole card again."""
    work = place.scratch / f"memory-{name.replace(' ', '-')}"
    write_rows(work / "rows", [4000] * 40)
    training = {"precision": "bf16", "batch_size": 36, "max_steps": 1, "max_tokens_per_pass": 10**7}
    if name == "evaluation":
        training |= {"max_tokens_per_pass": 4096, "batch_size": 2}
    before, began = torch.cuda.memory_allocated(), time.monotonic()
    seen, passed = "no error", False
    try:
        sft.train(make_run(work, base, device=place.device, training=training, reporter=reporter))
    except Exception as error:
        seen = f"{type(error).__name__}: {error}"
        passed = isinstance(error, kind) and word in seen
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place.device)
    seconds = time.monotonic() - began
    gc.collect()
    torch.cuda.empty_cache()
    expected = f"{kind.__name__} with {word}"
    yield Finding.of(f"{name}: how it ends", expected=expected, seen=seen[:300], passed=passed)
    yield below(f"{name}: seconds to the end", seconds, 15.0)
    yield below(f"{name}: left on the card", (torch.cuda.memory_allocated() - before) / GIB, 0.1, "GiB")


@contextmanager
def _another_process(place: Place, size: int) -> Iterator[None]:
    """Hold `size` bytes of the card in another process while the block runs."""
    command = [sys.executable, "-c", HOLD, str(size), place.device]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if "held" not in process.stdout.readline():
                raise RuntimeError("the other process could not take its memory")
            yield
        finally:
            process.kill()
