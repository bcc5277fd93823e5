"""A work queue in client-go's manner: each key once, however often it was added, and with one worker at a time."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from tuning_operator.core.cache import Key

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 60.0


class QueueMetrics(Protocol):
    """What is measured of a queue; times in seconds."""

    def added(self) -> None: ...
    def retried(self) -> None: ...
    def got(self, seconds: float) -> None: ...
    def done(self, seconds: float) -> None: ...


class WorkQueue:
    """`get` a key, reconcile it, then call `done`; what was added meanwhile comes again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, metrics: QueueMetrics | None = None) -> None:
        self._clock, self._metrics = clock, metrics
        self._ready: deque[Key] = deque()
        self._queued: dict[Key, float] = {}
        """When each key that waits was added."""
        self.busy_since: dict[Key, float] = {}
        """When each key that a worker has was taken, on the queue's clock."""
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._later: list[tuple[float, Key]] = []
        self._due: dict[Key, float] = {}
        """When a key is to be added: of several times the earliest."""
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: Key) -> None:
        """Enqueue `key` once: while it waits, another `add` changes nothing."""
        if key in self.busy_since:
            self._again.add(key)
        elif key not in self._queued:
            self._queued[key] = self._clock()
            self._ready.append(key)
            self._wake.set()
            if self._metrics is not None:
                self._metrics.added()

    def add_after(self, key: Key, seconds: float) -> None:
        """Enqueue `key` in `seconds`, unless something else does so earlier."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            if (
                len(self._later) > 2 * len(self._due) + 32
            ):  # most were overtaken: a week's ttl is set in every reconcile
                self._later = [(time, later) for later, time in self._due.items()]
                heapq.heapify(self._later)
            else:
                heapq.heappush(self._later, (due, key))
            self._wake.set()

    def retry(self, key: Key) -> float:
        """Enqueue `key` after a failure, with back-off; returns in how many seconds."""
        if self._metrics is not None:
            self._metrics.retried()
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds: float = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LAST_RETRY_SECONDS)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """Reset the back-off of `key`: it was reconciled."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Wait for the next key; no other worker gets it until `done`."""
        while True:
            wait = self._move_due()
            if self._ready:
                key = self._ready.popleft()
                added = self._queued.pop(key)
                self.busy_since[key] = self._clock()
                if self._metrics is not None:
                    self._metrics.got(self.busy_since[key] - added)
                self._due.pop(key, None)
                return key
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """Release `key`: it may be taken again."""
        since = self.busy_since.pop(key, None)
        if since is not None and self._metrics is not None:
            self._metrics.done(self._clock() - since)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _move_due(self) -> float | None:
        """Enqueue what is due; returns the seconds until the next, or None."""
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, key = heapq.heappop(self._later)
            if self._due.get(key) == due:  # otherwise it was reconciled since, or is due at another time
                del self._due[key]
                self.add(key)
        return self._later[0][0] - now if self._later else None
