"""One JSON line an interval, for logs and pipes: the first at the first step, the last at the end."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, TextIO

from llm_tuning.progress.snapshot import Snapshot

LINE_SECONDS = 10.0


class JsonLines:
    """Writes snapshots as JSON, with the names of a TuningJob's `status.progress`."""

    may_block = False

    def __init__(self, stream: TextIO, interval_seconds: float = LINE_SECONDS) -> None:
        self._stream = stream
        self.interval_seconds = interval_seconds

    def show(self, now: Snapshot) -> None:
        if now.stepping:
            self._write(now)

    def close(self, last: Snapshot) -> None:
        if last.stepping or last.done:
            self._write(last)

    def _write(self, now: Snapshot) -> None:
        try:
            self._stream.write(json.dumps(as_status(now), separators=(",", ":"), allow_nan=False) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more: no reason to end a run
            self.interval_seconds = math.inf


def as_status(now: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON values; what is unknown or not finite is left out."""
    values: dict[str, Any] = {
        "lastUpdateTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "stage": now.stage,
        "percent": now.percent,
        "step": now.step,
        "totalSteps": now.total_steps,
        "epoch": round(now.epoch, 3),
        "loss": _rounded(now.loss, 5),
        "evalLoss": _rounded(now.metrics.get("eval/loss"), 5),
        "tokensPerSecond": _rounded(now.tokens_per_second, 1),
        "remainingSeconds": _rounded(now.remaining_seconds, 0),
    }
    return {name: value for name, value in values.items() if value is not None}


def _rounded(value: float | None, digits: int) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    return round(value, digits) if digits else round(value)
