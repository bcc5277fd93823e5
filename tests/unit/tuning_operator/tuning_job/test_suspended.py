"""Passes over a TuningJob that is held back: by `suspend`, or by Kueue."""

from __future__ import annotations

import pytest

from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.desires import CHECKED_POD, VALID, condition, created, message, phase, wanted
from tests.support.operator_objects import (
    SETTINGS,
    TRAINED,
    after,
    make_job,
    make_observed,
    make_pod,
    make_tuning_job,
    make_warning,
)
from tuning_operator.core.desired import Desired, ObjectRef
from tuning_operator.tuning_job.desire import desire


def test_suspend_ends_what_runs_and_says_so_once_it_is_gone() -> None:
    job = make_tuning_job(suspend=True, status=VALID)
    desired = wanted(job, jobs=[make_job()], pods=[make_pod()])
    assert desired.delete == [ObjectRef("jobs", "faq-train", "job-train")]
    assert phase(desired) == "Suspended"
    assert condition(desired, "Suspended") == ("False", "Suspending")
    ending = wanted(job, jobs=[make_job(deleting=True)], pods=[make_pod()])
    assert ending.delete == []
    assert condition(ending, "Suspended") == ("False", "Suspending")
    orphan = wanted(job, pods=[make_pod(job_uid="gone")])
    assert condition(orphan, "Suspended") == ("False", "Suspending")
    gone = wanted(job)
    assert created(gone) == []
    assert condition(gone, "Suspended") == ("True", "Suspended")
    assert condition(gone, "Trained") == ("Unknown", "Suspended")
    assert [e.reason for e in gone.events] == ["Suspended"]


def test_suspended_from_the_start() -> None:
    desired = wanted(make_tuning_job(suspend=True))
    assert created(desired) == []
    assert condition(desired, "Suspended") == ("True", "Suspended")
    assert desired.status is not None
    assert "startTime" not in desired.status


def test_a_finished_check_is_kept_over_a_suspension() -> None:
    desired = wanted(make_tuning_job(suspend=True), jobs=[make_job(CHECK, complete=60)], pods=[CHECKED_POD])
    assert (desired.delete, created(desired)) == ([], [])
    assert condition(desired, "DatasetValid") == ("True", "DatasetValid")
    assert condition(desired, "Suspended") == ("True", "Suspended")


def test_a_training_that_ends_while_suspended_has_ended() -> None:
    pod = make_pod(phase="Succeeded", result=TRAINED)
    job = make_tuning_job(suspend=True, status=VALID)
    desired = wanted(job, jobs=[make_job(complete=60)], pods=[pod])
    assert phase(desired) == "Succeeded"
    assert condition(desired, "Suspended") == ("False", "NotSuspended")


@pytest.mark.parametrize(("role", "stage"), [(CHECK, "DatasetValid"), (TRAIN, "Trained")])
def test_kueue_holds_a_job_back(role: str, stage: str) -> None:
    job = make_tuning_job(queueName="team-a", status=VALID if role == TRAIN else None)
    desired = wanted(job, jobs=[make_job(role, suspended=True)])
    assert phase(desired) == "Queued"
    assert condition(desired, "Reconciling") == ("True", "Queued")
    assert condition(desired, stage) == ("Unknown", "Queued")
    assert "LocalQueue team-a" in message(desired, "Reconciling")


def queued(said: dict[str, str] | None = None, *, nodes: int = 1, seconds: float = 70) -> Desired:
    """A trainer's Job that Kueue holds, with an Event about what Kueue calls it."""
    raw = make_tuning_job(status=VALID, queueName="team-a", resources={"gpus": 2, "nodes": nodes})
    warnings = []
    for name, words in (said or {}).items():
        warning = make_warning("", "Pending", words)
        warnings.append({**warning, "involvedObject": {"kind": "Workload", "name": name, "uid": "workload"}})
    observed = make_observed(raw, jobs=[make_job(nodes=nodes, suspended=True)], warnings=warnings)
    return desire(observed, SETTINGS, after(seconds))


def test_a_queued_job_says_what_has_to_be_free_and_what_kueue_says() -> None:
    said = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 4 more needed"
    desired = queued({"job-faq-train-0a1b2": said, "job-faq-train-old-0a1b2": "another's", "faq-train": "none"})
    asked = "Job faq-train waits for LocalQueue team-a to admit it: a pod with 2 nvidia.com/gpu, "
    assert message(desired, "Reconciling").startswith(asked)
    assert message(desired, "Reconciling").endswith(f"; Kueue says: {said}")
    assert message(desired, "Trained") == message(desired, "Reconciling")
    assert desired.needs_events


def test_several_pods_are_asked_for_at_once() -> None:
    desired = queued(nodes=2)
    assert ": 2 pods at once, each with 2 nvidia.com/gpu, " in message(desired, "Reconciling")
    assert "Kueue says" not in message(desired, "Reconciling")


def test_a_job_that_was_queued_a_moment_ago_reads_no_events_yet() -> None:
    assert not queued(seconds=1).needs_events
    assert queued(seconds=1).requeue_after == pytest.approx(4, abs=1)
    assert queued(seconds=24 * 3600).requeue_after == 300, "a thousand may be queued"
