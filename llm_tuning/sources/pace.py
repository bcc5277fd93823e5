"""How far a fetch is: bytes, bytes a second, time left. Pure, but for the caller's clock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

WINDOW_SECONDS = 10.0
"""Over which the speed is averaged."""


@dataclass(frozen=True)
class Transfer:
    """Where a fetch is."""

    stage: str
    """What it does, in words: fetching, waiting for another process, waiting as the server asked."""
    done_bytes: int = 0
    """On this disk by now, those of earlier starts included."""
    total_bytes: int = 0
    """0 while it is not known."""
    bytes_per_second: float | None = None
    remaining_seconds: float | None = None
    waiting: str = ""
    """The `reasons.Passing` for which it waits at this moment."""


Watch = Callable[[Transfer], None]
"""Called a few times a second by the thread that called `fetch`; whatever it raises ends the fetch."""


def silent(now: Transfer) -> None:
    """Show nothing."""


@dataclass
class Meter:
    """Counts what several threads have fetched."""

    total: int = 0
    there: int = 0
    """Bytes that lie on this disk by now, those of earlier tries included."""
    moved: int = 0
    """Bytes that came over the network to this process."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int, *, moved: int) -> None:
        with self._lock:
            self.there += count
            self.moved += moved


class TransferPace:
    """Bytes a second over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, moved: int) -> float | None:
        """Take in that `moved` bytes have come until `now` (seconds); returns bytes a second, None at first."""
        self._seen.append((now, moved))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        seconds = now - began
        return (moved - first) / seconds if seconds > 0.5 and moved > first else None
