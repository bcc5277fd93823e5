"""A rank that is far slower than the others is told, and nothing else is done about it."""

from __future__ import annotations

import queue
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node_pods import descendants, ends, steps_done, ten_times_slower, wait_for
from tests.support.pod_process import Claim
from tests.support.status_server import StatusServer, status_server

LONG = {"batchSize": 2, "epochs": 1000}


@pytest.fixture
def operator() -> Iterator[StatusServer]:
    with status_server() as server:
        yield server


def next_words(operator: StatusServer, *, slow: bool, processes: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """The metrics of the next report that has a slow rank, or has none."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        try:
            _, body = operator.next(timeout=1)
        except queue.Empty:
            continue
        metrics = {entry["name"]: entry["value"] for entry in body["trainerStatus"]["metrics"]}
        if ("waiting_reason" in metrics) is slow:
            return metrics
    raise AssertionError(f"no report with{'' if slow else 'out'} a slow rank")


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_rank_ten_times_slower_is_told_and_not_killed(
    claim: Claim, operator: StatusServer, sharding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"KUBEFLOW_TRAINER_SERVER_URL": operator.url}
    training = {**LONG, "sharding": sharding}
    process = claim.start("train", training=training, gpus=2, environment=variables)
    wait_for("steps", lambda: steps_done(claim) > 20, [process])
    ranks = descendants(process.pid)
    slow = next(pid for pid in ranks if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    with ten_times_slower(slow):
        since = time.monotonic()
        told = next_words(operator, slow=True, processes=[process])
        seconds = time.monotonic() - since
        with capsys.disabled():
            print(f"\nsharding {sharding}: told after {seconds:.0f} s: {told['waiting_message']}")
        assert told["waiting_reason"] == "SlowRank"
        assert told["waiting_message"].startswith("rank 1 of 2 (cpu) is slow: it takes ")
        before = steps_done(claim)
        wait_for("steps of a slow run", lambda: steps_done(claim) > before + 5, [process])
    next_words(operator, slow=False, processes=[process])
    process.terminate()
    (ended,) = ends([claim], [process])
    assert (ended.code, ended.result["reason"]) == (75, "Stopped"), ended.log
    assert "rank 1 of 2 (cpu) is slow: it takes " in ended.log
    assert "the ranks are equally fast again" in ended.log
