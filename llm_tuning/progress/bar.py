"""The progress bar on a terminal: stage, bar, step, loss, tokens a second, time left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from llm_tuning.progress.snapshot import Snapshot

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A rich bar that is redrawn by the progress thread only; rich is imported with the first drawing."""

    interval_seconds = 0.2
    may_block = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rich: Progress | None = None
        self._task: TaskID | None = None

    def show(self, now: Snapshot) -> None:
        if self._rich is None:
            self._rich = self._start()
        if self._task is None:
            self._task = self._rich.add_task(now.stage, total=None, numbers="")
        self._rich.update(
            self._task,
            description=now.stage,
            total=(now.total_steps if now.bytes is None else now.total_bytes) or None,
            completed=now.step if now.bytes is None else now.bytes,
            numbers=_numbers(now),
        )
        self._rich.refresh()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)

    def close(self, last: Snapshot) -> None:
        if self._rich is not None:
            self.show(last)
            self._rich.stop()
            self._rich = None

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        rich = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            console=Console(file=self._stream),
            auto_refresh=False,
            expand=True,
            # Other output appears above the bar. Standard output only if it is the same terminal: a pipe keeps its own.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
        rich.start()
        return rich


def _numbers(now: Snapshot) -> str:
    parts = [f"{now.step}/{now.total_steps}"] if now.total_steps else []
    if now.bytes is not None:
        parts = [fetched(now)]
    if now.loss is not None:
        parts.append(f"loss {now.loss:.4g}")
    if now.tokens_per_second is not None:
        parts.append(f"{now.tokens_per_second:,.0f} tokens/s")
    if now.remaining_seconds is not None and not now.done:
        parts.append(f"{clock(now.remaining_seconds)} left")
    return "  ".join(parts)


def fetched(now: Snapshot) -> str:
    """Format what a fetch has: `1.2 of 3.4 GB  85 MB/s`."""
    size, unit = next((each for each in ((1e9, "GB"), (1e6, "MB")) if now.total_bytes >= each[0]), (1e3, "kB"))
    of = f" of {now.total_bytes / size:.1f}" if now.total_bytes else ""
    speed = f"  {now.bytes_per_second / 1e6:,.1f} MB/s" if now.bytes_per_second else ""
    return f"{(now.bytes or 0) / size:.1f}{of} {unit}{speed}"


def clock(seconds: float) -> str:
    """Format a time as `4:07` or `2:04:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
