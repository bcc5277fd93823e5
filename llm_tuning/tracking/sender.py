"""The process that carries a run to MLflow: `sender.main()` with the job in the work directory and orders on stdin.

    stdin   first line: the tracking URI; then one JSON order a line: {"order": "try"} or {"order": "finish", ...};
            its end without a finish means that the run was killed
    reads   work/tracking.json (the job), work/metrics.jsonl (followed)
    writes  work/mlflow.json (SenderState)

It may fail, hang or be killed at any point: the run never waits for it longer than its budget.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_tuning.models.layout import METRICS
from llm_tuning.tracking.mlflow_run import Job, MlflowRun
from llm_tuning.tracking.outbox import JOB_FILE, SenderState, Tail, read_state, write_state
from llm_tuning.tracking.stores import describe_fault, redact, resolve_store

POLL_SECONDS = 5.0
"""Between two reads of metrics.jsonl: a batch costs 8 ms and 0.1 ms a value, so one should carry many steps."""
LONGEST_PAUSE_SECONDS = 30.0
"""Between attempts at a server that does not answer; the pause doubles from one second up to this."""
REQUEST_SECONDS = 10
"""Time-out of one HTTP request while training, when nothing waits for it."""
LAST_TRIES_SERVER = 2
"""Attempts at the end, half a second apart, for a server that fails at once (a closed port)."""
LAST_TRIES_DISK = 8
"""The same for a store on this disk, where another run may hold the lock for a moment."""


@dataclass(frozen=True)
class Finish:
    """The last order: how the run ended, what became known of it, and the folder whose small files become artifacts."""

    status: str
    artifacts: Path | None
    seconds: float
    tags: Mapping[str, str] = field(default_factory=dict)


class Sender:
    """Sends what is new in metrics.jsonl, keeps the state on disk, and never raises for what a store does."""

    def __init__(self, job: Job, work_dir: Path, save: Callable[[SenderState], None], state: SenderState) -> None:
        self._job = job
        self._tail = Tail(work_dir / METRICS)
        self._save = save
        self.state = state
        self._run: MlflowRun | None = None

    def attempt(self) -> bool:
        """Open or continue the run if need be and send all new metrics; False with `state.fault` set if it failed."""
        try:
            if self._run is None:
                self._run, state = MlflowRun.open(self._job, self.state)
                self._update(state)
            for lines in self._tail.batches(self.state):
                self._run.log(lines)
                self._update(self.state.after(lines))
                self._tail.advance()
        except Exception as error:
            # Whatever the client library raises, the answer is the same: keep the metrics, say why, try later.
            self._update(replace(self.state, fault=self._message(error), tries=self.state.tries + 1))
            return False
        self._update(replace(self.state, fault=None, tries=self.state.tries + 1))
        return True

    def finish(self, finish: Finish) -> None:
        """Send the rest, set the status, then upload the files: the most important first, should time run out."""
        deadline = time.monotonic() + finish.seconds
        ended = round(time.time() * 1000)
        for _ in range(LAST_TRIES_DISK if self._job.store.is_local else LAST_TRIES_SERVER):
            seconds_left = deadline - time.monotonic()
            if seconds_left < 0:
                return
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, min(REQUEST_SECONDS, int(seconds_left))))
            if self.attempt() and self._close_run(finish, ended):
                self._update(replace(self.state, finished=True))
                return
            time.sleep(0.5)

    def _close_run(self, finish: Finish, ended: int) -> bool:
        assert self._run is not None
        try:
            self._run.close(finish.status, ended)
            self._run.tag(finish.tags)
            if finish.artifacts is not None:
                self._run.upload(finish.artifacts)
        except Exception as error:
            self._update(replace(self.state, fault=self._message(error)))
            return False
        return True

    def _message(self, error: Exception) -> str:
        text = describe_fault(error).replace(self._job.store.uri, self._job.store.shown)
        return " ".join(redact(text).split())[:300]

    def _update(self, state: SenderState) -> None:
        self.state = state
        self._save(state)


def follow(sender: Sender, orders: queue.Queue[dict[str, Any] | None]) -> None:
    """Send every few seconds, at once when asked, until the run says that it is over or is gone."""
    pause = 0.0
    failures = 0
    while True:
        try:
            order = orders.get(timeout=pause)
        except queue.Empty:
            order = {"order": "try"}
        if order is None:  # the run was killed
            sender.finish(Finish("KILLED", None, seconds=5.0))
            return
        if order["order"] == "finish":
            artifacts = Path(order["artifacts"]) if order["artifacts"] else None
            sender.finish(Finish(order["status"], artifacts, order["seconds"], order["tags"]))
            return
        failures = 0 if sender.attempt() else failures + 1
        pause = min(2.0 ** (failures - 1), LONGEST_PAUSE_SECONDS) if failures else POLL_SECONDS


def main(work_dir: str) -> None:
    """Run in a process of its own; ends with os._exit, since MLflow's upload threads may hang for ever."""
    work = Path(work_dir)
    os.nice(5)  # training has the cores first; at the end nothing else wants them
    os.environ.update(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",  # we retry ourselves, with orders in between
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(REQUEST_SECONDS),
        MLFLOW_ALLOW_FILE_STORE="true",  # a store that exists is honoured; we make no new one
        MLFLOW_DISABLE_TELEMETRY="true",  # a training run reports to its own store and nowhere else
    )
    store = resolve_store(sys.stdin.readline().rstrip("\n"))
    job = Job.read(work / JOB_FILE, store)
    with (work / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the sender of a killed run may still be ending it
        before = read_state(work)
        state = before.reopened() if before.store == job.key else SenderState(store=job.key)
        write_state(work, state)
        sender = Sender(job, work, lambda new: write_state(work, new), state)
        orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
        follow(sender, orders)
        os._exit(0)


def _read_orders(orders: queue.Queue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put(None)
