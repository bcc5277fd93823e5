"""The machine's cores: for one test alone among the workers of one pytest, and what processes take of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold_cores(session: str, *, alone: bool) -> Iterator[None]:
    """Share the cores with other workers' tests, or wait until those have ended and keep new ones waiting."""
    folder = _folder(session)
    folder.mkdir(exist_ok=True)
    with (folder / "door").open("w") as door, (folder / "cores").open("w") as cores:
        fcntl.flock(door, fcntl.LOCK_EX)  # who waits for the cores lets nobody in before
        fcntl.flock(cores, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


def forget(session: str) -> None:
    """Remove what the workers of a session shared."""
    shutil.rmtree(_folder(session), ignore_errors=True)


def _folder(session: str) -> Path:
    return Path(tempfile.gettempdir()) / f"llm-tuning-tests-{session}"


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes."""
    seconds = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds
