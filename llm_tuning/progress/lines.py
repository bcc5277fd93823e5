"""One JSON line an interval, for logs and pipes: the first at the first step, the last at the end."""

from __future__ import annotations

import math
from typing import TextIO

from pydantic import Field, ValidationError

from llm_tuning.api.tuning_job import Progress
from llm_tuning.core.figures import HELD_OUT_LOSS
from llm_tuning.progress.snapshot import Snapshot

LINE_SECONDS = 10.0


class ProgressLine(Progress):
    """A TuningJob's `status.progress`, and what only a log has."""

    stage: str = Field("", description="What the run does.")

    eval_loss: float | None = Field(None, description="Loss on the held-out rows, as last measured.")


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
            self._stream.write(_line(now).model_dump_json(by_alias=True, exclude_none=True) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone: no reason to end a run
            self.interval_seconds = math.inf


def read_line(text: str) -> ProgressLine | None:
    """Parse a line that a trainer wrote, perhaps of another version; None for any other text of its log."""
    if not text.startswith("{"):
        return None
    try:
        return ProgressLine.model_validate_json(text, extra="ignore", by_alias=True)
    except ValidationError:
        return None


def _line(now: Snapshot) -> ProgressLine:
    held_out = now.metrics.get(HELD_OUT_LOSS)
    known = held_out is not None and math.isfinite(held_out)
    rounded = round(held_out, 5) if known and held_out is not None else None
    return ProgressLine(**dict(now.progress()), stage=now.stage, eval_loss=rounded)
