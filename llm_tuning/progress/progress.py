"""The thread between a run and its displays."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from llm_tuning.progress.bar import Bar
from llm_tuning.progress.endpoint import StatusEndpoint
from llm_tuning.progress.lines import JsonLines
from llm_tuning.progress.snapshot import Display, Snapshot

CLOSE_SECONDS = 2.5
"""How long the end of a run waits for a display that blocks."""


class Progress:
    """Takes the newest snapshot and has a thread show it; newest value wins."""

    def __init__(self, displays: Sequence[Display] | None = None) -> None:
        """Take `displays`, by default those that fit this process: see `fitting_displays`."""
        self._displays = fitting_displays() if displays is None else list(displays)
        self._latest: Snapshot | None = None
        self._closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def update(self, now: Snapshot) -> None:
        """Leave `now` to be shown when it is due; the first step of a process is shown at once. Never blocks."""
        before, self._latest = self._latest, now
        if before is None:
            self._thread.start()
        elif now.stepping and not before.stepping:
            self._wake.set()

    def close(self, last: Snapshot) -> None:
        """Show `last` and end, waiting at most CLOSE_SECONDS for a display that blocks. Once is enough."""
        if self._closed or self._latest is None:
            return
        self._latest = last
        self._closed = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        for display in self._displays:
            if not display.may_block:
                display.close(last)

    def _run(self) -> None:
        due = dict.fromkeys(self._displays, 0.0)
        stepping = False
        while not self._closed:
            latest = self._latest or Snapshot()
            first_step = latest.stepping and not stepping
            stepping = latest.stepping
            for display in self._displays:
                if first_step or time.monotonic() >= due[display]:
                    display.show(latest)
                    due[display] = time.monotonic() + display.interval_seconds
            self._wake.wait(max(0.0, min(due.values()) - time.monotonic()) if due else None)
            self._wake.clear()
        for display in self._displays:
            if display.may_block:
                display.close(self._latest or Snapshot())


def fitting_displays(stream: TextIO | None = None) -> list[Display]:
    """Return a bar if `stream` (standard error) is a terminal, else JSON lines; and the status endpoint if any."""
    stream = sys.stderr if stream is None else stream
    on_terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    displays: list[Display] = [Bar(stream) if on_terminal else JsonLines(stream)]
    endpoint = StatusEndpoint.from_environment()
    return displays if endpoint is None else [*displays, endpoint]
