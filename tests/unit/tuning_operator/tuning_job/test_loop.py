"""The worker's loop, and the Warning Events that it reads for all that are stuck."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.operator_objects import Raw, make_tuning_job, make_warning
from tests.support.pass_bench import KEY, Bench
from tuning_operator.core.cache import JOBS, TUNING_JOBS
from tuning_operator.core.errors import LeaseLost, Unavailable
from tuning_operator.tuning_job import reconciler as worker


async def one_pass(bench: Bench) -> None:
    """The loop over one key, ended by the next wait."""
    bench.deliver()
    task = asyncio.create_task(bench.worker.run())
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_pass_that_fails_is_tried_again_later_and_the_loop_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(kind: str, body: Raw) -> Raw:
        raise Unavailable("the API server is away")

    monkeypatch.setattr(bench.cluster, "create", fail)
    bench.start()
    with caplog.at_level(logging.INFO, logger="tuning_operator"):
        await one_pass(bench)
    assert "the API server is away" in caplog.text
    assert bench.worker.busy_since == {}
    assert bench.queue._due[KEY] == pytest.approx(0.5)


async def test_a_fault_of_the_operator_itself_ends_no_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(worker, "desire", fail)
    bench.start()
    await one_pass(bench)
    assert KEY in bench.queue._due


async def test_without_the_lease_nothing_is_written_and_the_loop_ends(bench: Bench) -> None:
    def lost() -> None:
        raise LeaseLost("not ours")

    bench.cluster.guard = lost
    bench.start()
    bench.deliver()
    with pytest.raises(LeaseLost):
        await bench.worker.run()
    assert bench.cluster.writes == []


# --- Warning Events --------------------------------------------------------------------------------------------------


async def test_events_are_read_once_for_all_that_are_stuck_within_seconds(bench: Bench) -> None:
    for number in range(20):
        bench.cluster.add(TUNING_JOBS, make_tuning_job(f"j{number}", uid=f"uid-{number}"))
    bench.deliver()
    keys = [("team", f"j{number}") for number in range(20)]
    for key in keys:
        await bench.worker.reconcile(key)
    bench.seconds += 10
    bench.deliver()
    job = bench.cluster.get(JOBS, "j0-check")
    assert job is not None
    bench.cluster.warnings.append(make_warning(job, "FailedCreate", "Error creating: exceeded quota: q"))
    for key in keys:
        await bench.worker.reconcile(key)
    assert bench.cluster.reads == ["events"]
    stalled = (bench.cluster.get(TUNING_JOBS, "j0") or {})["status"]["conditions"][-1]
    assert (stalled["type"], stalled["reason"]) == ("Stalled", "QuotaExceeded")
    bench.seconds += 10
    await bench.worker.reconcile(keys[0])
    assert bench.cluster.reads == ["events", "events"]


async def test_events_that_cannot_be_read_are_asked_for_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Callable[[str], Any] = bench.cluster.list_warnings

    async def fail(namespace: str) -> list[Raw]:
        raise Unavailable("no answer")

    bench.start()
    await bench.look()
    bench.seconds += 10
    monkeypatch.setattr(bench.cluster, "list_warnings", fail)
    with pytest.raises(Unavailable):
        await bench.look()
    monkeypatch.setattr(bench.cluster, "list_warnings", read)
    await bench.look()
    assert bench.cluster.reads == ["events"]
