"""A bash as a reader of the documentation has it: what one command changes, the next one finds."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Typed:
    """How a command ended, and what it said."""

    code: int
    output: str


@dataclass(frozen=True)
class _Window:
    """A command that goes on until Ctrl-C."""

    command: str
    group: int
    output: Path


class Terminal:
    """Commands run one after the other in `folder`; what they say is kept in `notes`, a file each."""

    def __init__(self, folder: Path, notes: Path, environment: dict[str, str], *, within: Sequence[str] = ()) -> None:
        notes.mkdir(parents=True)
        self._notes, self._count, self._windows = notes, 0, list[_Window]()
        self._bash = subprocess.Popen(
            [*within, "bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def type(self, command: str, *, seconds: float) -> Typed:
        """Run a command to its end; raises TimeoutError."""
        output = self._next_note()
        code = self._ask(f"{{ {command}\n}} >{output} 2>&1 </dev/null; echo $?", command, seconds)
        return Typed(int(code), output.read_text(errors="replace"))

    def open_window(self, command: str, *, says: str, seconds: float) -> None:
        """Start a command that does not end by itself, and wait until its output matches `says`.

        Raises TimeoutError, and ChildProcessError if it ends before.
        """
        output = self._next_note()
        # With job control it has a process group of its own, and is not deaf to Ctrl-C.
        line = f"set -m; {{ {command}\n}} >{output} 2>&1 </dev/null & echo $!; set +m"
        window = _Window(command, int(self._ask(line, command, seconds)), output)
        self._windows.append(window)
        deadline = time.monotonic() + seconds
        while not re.search(says, output.read_text(errors="replace") if output.exists() else "", re.MULTILINE):
            if not self._runs(window):
                raise ChildProcessError(f"ended by itself: {command}\n{output.read_text(errors='replace')}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {says!r} within {seconds:.0f} s: {command}\n{output.read_text()}")
            time.sleep(0.1)

    def close_windows(self) -> None:
        """Ctrl-C in each; raises ChildProcessError for one that has ended before.

        What is deaf to it is killed: MLflow's helpers are, when it comes while they start.
        """
        while self._windows:
            window = self._windows.pop()
            if not self._runs(window):
                raise ChildProcessError(f"ended by itself: {window.command}\n{window.output.read_text()}")
            os.killpg(window.group, signal.SIGINT)
            deadline = time.monotonic() + STOP_SECONDS
            while self._runs(window) and time.monotonic() < deadline:
                time.sleep(0.1)
            with suppress(ProcessLookupError):
                os.killpg(window.group, signal.SIGKILL)

    def close(self) -> None:
        """End the shell and all that runs in it, whatever it is at."""
        for group in (*(window.group for window in self._windows), self._bash.pid):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._bash.communicate()

    def _next_note(self) -> Path:
        self._count += 1
        return self._notes / f"{self._count:03}.txt"

    def _ask(self, line: str, command: str, seconds: float) -> str:
        """The one line that bash answers with."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{line}\n")
        self._bash.stdin.flush()
        if not select.select([self._bash.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"not over within {seconds:.0f} s: {command}")
        answer = self._bash.stdout.readline()
        if not answer:
            raise ChildProcessError(f"the shell ended at: {command}")
        return answer

    def _runs(self, window: _Window) -> bool:
        """bash reaps what has ended when it is asked for its jobs."""
        return (
            self._ask(f"jobs >/dev/null; kill -0 -- -{window.group} 2>/dev/null; echo $?", window.command, 10) == "0\n"
        )
