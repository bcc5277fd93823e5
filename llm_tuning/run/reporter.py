"""What a recipe reports, to where it belongs: the metrics file (and so MLflow) and the progress display.

The reporter measures; recipes only say which step they took and how many tokens it had.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from llm_tuning.core.figures import SLOW_RANK, TOKENS_PER_SECOND, WAITING_MESSAGE, WAITING_REASON
from llm_tuning.models.metrics_file import BUSY_SECONDS, EPOCH, FILE_ONLY, STEP_SECONDS, STEP_TOKENS
from llm_tuning.progress import Progress, Snapshot

log = logging.getLogger(__name__)

WINDOW_STEPS = 20
"""Steps over which tokens a second are averaged."""
TRAINING = "training"


class MetricsLog(Protocol):
    """Where metrics are kept: a Tracker, or a MetricsFile alone."""

    def resume(self, step: int) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class RunReporter:
    """Rank 0's reporter. Every method takes microseconds; after `close` nothing is shown or kept."""

    def __init__(self, progress: Progress, metrics_log: MetricsLog) -> None:
        self._progress = progress
        self._metrics_log = metrics_log
        self._now = Snapshot()
        self._pace = Pace(0, 0, time.monotonic())

    def start(self, total_steps: int, start_step: int) -> None:
        """Begin at `start_step` of `total_steps`; metrics of later steps, from before a kill, are cut off."""
        self._metrics_log.resume(start_step)
        self._pace = Pace(total_steps, start_step, time.monotonic())
        self._show(replace(self._now, stage=TRAINING, step=start_step, total_steps=total_steps))

    def step(self, step: int, epoch: float, metrics: dict[str, float], tokens: int) -> None:
        """Report one optimizer step with `tokens` real tokens, summed over all ranks."""
        seconds = self._pace.step(step, tokens, time.monotonic())
        measured = {EPOCH: epoch, STEP_TOKENS: tokens, STEP_SECONDS: seconds}
        if self._now.stepping and self._pace.busy_seconds is not None:
            measured[BUSY_SECONDS] = self._pace.busy_seconds
        if self._pace.tokens_per_second is not None:
            measured[TOKENS_PER_SECOND] = self._pace.tokens_per_second
        self._metrics_log.log(step, {**metrics, **measured})
        shown = {name: value for name, value in metrics.items() if name not in FILE_ONLY}
        self._show(
            replace(
                self._now,
                stage=TRAINING,
                step=step,
                epoch=epoch,
                stepping=True,
                tokens_per_second=self._pace.tokens_per_second,
                remaining_seconds=self._pace.remaining_seconds,
                metrics={**self._now.metrics, **shown},
            )
        )

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Report other values at a step, such as an evaluation."""
        self._pace.resumed(time.monotonic())
        self._metrics_log.log(step, metrics)
        self._show(replace(self._now, metrics={**self._now.metrics, **metrics}))

    def slow_rank(self, message: str | None) -> None:
        """Say that a rank is far slower than the others, in the log and to the status endpoint; None: it is no more."""
        log.warning("%s", message) if message is not None else log.info("the ranks are equally fast again")
        words = {} if message is None else {WAITING_REASON: SLOW_RANK, WAITING_MESSAGE: message}
        self._show(replace(self._now, words=words))

    def stage(self, name: str) -> None:
        """Show what the run does outside the steps, until `metrics` reports on it or a step is done."""
        self._pace.interrupted(time.monotonic())
        self._show(replace(self._now, stage=name))

    def close(self, *, done: bool = False) -> None:
        """Show the end; `done` if the run reached what it was started for. The first call counts."""
        stage = "done" if done else self._now.stage
        self._progress.close(replace(self._now, stage=stage, done=done, remaining_seconds=None))
        self._metrics_log.close()

    def _show(self, now: Snapshot) -> None:
        self._now = now
        self._progress.update(now)


class SilentReporter:
    """For the other ranks."""

    def start(self, total_steps: int, start_step: int) -> None: ...

    def step(self, step: int, epoch: float, metrics: dict[str, float], tokens: int) -> None: ...

    def metrics(self, step: int, metrics: dict[str, float]) -> None: ...

    def slow_rank(self, message: str | None) -> None: ...

    def stage(self, name: str) -> None: ...


class Pace:
    """Tokens a second over the last steps, and the time left at the pace since the start of this process.

    An evaluation or checkpoint between two steps is no part of the first and, since it will come again, is of the
    second.
    """

    def __init__(self, total_steps: int, start_step: int, now: float) -> None:
        self._total, self._first, self._step = total_steps, start_step, start_step
        self._began = self._last = now
        self._window: deque[tuple[int, float]] = deque(maxlen=WINDOW_STEPS)
        self._paused_seconds = 0.0
        self._paused_at: float | None = None
        self.busy_seconds: float | None = None
        """Of the last step without what came between; None where it is unknown when it began."""

    def step(self, step: int, tokens: int, now: float) -> float:
        """Take in a step that ended `now`; returns the seconds since the one before."""
        seconds = now - self._last
        self.busy_seconds = seconds - self._paused_seconds if self._paused_at is None else None
        if self.busy_seconds is not None:
            self._window.append((tokens, self.busy_seconds))
        self._paused_seconds, self._paused_at = 0.0, None
        self._last, self._step = now, step
        return seconds

    def interrupted(self, now: float) -> None:
        """Stop the clock of steps at `now`: something else is done."""
        self._paused_at = now

    def resumed(self, now: float) -> None:
        """Continue the clock of steps `now`; no effect if it was not stopped."""
        if self._paused_at is not None:
            self._paused_seconds += now - self._paused_at
            self._paused_at = None

    @property
    def tokens_per_second(self) -> float | None:
        """None until there is an uninterrupted step."""
        seconds = sum(seconds for _, seconds in self._window)
        return sum(tokens for tokens, _ in self._window) / seconds if seconds > 0 else None

    @property
    def remaining_seconds(self) -> float | None:
        """None until there is a step, while the total is unknown, and after the last step: what follows has no pace."""
        taken, left = self._step - self._first, self._total - self._step
        return max(1.0, left * (self._last - self._began) / taken) if taken > 0 and left > 0 else None
