"""A clock that stands while this process does: after a freeze nobody else is to be found late. Torch-free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_STEP_SECONDS = 10.0
"""Who looks at the clock looks each second; a pause that is longer than this was none of waiting."""


class AwakeClock:
    """Seconds in which this process ran, as those who look at it find; none are counted of a snapshot or a freezer."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._last = monotonic()
        self._awake = 0.0

    def now(self) -> float:
        """Return the seconds since the clock was made; a longer time without a look counts as the longest step."""
        with self._lock:
            moment = self._monotonic()
            self._awake += min(moment - self._last, LONGEST_STEP_SECONDS)
            self._last = moment
            return self._awake
