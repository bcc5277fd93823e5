"""Where a run is at one moment, and what can show it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol, Self

from llm_tuning.api.sources import FetchProgress
from llm_tuning.api.tuning_job import Progress
from llm_tuning.core.figures import LOSS


@dataclass(frozen=True)
class Snapshot:
    """Where a run is."""

    stage: str = "starting"
    step: int = 0
    total_steps: int = 0
    """0 while it is not known."""
    _: KW_ONLY
    epoch: float = 0.0
    tokens_per_second: float | None = None
    remaining_seconds: float | None = None
    bytes: int | None = None
    """Of a fetch, as the next two."""
    total_bytes: int = 0
    bytes_per_second: float | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    """Texts for the status endpoint, by their names on the wire."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Newest values by their MLflow names: `train/loss`, `eval/loss`, ..."""
    stepping: bool = False
    """A step was taken since this process started."""
    done: bool = False

    @property
    def percent(self) -> int:
        """0 to 99 during the run, for its last step is not its end; 100 when it is done."""
        if self.done:
            return 100
        if self.bytes is not None:
            return min(100, self.bytes * 100 // self.total_bytes) if self.total_bytes else 0
        return min(99, self.step * 100 // self.total_steps) if self.total_steps else 0

    @property
    def loss(self) -> float | None:
        return self.metrics.get(LOSS)

    @classmethod
    def of(cls, progress: Progress, stage: str, *, done: bool) -> Self:
        """Build the snapshot of a TuningJob from its status."""
        return replace(
            cls.of_fetch(progress, stage),
            step=progress.step,
            total_steps=progress.total_steps or 0,
            epoch=progress.epoch or 0.0,
            tokens_per_second=progress.tokens_per_second,
            metrics={} if progress.loss is None else {LOSS: progress.loss},
            stepping=progress.step > 0,
            done=done,
        )

    @classmethod
    def of_fetch(cls, fetch: FetchProgress, stage: str) -> Self:
        """Build the snapshot of a fetch from a status."""
        return cls(
            stage,
            bytes=fetch.bytes,
            total_bytes=fetch.total_bytes or 0,
            bytes_per_second=fetch.bytes_per_second,
            remaining_seconds=fetch.remaining_seconds,
        )

    def progress(self) -> Progress:
        """Build the progress of a TuningJob's status; what is unknown or not finite is left out."""
        return Progress(
            percent=self.percent,
            bytes=self.bytes,
            total_bytes=self.total_bytes or None,
            bytes_per_second=_finite(self.bytes_per_second, 0),
            step=self.step,
            total_steps=self.total_steps or None,
            epoch=round(self.epoch, 3),
            loss=_finite(self.loss, 5),
            tokens_per_second=_finite(self.tokens_per_second, 1),
            remaining_seconds=None if self.remaining_seconds is None else max(1, round(self.remaining_seconds)),
            last_update_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )


def _finite(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


class Display(Protocol):
    """One way to show snapshots."""

    interval_seconds: float
    may_block: bool
    """It waits for a server: then also its `close` is called by the progress thread, never by the run."""

    def show(self, now: Snapshot) -> None:
        """Show a run in progress."""

    def close(self, last: Snapshot) -> None:
        """Show the last state and let go of the place."""
