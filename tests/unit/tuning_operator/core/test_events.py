"""Events on a TuningJob: one object for each thing that is told, however often."""

from __future__ import annotations

import logging

import pytest

from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_objects import UID, Raw, after, make_tuning_job
from tuning_operator.core.cache import TUNING_JOBS
from tuning_operator.core.desired import Event
from tuning_operator.core.errors import Forbidden, LeaseLost
from tuning_operator.core.events import build_event, event_name, record_events

JOB: Raw = make_tuning_job()
TOLD = Event("Warning", "ClaimNotFound", "there is no claim")


def test_the_name_follows_from_what_is_told() -> None:
    name = event_name(JOB, TOLD)
    assert name == event_name(make_tuning_job(generation=9), TOLD)
    others = [
        event_name(make_tuning_job(uid="another"), TOLD),
        event_name(JOB, Event("Normal", "ClaimNotFound", "there is no claim")),
        event_name(JOB, Event("Warning", "ClaimPending", "there is no claim")),
        event_name(JOB, Event("Warning", "ClaimNotFound", "there is another")),
    ]
    assert len({name, *others}) == 5
    assert name.startswith("faq.")
    assert len(event_name(make_tuning_job("n" * 50), TOLD)) <= 253


def test_kubectl_describe_finds_it() -> None:
    body = build_event(TUNING_JOBS, JOB, TOLD, after(5), "operator-1")
    assert body["involvedObject"] | {"resourceVersion": ""} == {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "name": "faq",
        "namespace": "team",
        "uid": UID,
        "resourceVersion": "",
    }
    assert (body["type"], body["reason"], body["message"]) == ("Warning", "ClaimNotFound", "there is no claim")
    assert body["firstTimestamp"] == body["lastTimestamp"] == "2026-01-02T03:04:10Z"


def test_a_message_that_is_too_long_for_an_event_is_cut() -> None:
    assert len(build_event(TUNING_JOBS, JOB, Event("Normal", "X", "m" * 5000), after(0), "")["message"]) == 1024


async def test_what_happens_again_is_the_same_object() -> None:
    cluster = MemoryCluster()
    await record_events(cluster, TUNING_JOBS, JOB, [TOLD], now=after(0), instance="a")  # type: ignore[arg-type]
    await record_events(cluster, TUNING_JOBS, JOB, [TOLD], now=after(60), instance="b")  # type: ignore[arg-type]
    (event,) = cluster.events
    assert event["count"] == 2
    assert event["firstTimestamp"] != event["lastTimestamp"]


async def test_one_that_cannot_be_written_is_logged_and_the_others_are_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = MemoryCluster()

    def refuse(moment: str, write: str) -> None:
        if write == "event ClaimNotFound":
            raise Forbidden("events are not yours")

    cluster.hook = refuse
    with caplog.at_level(logging.WARNING, logger="tuning_operator"):
        await record_events(
            cluster, TUNING_JOBS, JOB, [TOLD, Event("Normal", "Training", "it trains")], now=after(0), instance=""
        )  # type: ignore[arg-type]
    assert "events are not yours" in caplog.text
    assert [event["reason"] for event in cluster.events] == ["Training"]


async def test_without_the_lease_no_event_is_written_and_that_is_an_error() -> None:
    cluster = MemoryCluster()

    def lost() -> None:
        raise LeaseLost("not ours")

    cluster.guard = lost
    with pytest.raises(LeaseLost):
        await record_events(cluster, TUNING_JOBS, JOB, [TOLD], now=after(0), instance="")  # type: ignore[arg-type]
