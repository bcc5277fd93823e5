"""Keys of TuningJobs that are to be looked at: each once, however often it was added, and by one worker at a time."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable

from tuning_operator.core.cache import Key

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 60.0


class WorkQueue:
    """`get` a key, look at it, then say `done`; what was added meanwhile comes again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._later: list[tuple[float, Key]] = []
        self._due: dict[Key, float] = {}
        """When a key is to be added: of several times the earliest."""
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: Key) -> None:
        """Have the key looked at as soon as a worker is free."""
        if key in self._busy:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Have the key looked at in `seconds`, unless something brings it earlier."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            if len(self._later) > 2 * len(self._due) + 32:  # most were overtaken: a week's ttl is set in every pass
                self._later = [(time, later) for later, time in self._due.items()]
                heapq.heapify(self._later)
            else:
                heapq.heappush(self._later, (due, key))
            self._wake.set()

    def retry(self, key: Key) -> float:
        """Have the key looked at after a failure, each time later; returns in how many seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds: float = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LAST_RETRY_SECONDS)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """The key was looked at with success."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The next key; nobody else gets it until `done`."""
        while True:
            wait = self._move_due()
            if self._ready:
                key = self._ready.popleft()
                self._queued.discard(key)
                self._busy.add(key)
                self._due.pop(key, None)
                return key
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """The key may be got again."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _move_due(self) -> float | None:
        """Add what is due; seconds until the next, or None."""
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, key = heapq.heappop(self._later)
            if self._due.get(key) == due:  # otherwise it was looked at since, or is due at another time
                del self._due[key]
                self.add(key)
        return self._later[0][0] - now if self._later else None
