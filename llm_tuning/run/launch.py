"""Starts one process a device, watches them, and turns what they say into this process's result.

Processes of their own (`python -m llm_tuning.run.rank`), never multiprocessing: that would import the caller's
main module again. Each worker watches its standard input, so that none outlives a killed parent.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

from llm_tuning.core.console import DEBUG_VARIABLE
from llm_tuning.core.files import read_json
from llm_tuning.core.stopping import stop_requested
from llm_tuning.errors import EXIT_INPUT, EXIT_OK, EXIT_TRY_AGAIN, InputError, Problem, TryAgain
from llm_tuning.run.devices import threads_per_process
from llm_tuning.run.spec import TRACKING_URI_VARIABLE, RunSpec

POLL_SECONDS = 0.1
GRACE_SECONDS = 10
"""How long the other ranks may take to notice that one has gone, before they are ended."""


def launch(spec: RunSpec) -> None:
    """Run all ranks of `spec`; raises InputError, TryAgain or RuntimeError as the failing rank did."""
    (spec.work / "rendezvous").unlink(missing_ok=True)
    for error_file in spec.work.glob("error-rank*.json"):
        error_file.unlink()
    workers = [_start(spec, rank) for rank in range(len(spec.devices))]
    try:
        _watch(workers)
        exit_codes = [worker.poll() for worker in workers]  # None: hung without the one that failed, and ended by us
    finally:
        _end(workers)
    _raise_worst(spec, exit_codes)


def _start(spec: RunSpec, rank: int) -> subprocess.Popen[bytes]:
    world = len(spec.devices)
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    environment.setdefault("OMP_NUM_THREADS", str(threads_per_process(world)))
    if logging.getLogger("llm_tuning").isEnabledFor(logging.DEBUG):
        environment[DEBUG_VARIABLE] = "1"
    if spec.config.tracking.uri is not None:
        environment[TRACKING_URI_VARIABLE] = spec.config.tracking.uri
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: gradients never leave it
    return subprocess.Popen(
        [sys.executable, "-m", "llm_tuning.run.rank", str(spec.work), str(rank)],
        stdin=subprocess.PIPE,
        env=environment,
    )


def _watch(workers: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended, or one has failed and the others had their grace; pass a stop request on once."""
    told = False
    failed_at: float | None = None
    while any(worker.poll() is None for worker in workers):
        if stop_requested() and not told:
            told = True
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        if failed_at is None and any(worker.poll() not in (None, EXIT_OK) for worker in workers):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            return
        time.sleep(POLL_SECONDS)


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
        if worker.stdin:
            worker.stdin.close()


def _raise_worst(spec: RunSpec, exit_codes: list[int | None]) -> None:
    """Bad input outranks everything, and a stop a crash: a rank that lost its peer knows it as a broken connection.

    For the same reason a rank that a signal ended is named before those that failed after it.
    """
    errors = {rank: read_json(spec.work / f"error-rank{rank}.json") or {} for rank in range(len(exit_codes))}
    for rank, code in enumerate(exit_codes):
        if code == EXIT_INPUT:
            raise InputError([Problem(**problem) for problem in errors[rank]["problems"]])
    if EXIT_TRY_AGAIN in exit_codes:
        said = errors[exit_codes.index(EXIT_TRY_AGAIN)]
        raise TryAgain(said.get("reason", "Stopped"), said.get("message", "stopped on request"))
    for rank, code in enumerate(exit_codes):
        if code is not None and code < 0:
            hint = "; the system does so when memory runs out" if -code == signal.SIGKILL else ""
            raise RuntimeError(f"worker {rank} of {len(exit_codes)} was ended by signal {-code}{hint}")
    for rank, code in enumerate(exit_codes):
        if code:
            said = errors[rank].get("message", "it left no word")
            raise RuntimeError(f"worker {rank} of {len(exit_codes)} failed with exit code {code}: {said}")
