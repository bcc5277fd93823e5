"""What a run has left in `models/`: metrics, checkpoints, manifest; and the CSV that OpenAI's jobs end with.

Read only, and never rows or weights. A published adapter has its files in `models/<model_id>/`, a run under way in
`models/.work/<model_id>/`. What lies there was written by pods, so it is read as others' files are: regular ones alone.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from llm_tuning.core.figures import HELD_OUT_LOSS, LOSS
from llm_tuning.core.files import open_regular
from llm_tuning.errors import InputError
from llm_tuning.models.layout import CHECKPOINTS, MANIFEST, METRICS, WORK_FOLDER
from llm_tuning.models.manifest import Manifest, read_manifest
from llm_tuning.models.metrics_file import decode

log = logging.getLogger(__name__)

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_NAMES = {
    "train_loss": LOSS,
    "train_accuracy": "train/reward_accuracy",
    "valid_loss": HELD_OUT_LOSS,
    "valid_mean_token_accuracy": "eval/token_accuracy",
    "valid_accuracy": "eval/reward_accuracy",
}
"""OpenAI's columns, and the run's names of the same figures. In dpo, accuracy is the share of pairs whose preferred
answer has the higher reward; a run of sft has no accuracy of its training rows."""


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one optimizer step; None is what was not measured there, or is no number."""

    step: int
    time: float
    """When the step was logged first, in seconds since 1970."""
    train_loss: float | None = None
    train_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    valid_accuracy: float | None = None


@dataclass(frozen=True)
class Kept:
    """A checkpoint that a run has kept, with the figures of its step."""

    step: int
    created_at: int
    figures: Point
    is_published: bool
    """It is the finished adapter, not one that a run under way can go on from."""


class RunFiles:
    """The `models` folder of a claim."""

    def __init__(self, models: Path) -> None:
        self.models = models

    def trained_tokens(self, model_id: str | None) -> int | None:
        """Return the tokens that the training of a finished adapter saw; None where that is not known."""
        folder = self._folder(model_id)
        stamp = _stamp(folder / MANIFEST) if folder else None
        return _tokens(folder, stamp) if folder and stamp else None

    def points(self, model_id: str | None) -> tuple[Point, ...]:
        """Return the figures of each logged step, oldest first; none before the first one."""
        for folder in self._folders(model_id):
            if (stamp := _stamp(folder / METRICS)) is not None:
                return _points(folder / METRICS, stamp)
        return ()

    def checkpoints(self, model_id: str | None) -> list[Kept]:
        """Return the checkpoints that are there, oldest first: those of the run, or the one that was published."""
        folder, work = self._folder(model_id), self._folder(model_id, WORK_FOLDER)
        if folder is not None and (manifest := _manifest(folder)) is not None:
            return [_published(manifest, self.points(model_id))]
        return sorted(_in_work(work / CHECKPOINTS, self.points(model_id)), key=lambda kept: kept.step) if work else []

    def has_metrics(self, model_id: str | None) -> bool:
        """Return whether a finished adapter has figures."""
        folder = self._folder(model_id)
        return folder is not None and _stamp(folder / METRICS) is not None

    def metrics_csv(self, model_id: str | None) -> bytes | None:
        """Return the figures of a finished adapter as CSV; None where it is gone."""
        folder = self._folder(model_id)
        stamp = _stamp(folder / METRICS) if folder else None
        return to_csv(_points(folder / METRICS, stamp)) if folder and stamp else None

    def csv_bytes(self, model_id: str | None) -> int | None:
        """Return the size of `metrics_csv`."""
        folder = self._folder(model_id)
        stamp = _stamp(folder / METRICS) if folder else None
        return _csv_bytes(folder / METRICS, stamp) if folder and stamp else None

    def _folder(self, model_id: str | None, *parents: str) -> Path | None:
        """Return where a run of this name has its files; None for a name that no run has."""
        return self.models.joinpath(*parents, model_id) if model_id and MODEL_ID.fullmatch(model_id) else None

    def _folders(self, model_id: str | None) -> Iterator[Path]:
        yield from filter(None, (self._folder(model_id), self._folder(model_id, WORK_FOLDER)))


def to_csv(points: Iterable[Point]) -> bytes:
    """Write points as OpenAI's result files have them; a figure that no step has gets a column all the same."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *_NAMES])
    for point in points:
        values = asdict(point)
        writer.writerow([point.step, *("" if values[name] is None else f"{values[name]:.6g}" for name in _NAMES)])
    return text.getvalue().encode()


def read_points(lines: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Gather lines of metrics.jsonl by their step; what has no figure of OpenAI's is left out."""
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        figures = {name: line[own] for name, own in _NAMES.items() if math.isfinite(line.get(own, math.nan))}
        if figures:
            values = steps.setdefault(line["step"], {"time": line.get("time", 0.0)})
            values.update(figures)
    return tuple(Point(step=step, **steps[step]) for step in sorted(steps))


Stamp = tuple[int, int, int]
"""What changes with a file: inode, size, time of the last write."""


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=8)
def _points(path: Path, stamp: Stamp) -> tuple[Point, ...]:
    try:
        with open_regular(path) as stream:
            return read_points(line for raw in stream if (line := decode(raw)) is not None)
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
        return ()


@lru_cache(maxsize=4096)
def _csv_bytes(path: Path, stamp: Stamp) -> int:
    return len(to_csv(_points(path, stamp)))


@lru_cache(maxsize=4096)
def _tokens(folder: Path, stamp: Stamp) -> int | None:
    manifest = _manifest(folder)
    return manifest.training.tokens if manifest is not None and manifest.training is not None else None


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except InputError as error:
        log.warning("%s", error)
        return None


def _published(manifest: Manifest, points: tuple[Point, ...]) -> Kept:
    """Build the one checkpoint of a finished run: its scores are those of the whole held-out evaluation."""
    tuned = manifest.metrics.get("tuned") or {}
    step = manifest.training.steps if manifest.training else 0
    last = _at(points, step)
    figures = Point(
        step=step,
        time=last.time,
        train_loss=last.train_loss,
        train_accuracy=last.train_accuracy,
        valid_loss=_number(tuned.get("loss")),
        valid_mean_token_accuracy=_number(tuned.get("token_accuracy")),
        valid_accuracy=_number(tuned.get("reward_accuracy")),
    )
    return Kept(step, _seconds(manifest.created_at), figures, is_published=True)


def _in_work(folder: Path, points: tuple[Point, ...]) -> Iterator[Kept]:
    try:
        found = list(folder.iterdir())
    except OSError:
        return
    for path in found:
        if (name := _CHECKPOINT.fullmatch(path.name)) is None:
            continue
        step = int(name[1])
        try:
            created = int(path.stat().st_mtime)
        except OSError:  # the run keeps a newer one instead
            continue
        yield Kept(step, created, _at(points, step), is_published=False)


def _at(points: tuple[Point, ...], step: int) -> Point:
    """Return the figures of a step: its own, else the last training loss before it."""
    before = [point for point in points if point.step <= step]
    own = before[-1] if before and before[-1].step == step else Point(step, 0.0)
    trained = next((point for point in reversed(before) if point.train_loss is not None), own)
    return Point(**asdict(own) | {"train_loss": trained.train_loss, "train_accuracy": trained.train_accuracy})


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _seconds(time: str) -> int:
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except ValueError:
        return 0
