"""metrics.jsonl: one JSON object a line, `{"step": 3, "time": 1767225600.5, "train/loss": 2.1}`; the truth of a run.

A line is handed to the operating system before `log` returns (about 10 microseconds), so a killed process loses none.
Not-a-number and infinity are written as the texts "NaN", "Infinity" and "-Infinity", which every JSON reader takes.
A resumed run continues the file from its checkpoint: later lines belong to steps that will be taken again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from llm_tuning.core.figures import LOSS

log = logging.getLogger(__name__)

STEP_TOKENS = "train/tokens"
"""Real tokens of one optimizer step, over all ranks."""
STEP_SECONDS = "train/step_seconds"
"""Wall seconds since the step before, evaluations and checkpoints between them included."""
STEP_OPERATIONS = "train/operations"
"""Floating point operations of one optimizer step, over all ranks: see `models.operations`."""
BUSY_SECONDS = "train/busy_seconds"
"""STEP_SECONDS without what was done besides the steps; not there for the first step of a start, which warms up."""
EPOCH = "train/epoch"
FILE_ONLY = frozenset({STEP_TOKENS, STEP_SECONDS, STEP_OPERATIONS, BUSY_SECONDS, EPOCH})
"""For `summarise` and `operations_per_second`; MLflow has the tokens a second, and every value of a step costs its
sender 0.1 ms."""


class MetricsFile:
    """Appends to a run's metrics.jsonl. A full disk costs the metrics, never the run: it is logged once.

    What an earlier start has written of a step stays: a value that comes again is dropped, so no step is there twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: FileIO | None = None
        self._written: dict[str, int] = {}
        self._failed = False

    def resume(self, step: int) -> None:
        """Keep the whole lines up to `step` and continue after them; makes the file if there is none.

        The kept lines go to a new file that is renamed over the old one: a reader that follows the file notices by
        its inode, and a kill in between leaves the old file as it was.
        """
        self.close()
        kept = self.path.with_suffix(".kept")
        try:
            with kept.open("wb") as stream:
                for line in read_metrics(self.path):
                    if line["step"] <= step:
                        stream.write(_encode(line))
            kept.replace(self.path)
            self._stream = self._open()
        except OSError as error:
            self._give_up(error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; `metrics` may hold any numbers, by their MLflow names."""
        if self._failed:
            return
        try:
            if self._stream is None:
                self._stream = self._open()
            values = {name: float(value) for name, value in metrics.items() if self._written.get(name, -1) < step}
            if values:
                self._stream.write(_encode({"step": step, "time": round(time.time(), 3), **values}))
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; a later `log` opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self) -> FileIO:
        self._written = last_steps(read_metrics(self.path))
        return _open_whole(self.path)

    def _give_up(self, error: OSError) -> None:
        self._failed = True
        log.warning("%s cannot be written: %s; the run continues without metrics", self.path, error.strerror)


def last_steps(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the last step of every value in lines of metrics.jsonl; steps of one name only grow."""
    last: dict[str, int] = {}
    for line in lines:
        last.update(dict.fromkeys(metric_names(line), line["step"]))
    return last


def metric_names(line: Mapping[str, Any]) -> list[str]:
    """Return the names of the values in a line of metrics.jsonl."""
    return [name for name in line if name not in ("step", "time")]


def sent_names(line: Mapping[str, Any]) -> list[str]:
    """Return the names of those values in a line of metrics.jsonl that go to MLflow."""
    return [name for name in metric_names(line) if name not in FILE_ONLY]


@dataclass(frozen=True)
class TrainingSummary:
    """What a run did over all its starts, added up from metrics.jsonl. `seconds` counts training, not the pauses."""

    steps: int
    epochs: float
    tokens: int
    seconds: float
    loss: float | None = None
    """Of the last step that has one."""


def summarise(path: Path) -> TrainingSummary:
    """Add up a metrics.jsonl; a file that is not there gives zeros."""
    steps, epochs, tokens, seconds = 0, 0.0, 0.0, 0.0
    loss: float | None = None
    for line in read_metrics(path):
        if STEP_TOKENS in line:
            steps = max(steps, line["step"])
            epochs = max(epochs, line.get(EPOCH, 0.0))
            tokens += line[STEP_TOKENS]
            seconds += line.get(STEP_SECONDS, 0.0)
        loss = line.get(LOSS, loss)
    return TrainingSummary(
        steps=steps,
        epochs=round(epochs, 4),
        tokens=round(tokens),
        seconds=round(seconds, 3),
        loss=float(f"{loss:.6g}") if loss is not None and math.isfinite(loss) else None,
    )


def operations_per_second(path: Path) -> float | None:
    """Compute the operations a second, over all ranks, of the steps in a metrics.jsonl; None where none tells."""
    operations = seconds = 0.0
    for line in read_metrics(path):
        if STEP_OPERATIONS in line and BUSY_SECONDS in line:
            operations += line[STEP_OPERATIONS]
            seconds += line[BUSY_SECONDS]
    return operations / seconds if seconds > 0 else None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every whole line with its values as numbers; skips torn and foreign lines, nothing for a missing file."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        for raw in stream:
            line = decode(raw)
            if line is not None:
                yield line


def decode(raw: bytes) -> dict[str, Any] | None:
    """Parse one line as `{"step": int, "time": float, name: float, ...}`; None if it is torn or foreign."""
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
        values = {name: float(value) for name, value in line.items()}
        step = int(line["step"])
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
    return {**values, "step": step}


def _encode(line: Mapping[str, Any]) -> bytes:
    values = {name: _to_json(value) for name, value in line.items()}
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _open_whole(path: Path) -> FileIO:
    """Open for appending, after the last whole line: the torn end of a killed writer would swallow the next one.

    Without a buffer: a line is with the operating system when it is written.
    """
    stream = FileIO(path, "ab")
    size = path.stat().st_size
    with path.open("rb") as reader:
        reader.seek(max(0, size - 65536))
        torn = len(reader.read().rpartition(b"\n")[2])
    os.ftruncate(stream.fileno(), size - torn)
    return stream
