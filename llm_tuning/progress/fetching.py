"""How a fetch is shown to a person: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from llm_tuning.progress.bar import clock
from llm_tuning.progress.lines import LINE_SECONDS
from llm_tuning.sources.pace import Transfer, Watch

log = logging.getLogger(__name__)


@contextmanager
def fetch_shown(stream: TextIO | None = None) -> Iterator[Watch]:
    """Yield what `fetch` reports to. Nothing is shown of what is there already."""
    stream = sys.stderr if stream is None else stream
    if not (stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"):
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=stream), expand=True, transient=True) as bar:
        task = bar.add_task("asking", total=None)
        yield lambda now: bar.update(
            task, description=now.stage, completed=now.done_bytes, total=now.total_bytes or None
        )


class _Lines:
    """A line in the log every LINE_SECONDS, the first after as long."""

    def __init__(self) -> None:
        self._due = time.monotonic() + LINE_SECONDS

    def show(self, now: Transfer) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_SECONDS
            log.info("%s", line(now))


def line(now: Transfer) -> str:
    """Write `fetching: 1.20 of 3.40 GB, 85 MB/s, 0:26 left`."""
    of = f" of {now.total_bytes / 1e9:,.2f}" if now.total_bytes else ""
    parts = [f"{now.stage}: {now.done_bytes / 1e9:,.2f}{of} GB"]
    if now.bytes_per_second is not None:
        parts.append(f"{now.bytes_per_second / 1e6:,.0f} MB/s")
    if now.remaining_seconds is not None:
        parts.append(f"{clock(now.remaining_seconds)} left")
    return ", ".join(parts)
