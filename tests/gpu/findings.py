"""What a check finds: one line of `findings.jsonl`, one row of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSED, FAILED, SHOWN, NOT_HERE = "passed", "failed", "shown", "not here"
RESULTS = (PASSED, FAILED, SHOWN, NOT_HERE)
"""`shown`: a figure without a limit. `not here`: what this machine cannot tell; it counts neither way and is listed."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was expected in words, what was seen, and what follows from it."""

    name: str
    expected: str
    seen: str
    result: str

    @classmethod
    def of(cls, name: str, *, expected: str, seen: object, passed: bool) -> Finding:
        return cls(name, expected, _text(seen), PASSED if passed else FAILED)


def below(name: str, seen: float, limit: float, unit: str = "") -> Finding:
    """Expect a number below a limit; not a number is a failure."""
    return Finding.of(name, expected=_text(f"< {limit:g} {unit}"), seen=f"{seen:.3g} {unit}", passed=seen < limit)


def within(name: str, seen: float, low: float, high: float, unit: str = "") -> Finding:
    """Expect a number in a range, its ends included; not a number is a failure."""
    expected = f"{low:g} to {high:g} {unit}"
    return Finding.of(name, expected=_text(expected), seen=f"{seen:.4g} {unit}", passed=low <= seen <= high)


def same(name: str, seen: object, expected: object) -> Finding:
    """Expect exactly this."""
    return Finding.of(name, expected=_text(expected), seen=seen, passed=seen == expected)


def shown(name: str, seen: object) -> Finding:
    """Report a figure that nothing is expected of."""
    return Finding(name, "-", _text(seen), SHOWN)


def not_here(name: str, why: str) -> Finding:
    """Report what this machine cannot tell, and why."""
    return Finding(name, "-", _text(why), NOT_HERE)


def _text(value: object) -> str:
    return " ".join(str(value).split())


@dataclass(frozen=True)
class Place:
    """Where a check runs. `ends` is the moment (monotonic seconds) at which it will be stopped."""

    device: str
    """"cpu" or "cuda:0"."""
    scratch: Path
    """A folder for files, empty at the start and shared by the checks of a run."""
    ends: float

    @property
    def cuda(self) -> bool:
        return self.device != "cpu"

    @property
    def left(self) -> float:
        """Seconds until the check is stopped."""
        return self.ends - time.monotonic()

    def choose(self, *, cuda: Any, cpu: Any) -> Any:
        """Return the size for a GPU, or the smaller one with which the CPU rehearses it."""
        return cuda if self.cuda else cpu


CheckFunction = Callable[[Place], Iterator[Finding]]
