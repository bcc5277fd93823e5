"""Whole runs of a recipe in the test's process, in one process a rank, and stopped by a signal."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
from dataclasses import replace

from llm_tuning.core.stopping import stop_on_signals
from llm_tuning.errors import TryAgain
from llm_tuning.modes import MODES
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.parallel import process_group
from tests.support.train_run import KeepingReporter


def train(run: TrainRun) -> None:
    """Train by the recipe of the run's mode."""
    importlib.import_module(MODES[run.config.mode].recipe).train(run)


def in_processes(runs: list[TrainRun], *, signal_last_rank_at: int | None = None) -> list[int | None]:
    """Train each rank in a forked child; returns the exit codes. Losses are left in `losses-<rank>.json`."""
    (runs[0].work / "rendezvous").unlink(missing_ok=True)
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_rank, args=(run, signal_last_rank_at if run.rank == run.world - 1 else None))
        for run in runs
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=240)
        if child.is_alive():
            child.kill()
    return [child.exitcode for child in children]


def _rank(run: TrainRun, signal_at: int | None) -> None:
    if signal_at is not None:
        run = with_reporter(run, SignallingReporter(signal_at))
    with stop_on_signals(), process_group(run.work / "rendezvous", rank=run.rank, world=run.world, device="cpu"):
        try:
            train(run)
        except TryAgain:
            os._exit(75)
    losses = run.reporter.losses  # type: ignore[attr-defined]
    (run.work / f"losses-{run.rank}.json").write_text(json.dumps(losses))


class SignallingReporter(KeepingReporter):
    """Sends this process a real SIGTERM when it is told of a step, or of a stage."""

    def __init__(self, at: int | str) -> None:
        super().__init__()
        self.at = at

    def step(self, step: int, epoch: float, metrics: dict[str, float], tokens: int) -> None:
        super().step(step, epoch, metrics, tokens)
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)

    def stage(self, name: str) -> None:
        super().stage(name)
        if name == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def with_reporter(run: TrainRun, reporter: KeepingReporter) -> TrainRun:
    return replace(run, reporter=reporter)
