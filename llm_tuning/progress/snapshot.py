"""Where a run is at one moment, and what can show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Snapshot:
    """Where a run is."""

    stage: str = "starting"
    step: int = 0
    total_steps: int = 0
    """0 while it is not known."""
    epoch: float = 0.0
    tokens_per_second: float | None = None
    remaining_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Newest values by their MLflow names: `train/loss`, `eval/loss`, ..."""
    stepping: bool = False
    """A step was taken since this process started."""
    done: bool = False

    @property
    def percent(self) -> int:
        """0 to 99 while the run goes on, for its last step is not its end; 100 when it is done."""
        if self.done:
            return 100
        return min(99, self.step * 100 // self.total_steps) if self.total_steps else 0

    @property
    def loss(self) -> float | None:
        return self.metrics.get("train/loss")


class Display(Protocol):
    """One way to show snapshots."""

    interval_seconds: float
    may_block: bool
    """It waits for somebody else: then also its `close` is called by the progress thread, never by the run."""

    def show(self, now: Snapshot) -> None:
        """Show a run that goes on."""

    def close(self, last: Snapshot) -> None:
        """Show the last state and let go of the place."""
