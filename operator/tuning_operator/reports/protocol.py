"""A POST of the Kubeflow Trainer status protocol as the Progress of a TuningJob.

    {"trainerStatus": {"lastUpdatedTime": RFC 3339, "progressPercentage": 0..100, "estimatedRemainingSeconds": n,
                       "metrics": [{"name": "loss", "value": "2.1"}, ...]}}

Only the metrics named here are kept: a status is no place for what else a trainer may send. A number that is not
finite is left out, for a loss that became NaN must not hide how far the run is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from llm_tuning.api.tuning_job import Progress
from llm_tuning.core.figures import (
    DATASET_REVISION,
    MODEL_REVISION,
    ON_THE_WIRE,
    WAITING_MESSAGE,
    WAITING_REASON,
)
from llm_tuning.errors import InputError, Problem
from tuning_operator.pods.trouble import Reported, Trouble

MAX_METRICS = 200
"""About ten are sent."""
MAX_INTEGER = 2**31 - 1
"""Steps and seconds beyond it are mistakes."""
RANGES: Mapping[str, tuple[float, float]] = {
    "step": (0, MAX_INTEGER),
    "total_steps": (0, MAX_INTEGER),
    "epoch": (0, 1e9),
    "loss": (-1e15, 1e15),
    "tokens_per_second": (0, 1e12),
    "bytes": (0, 2**53),
    "total_bytes": (0, 2**53),
    "bytes_per_second": (0, 1e15),
}
"""Fields of Progress that come as metrics, kept while they are between these; a loss beyond has diverged as one that is
NaN."""
_FIELDS = {name: field for field, name in ON_THE_WIRE.items()}

_READ: Mapping[str, Callable[[str], float]] = {
    "step": lambda text: int(float(text)),
    "total_steps": lambda text: int(float(text)),
    "bytes": lambda text: int(float(text)),
    "total_bytes": lambda text: int(float(text)),
    "loss": lambda text: round(float(text), 4),  # as a table shows it, and more than a batch's loss means
}
_NUMBER = re.compile(
    r"[+-]?((\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[+-]?\d{1,4})?|nan|inf|infinity)", re.IGNORECASE | re.ASCII
)
_WORDS: Mapping[str, re.Pattern[str]] = {
    MODEL_REVISION: re.compile(r"[A-Za-z0-9._-]{1,128}"),
    DATASET_REVISION: re.compile(r"[A-Za-z0-9._-]{1,128}"),
    WAITING_REASON: re.compile(r"[A-Z][A-Za-z]{1,63}"),
    WAITING_MESSAGE: re.compile(r"[^\x00-\x1f\x7f]{0,1024}"),
}
"""Texts that are kept, where they look as they have to."""


def parse_reported(body: bytes, now: datetime) -> Reported:
    """Parse all that `body` reports; raises InputError with every problem found."""
    progress = parse_status(body, now)
    entries = _mapping(_json(body), "trainerStatus").get("metrics") or ()
    said = {str(entry["name"]): str(entry["value"]) for entry in entries}
    words = {name: said[name] for name, pattern in _WORDS.items() if name in said and pattern.fullmatch(said[name])}
    reason = words.get(WAITING_REASON)
    return Reported(
        progress,
        revisions={
            group: words[name]
            for group, name in (("model", MODEL_REVISION), ("dataset", DATASET_REVISION))
            if name in words
        },
        waiting=Trouble(reason, words.get(WAITING_MESSAGE, "")) if reason is not None else None,
    )


def parse_status(body: bytes, now: datetime) -> Progress:
    """Parse the Progress in `body`; raises InputError with every problem found."""
    status = _mapping(_json(body), "trainerStatus")
    problems: list[Problem] = []
    percent = _integer(status, "progressPercentage", problems, maximum=100)
    remaining = _integer(status, "estimatedRemainingSeconds", problems)
    time = _time(status, "lastUpdatedTime", problems, now)
    metrics = _metrics(status.get("metrics"), problems)
    if percent is None and not problems:
        problems.append(Problem("trainerStatus.progressPercentage", "is required"))
    if problems:
        raise InputError(problems)
    return Progress(
        **metrics,
        percent=percent or 0,
        remaining_seconds=None if remaining == 0 and percent != 100 else remaining,  # not yet done: unknown
        last_update_time=time.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _json(body: bytes) -> object:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # the message of json would quote the body
        raise InputError(Problem("", "the body is not JSON")) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _mapping(body: object, field: str) -> Mapping[str, Any]:
    status = body.get(field) if isinstance(body, dict) else None
    if not isinstance(status, dict):
        raise InputError(Problem(field, "must be a mapping", 'send {"trainerStatus": {...}}'))
    return status


def _integer(status: Mapping[str, Any], field: str, problems: list[Problem], maximum: int = MAX_INTEGER) -> int | None:
    value = status.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        problems.append(Problem(f"trainerStatus.{field}", f"must be a whole number from 0 to {maximum}"))
        return None
    return value


def _time(status: Mapping[str, Any], field: str, problems: list[Problem], now: datetime) -> datetime:
    """Read the sender's time, but never one in the future: its clock may be ahead of the operator's."""
    value = status.get(field)
    if value is None:
        return now
    try:
        time = datetime.fromisoformat(value)
        if time.tzinfo is None:
            raise ValueError(value)
        return min(time.astimezone(UTC), now)
    except (TypeError, ValueError, OverflowError):
        problems.append(Problem(f"trainerStatus.{field}", "must be a time as in 2026-01-31T12:00:00Z"))
        return now


def _metrics(entries: object, problems: list[Problem]) -> dict[str, Any]:
    """Read the known metrics that are within their range, by their fields of Progress."""
    where = "trainerStatus.metrics"
    if entries is None:
        return {}
    if not isinstance(entries, list) or len(entries) > MAX_METRICS:
        problems.append(Problem(where, f"must be a list of at most {MAX_METRICS}"))
        return {}
    found: dict[str, Any] = {}
    for index, entry in enumerate(entries):
        name, value = (entry.get("name"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(value, str):
            problems.append(Problem(f"{where}[{index}]", 'must be {"name": text, "value": text}'))
        elif (field := _FIELDS.get(name)) is not None:
            low, high = RANGES[field]
            if not _NUMBER.fullmatch(value):
                problems.append(Problem(f"{where}[{index}].value", f"must be a number: it is the {name}"))
            elif low <= float(value) <= high:  # false for NaN
                found[field] = _READ.get(field, float)(value)
    return found
