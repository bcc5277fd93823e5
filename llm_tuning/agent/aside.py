"""Blocking work in threads of their own: a volume that hangs may hold one for ever, and then it is left behind.

The threads are daemons. Those of the event loop's executor are joined when the process ends, and a pod whose read hangs
would then be killed only at the end of its grace period.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

MOST_AT_ONCE = 3
"""Work in hand; each may take 300 MB for a moment, and the agent has 1 GiB. Where so much hangs, it is the volume."""
BRIEFLY_SECONDS = 0.05
"""How long is waited for work where other work hangs already."""


class StillRunning(Exception):  # noqa: N818 - a state
    """The work is not done yet. `seconds` is for how long; the next call with its key continues to wait for it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"it has not ended within {seconds:.0f} s")


@dataclass
class _Work:
    future: asyncio.Future[Any]
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Aside:
    """Work in hand, by its key; there is one at a time for each."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    async def run(self, key: str, call: Callable[[], T], *, seconds: float) -> T:
        """Return or raise what `call` does; raises StillRunning after `seconds`, or soon where other work hangs."""
        others = [work for name, work in self._works.items() if name != key and not work.future.done()]
        work = self._works.get(key)
        if work is None:
            if len(others) >= MOST_AT_ONCE:
                raise StillRunning(max(work.seconds for work in others))
            work = self._works[key] = _start(key, call)
        await asyncio.wait({work.future}, timeout=BRIEFLY_SECONDS if others else seconds)
        if not work.future.done():
            raise StillRunning(work.seconds)
        self._works.pop(key, None)
        result: T = work.future.result()
        return result

    def forget(self, key: str) -> None:
        """Drop the work under `key`; its result is of no interest any more."""
        self._works.pop(key, None)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what `call` does, without an event loop; after `seconds` raise StillRunning and let it run."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as raised:
            errors.append(raised)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not outcome:
        raise StillRunning(seconds)
    return outcome[0]


def _start(key: str, call: Callable[[], Any]) -> _Work:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    future.add_done_callback(lambda done: done.exception())  # retrieved, also after `forget`

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error is not None else future.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=key, daemon=True).start()
    return _Work(future)
