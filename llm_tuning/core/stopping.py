"""SIGTERM becomes a flag that the run checks between steps.

Installed before the heavy imports, since the trainer may be PID 1 in its container, where an unhandled SIGTERM is
ignored, and a preempted pod has only its grace period. SIGINT (Ctrl-C) does the same the first time and
interrupts at once the second time.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llm_tuning.errors import TryAgain

_requested = threading.Event()


def stop_requested() -> bool:
    """Return whether this process was asked to stop."""
    return _requested.is_set()


def raise_if_stopped(where: str) -> None:
    """Raise TryAgain if this process was asked to stop. `where` is what is being left, for the message."""
    if _requested.is_set():
        raise TryAgain("Stopped", f"stopped {where} on request; the same command with the same model_id resumes")


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGINT and _requested.is_set():
        raise KeyboardInterrupt
    _requested.set()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into the flag while the block runs; outside the main thread signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()
