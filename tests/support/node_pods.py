"""Pods that train one run together, as processes here: what tests see of them and wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_tuning.models.metrics_file import read_metrics
from tests.support.pod_process import Claim, Ended

WORKER = "llm_tuning.run.rank"
SLOW = 400
RUNS, STANDS = 0.1, 0.9
"""Seconds of each second: ten times slower."""


def descendants(pid: int) -> list[int]:
    """Process ids of the ranks that a pod's program has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = [int(child) for child in found]
    for task in Path(f"/proc/{pid}/task").iterdir():
        own += [int(child) for child in (task / "children").read_text().split()]
    return sorted({child for child in own if WORKER in Path(f"/proc/{child}/cmdline").read_text()})


def steps_done(claim: Claim) -> int:
    path = claim.models / ".work" / "m" / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def wait_for(what: str, reached: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 400
    while not reached():
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def ends(pods: list[Claim], processes: list[subprocess.Popen[str]]) -> list[Ended]:
    return [pod.end(process, seconds=SLOW) for pod, process in zip(pods, processes, strict=True)]


@contextmanager
def ten_times_slower(pid: int) -> Iterator[None]:
    """A process that stands for nine tenths of the time, as one that its machine gives no more."""
    over = threading.Event()

    def slow_down() -> None:
        while not over.wait(RUNS):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(STANDS)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
