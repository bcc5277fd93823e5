"""What a person sees while an object is waited for: the progress bar on a terminal, a line a change otherwise."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.progress.bar import Bar

Shown = TuningJobView | InferenceServiceView


class Watcher(Protocol):
    """Is shown each version of an object."""

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
    """`progress` False shows nothing; True shows it on standard error, a stream there."""
    if progress is False:
        return NoWatcher()
    stream = sys.stderr if progress is True else progress
    return BarWatcher(stream) if stream.isatty() else LineWatcher(stream)
