"""How much a key may ask for: requests a minute, answers at once, bytes uploaded a day.

Each replica counts for itself, in memory: with two of them a key has up to twice as much, and a restart forgets what
was used. That keeps a busy script from crowding out the others; it is no accounting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llm_tuning.core.text import shown_bytes
from llm_tuning.openai_api.errors import ApiError

MINUTE = 60.0
DAY = 86_400.0


class Bucket:
    """An allowance that is full at first and refills evenly, in `seconds` from empty to full."""

    def __init__(self, size: int, seconds: float, clock: Callable[[], float]) -> None:
        self.size = size
        self._rate, self._clock = size / seconds, clock
        self._left, self._at = float(size), clock()

    def wait_for(self, amount: float) -> float:
        """Return the seconds until there will be so much; 0 where it is there."""
        return max(0.0, amount - self.left()) / self._rate

    def take(self, amount: float) -> float:
        """Take `amount`; returns 0, or the seconds until there will be so much, with nothing taken."""
        wait = self.wait_for(amount)
        if not wait:
            self._left -= amount
        return wait

    def left(self) -> float:
        """Return how much there is."""
        now = self._clock()
        self._left = min(self.size, self._left + (now - self._at) * self._rate)
        self._at = now
        return self._left

    def full_in(self) -> float:
        """Return the seconds until nothing is missing."""
        return (self.size - self.left()) / self._rate


@dataclass(frozen=True)
class KeyLimits:
    """What each key has; 0 is no limit."""

    requests_per_minute: int = 600
    parallel_answers: int = 256
    upload_bytes_per_day: int = 0


class Allowance:
    """What one key has used."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._answers = limits, 0
        self._requests = Bucket(limits.requests_per_minute, MINUTE, clock) if limits.requests_per_minute else None
        self._bytes = Bucket(limits.upload_bytes_per_day, DAY, clock) if limits.upload_bytes_per_day else None

    def take_request(self) -> dict[str, str]:
        """Count a request; returns the headers that tell what is left, raises ApiError (429)."""
        if self._requests is None:
            return {}
        wait = self._requests.take(1)
        headers = {
            "x-ratelimit-limit-requests": str(self._requests.size),
            "x-ratelimit-remaining-requests": str(int(self._requests.left())),
            "x-ratelimit-reset-requests": duration(self._requests.full_in()),
        }
        if wait:
            limit = f"This key may send {self._requests.size} requests a minute; try again in {duration(wait)}."
            raise _refused(limit, headers | _retry(wait))
        return headers

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Hold a place among the answers that are being written; raises ApiError (429)."""
        most = self._limits.parallel_answers
        if most and self._answers >= most:
            raise _refused(f"This key has {most} answers being written, as many as it may at once.", _retry(1))
        self._answers += 1
        try:
            yield
        finally:
            self._answers -= 1

    def check_upload(self, size: int) -> None:
        """Raise ApiError (429) where there is no room for so many bytes: for what says its size before it comes."""
        if self._bytes is not None:
            self._refuse_upload(self._bytes.wait_for(size))

    def take_upload(self, size: int) -> None:
        """Count bytes as they arrive; raises ApiError (429)."""
        if self._bytes is not None:
            self._refuse_upload(self._bytes.take(size))

    def _refuse_upload(self, wait: float) -> None:
        if wait:
            limit = f"This key may upload {shown_bytes(self._limits.upload_bytes_per_day)} a day"
            text = f"{limit}, and this would be more; try again in {duration(wait)}."
            raise _refused(text, _retry(wait) | {"x-should-retry": "false"})  # for hours: SDKs need not try


class Allowances:
    """One for each key, by its name."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._of: dict[str, Allowance] = {}

    def of(self, key: str) -> Allowance:
        """Return the allowance of a key."""
        if key not in self._of:
            self._of[key] = Allowance(self._limits, self._clock)
        return self._of[key]


def duration(seconds: float) -> str:
    """Write a time as OpenAI's headers do: `120ms`, `1s`, `6m0s`, `2h3m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


def _retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}


def _refused(message: str, headers: dict[str, str]) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", headers=headers)
