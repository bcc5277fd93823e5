"""How often and how long something is tried again, and what is shown meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.sources.claim import BEAT_SECONDS, STALE_SECONDS
from llm_tuning.sources.pace import Meter, Transfer, TransferPace, Watch
from llm_tuning.sources.reasons import SourceBusy

T = TypeVar("T")
_LONGEST_BACKOFF = 30.0
_LOOK_SECONDS = 0.5


class Ended(Exception):  # noqa: N818 - no fault
    """The fetch as a whole has ended; whoever works for it leaves things as they are."""


@dataclass(frozen=True)
class Limits:
    """How long and how much at once."""

    tries: int = 6
    """In a row without a new byte; then SourceBusy is raised, and a later start continues."""
    backoff_seconds: float = 2.0
    """After the first try in vain, doubled each time up to half a minute; a server that says how long is obeyed."""
    most_wait_seconds: float = 3600.0
    """A server that asks for more is left until a later start."""
    connections: int = 4
    beat_seconds: float = BEAT_SECONDS
    stale_seconds: float = STALE_SECONDS


class Patience:
    """One fetch's: shared by its threads, of which the main one shows and stops."""

    def __init__(self, limits: Limits, meter: Meter, watch: Watch) -> None:
        self.limits = limits
        self.meter, self.watch = meter, watch
        self._pace = TransferPace()
        self._ended = threading.Event()
        self._waits: dict[int, tuple[str, float]] = {}

    def ended(self) -> bool:
        """Return whether every thread has to leave what it does."""
        return self._ended.is_set()

    def end(self) -> None:
        """Have every thread leave what it does."""
        self._ended.set()

    def run(self, action: Callable[[], T]) -> T:
        """Return what `action` does, tried again while it raises SourceBusy; raises the last, or Ended."""
        failures = 0
        while True:
            moved = self.meter.moved
            try:
                return action()
            except SourceBusy as busy:
                failures = 1 if self.meter.moved > moved else failures + 1
                backoff = min(self.limits.backoff_seconds * 2 ** (failures - 1), _LONGEST_BACKOFF)
                wait = backoff if busy.wait_seconds is None else busy.wait_seconds
                if failures >= self.limits.tries or wait > self.limits.most_wait_seconds:
                    raise
                self._pause(busy.reason, wait)

    def show(self) -> None:
        """Tell the watcher where the fetch is."""
        now, meter = time.monotonic(), self.meter
        speed = self._pace.at(now, meter.moved)
        left = meter.total - meter.there
        stage, waiting = "fetching", ""
        if not speed and (waits := self._waits.copy()):
            waiting, until = min(waits.values(), key=lambda wait: wait[1])
            stage = f"waiting {max(1, round(until - now))} s ({waiting})"
        remaining = left / speed if speed and left > 0 else None
        self.watch(Transfer(stage, meter.there, meter.total, speed, remaining, waiting))

    def _pause(self, reason: str, seconds: float) -> None:
        """Wait, as the server asked or as long as it seems right; raises Ended, or TryAgain in the main thread."""
        me, until = threading.get_ident(), time.monotonic() + seconds
        self._waits[me] = (reason, until)
        try:
            while (left := until - time.monotonic()) > 0:
                if threading.current_thread() is threading.main_thread():
                    raise_if_stopped("while it waited for the source")
                    self.show()
                if self._ended.wait(min(left, _LOOK_SECONDS)):
                    raise Ended
        finally:
            del self._waits[me]
