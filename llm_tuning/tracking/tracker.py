"""The run's side of tracking: start the sender, get the run id from it, end it. Never waits longer than the budget."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_tuning.errors import InputError
from llm_tuning.models.layout import METRICS
from llm_tuning.models.metrics_file import MetricsFile, read_metrics
from llm_tuning.tracking.outbox import JOB_FILE, SenderState, read_state, write_state
from llm_tuning.tracking.stores import Store, check_tracking_uri, redact, resolve_store

log = logging.getLogger(__name__)

SERVER_BUDGET_SECONDS = 4.5
"""What a server may cost a run in all, alive or not: start, run id and finish together.

The promise is 5 s; ending the sender and the last read of its state come on top of the budget.
"""
DISK_BUDGET_SECONDS = 60.0
"""The same for a store on this machine's disk, where waiting always ends: making a new sqlite store takes seconds."""
CLOSING_SECONDS = 0.5
"""Kept back of the budget, so that the sender ends by itself before it is killed."""
VALUE_CHARACTERS = 1000
"""Longest parameter or tag value; MLflow takes 6,000, but no reader does."""

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
SENDER_CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import llm_tuning
del sys.path[0]
from llm_tuning.tracking import sender
sender.main(sys.argv[2])
"""
"""The very package that runs here, installed or a checkout, and with -P nothing from the current directory."""

Status = Literal["FINISHED", "KILLED", "FAILED"]


@dataclass(frozen=True)
class TrackingResult:
    """Where the run is kept. If that store has not all of it, `note` says what is missing and why, in one sentence."""

    run_id: str | None
    uri: str | None
    experiment: str
    unsent: int
    note: str | None


class Tracker:
    """A run's connection to MLflow, and (in a run of one process) its metrics file.

    With several worker processes rank 0 writes the same file by a MetricsFile of its own; the sender follows the file.
    """

    def __init__(self, store: Store | None, experiment: str, work_dir: Path) -> None:
        self.store = store
        self.experiment = experiment
        self.work_dir = work_dir
        self.waited_seconds = 0.0
        """What tracking has cost the run so far."""
        self._budget = DISK_BUDGET_SECONDS if store is None or store.is_local else SERVER_BUDGET_SECONDS
        self._metrics = MetricsFile(work_dir / METRICS)
        self._sender: subprocess.Popen[bytes] | None = None
        self._note: str | None = None

    @classmethod
    def start(
        cls,
        uri: str | None,
        experiment_name: str,
        *,
        run_name: str,
        work_dir: Path,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        dataset: Mapping[str, Any] | None = None,
    ) -> Tracker:
        """Begin or continue the MLflow run of a work directory; takes milliseconds and never fails for a server.

        `uri` None keeps the metrics in the local file only. `params` and `tags` are flat. `dataset` has `path`, `hash`
        and any counts; no rows. Raises InputError for a URI that cannot be one (see check_tracking_uri).
        """
        if uri is not None and (problems := check_tracking_uri(uri)):
            raise InputError(problems)
        tracker = cls(resolve_store(uri) if uri is not None else None, experiment_name, work_dir)
        if uri is not None:
            job = {
                "experiment": experiment_name,
                "run_name": run_name,
                "run_token": _run_token(work_dir),
                "start_time_ms": round(time.time() * 1000),
                "params": {name: _text(value) for name, value in params.items()},
                "tags": {name: _text(value) for name, value in tags.items()},
                "dataset": _described_dataset(dataset),
            }
            tracker._spawn(uri, job)
        return tracker

    def resume(self, step: int) -> None:
        """Keep the metrics up to `step`; see MetricsFile."""
        self._metrics.resume(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append to the local file, in microseconds."""
        self._metrics.log(step, metrics)

    def close(self) -> None:
        """Close the local file."""
        self._metrics.close()

    @property
    def run_id(self) -> str | None:
        """The MLflow run, waiting within the budget until it is known; None if the store does not answer."""
        if self.store is None:
            return None
        key, tries = f"{self.store.shown} {self.experiment}", 0

        def known(state: SenderState) -> bool:
            return state.store == key and (state.run_id is not None or state.tries > tries)

        state = read_state(self.work_dir)
        if state.store != key or state.run_id is None:
            tries = state.tries if state.store == key else 0
            self._order({"order": "try"})
            state = self._wait(known)
        return state.run_id if state.store == key else None

    @property
    def sender_pid(self) -> int | None:
        """The process that sends, while there is one."""
        return self._sender.pid if self._sender else None

    @property
    def reason(self) -> str | None:
        """Why the store could not be reached at the last attempt; None if it could."""
        return self._note or read_state(self.work_dir).fault

    def finish(
        self, status: Status, artifacts: Path | None = None, tags: Mapping[str, Any] | None = None
    ) -> TrackingResult:
        """Send what is left, set status and `tags`, upload the small files of `artifacts`; at the deadline, give up."""
        self.close()
        if self.store is None:
            return TrackingResult(None, None, self.experiment, 0, None)
        seconds = max(0.0, self._budget - self.waited_seconds)
        self._order(
            {
                "order": "finish",
                "status": status,
                "artifacts": str(artifacts.absolute()) if artifacts else None,
                "tags": {name: _text(value) for name, value in (tags or {}).items()},
                "seconds": max(0.0, seconds - CLOSING_SECONDS),
            }
        )
        state = self._wait(lambda state: False)
        self._end_sender()
        unsent = sum(not state.is_sent(line) for line in read_metrics(self.work_dir / METRICS))
        return TrackingResult(state.run_id, self.store.shown, self.experiment, unsent, self._final_note(state, unsent))

    def _final_note(self, state: SenderState, unsent: int) -> str | None:
        if state.finished:
            return None
        cause = self._note or state.fault or f"no answer within {self._budget:g} s"
        what = f"{unsent} lines of metrics were not sent and stay in {METRICS}" if unsent else "its end was not sent"
        return f"MLflow at {self.store.shown if self.store else ''}: {what} ({cause})"

    def _spawn(self, uri: str, job: Mapping[str, Any]) -> None:
        began = time.monotonic()
        try:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            (self.work_dir / JOB_FILE).write_text(json.dumps(job))
            write_state(self.work_dir, read_state(self.work_dir).reopened())
            self._sender = subprocess.Popen(
                [sys.executable, "-P", "-c", SENDER_CODE, str(PACKAGE_ROOT), str(self.work_dir.absolute())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run; it gives the sender its end
            )
        except OSError as error:
            self._note = f"the sender cannot be started: {error.strerror}"
        self._write(uri)
        self.waited_seconds += time.monotonic() - began

    def _order(self, order: Mapping[str, Any]) -> None:
        self._write(json.dumps(order))

    def _write(self, line: str) -> None:
        """Give the sender a line; a few hundred bytes always fit into the pipe, so this does not block."""
        if self._sender is None or self._sender.stdin is None:
            return
        try:
            self._sender.stdin.write(line.encode() + b"\n")
            self._sender.stdin.flush()
        except OSError:  # it has ended; its state says why
            log.debug("the MLflow sender has ended")

    def _wait(self, done: Callable[[SenderState], bool]) -> SenderState:
        """Poll the sender's state until `done`, its end, or the end of the budget."""
        began = time.monotonic()
        state = read_state(self.work_dir)
        while not done(state) and self._sender is not None and self.waited_seconds < self._budget:
            ended = self._sender.poll() is not None
            state = read_state(self.work_dir)
            if ended:
                break
            time.sleep(0.02)
            now = time.monotonic()
            self.waited_seconds += now - began
            began = now
        return state

    def _end_sender(self) -> None:
        if self._sender is None:
            return
        if self._sender.poll() is None:
            self._sender.kill()
        elif self._sender.returncode != 0:
            self._note = f"the sender ended with status {self._sender.returncode}"
        self._sender.wait()
        if self._sender.stdin is not None:
            try:
                self._sender.stdin.close()
            except OSError:  # the pipe broke with the sender
                log.debug("the MLflow sender ended before its last order")
        self._sender = None


def _run_token(work_dir: Path) -> str:
    """Return the token of this work directory: the same over resumes, new for a new run."""
    try:
        return str(json.loads((work_dir / JOB_FILE).read_text())["run_token"])
    except (OSError, ValueError, KeyError, TypeError):
        return uuid.uuid4().hex


def _described_dataset(dataset: Mapping[str, Any] | None) -> dict[str, str]:
    if not dataset:
        return {}
    path = os.fspath(dataset["path"])
    counts = {name: value for name, value in dataset.items() if name not in ("path", "hash")}
    return {
        "name": Path(path).name[:500],
        "path": path,
        "hash": str(dataset["hash"]),
        "profile": json.dumps(counts, default=str)[:VALUE_CHARACTERS],
    }


def _text(value: Any) -> str:
    return redact(str(value))[:VALUE_CHARACTERS]
