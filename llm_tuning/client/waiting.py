"""What a person sees while an object is waited for: the progress bar on a terminal, a line a change otherwise."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol, TextIO, TypeVar

from llm_tuning.client.errors import WaitTimeout
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.progress.bar import Bar

Shown = TuningJobView | InferenceServiceView
V = TypeVar("V", bound=Shown)


class Watcher(Protocol):
    """Shows each version of an object."""

    def show(self, found: Shown) -> None: ...

    def close(self) -> None: ...


class BarWatcher:
    """The same bar as that of a run on one machine; what stalls the object stands above it, once."""

    def __init__(self, stream: TextIO) -> None:
        self._bar, self._stream = Bar(stream), stream
        self._last: Shown | None = None
        self._trouble = ""

    def show(self, found: Shown) -> None:
        self._bar.show(found.snapshot())
        if found.trouble and found.trouble != self._trouble:
            self._bar.say(found.trouble)
        self._trouble, self._last = found.trouble, found

    def close(self) -> None:
        if self._last is not None:
            self._bar.close(self._last.snapshot())


class LineWatcher:
    """A line at each milestone: for logs, pipes and notebooks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._said: tuple[object, ...] | None = None

    def show(self, found: Shown) -> None:
        if found.milestone != self._said:
            self._stream.write(f"{found}\n")
            self._stream.flush()
        self._said = found.milestone

    def close(self) -> None: ...


class NoWatcher:
    """Shows nothing."""

    def show(self, found: Shown) -> None: ...

    def close(self) -> None: ...


def watcher_for(progress: bool | TextIO) -> Watcher:
    """Return what shows `progress`: False nothing; True on standard error, a stream there."""
    if progress is False:
        return NoWatcher()
    stream = sys.stderr if progress is True else progress
    return BarWatcher(stream) if stream.isatty() else LineWatcher(stream)


async def wait_until(
    versions: AsyncGenerator[V, None],
    is_done: Callable[[V], bool],
    what: tuple[str, str],
    *,
    timeout_seconds: float | None,
    progress: bool | TextIO,
) -> V:
    """Show an object's versions and return the first that is done; `what` is the object and what it is to be.

    Raises WaitTimeout with the last one seen when time is up.
    """
    found, shown = None, watcher_for(progress)
    try:
        async with asyncio.timeout(timeout_seconds) as limit, aclosing(versions):
            async for found in versions:
                shown.show(found)
                if is_done(found):
                    return found
    except TimeoutError:
        if not limit.expired():
            raise
        where = found or f"{what[0]}: nothing was heard of it"
        raise WaitTimeout(f"not {what[1]} within {timeout_seconds:g} s; {where}") from None
    finally:
        shown.close()
    raise AssertionError("a watch continues until the object is done or deleted")
