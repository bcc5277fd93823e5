"""Passes over a TuningJob that is held back: by `suspend`, or by Kueue."""

from __future__ import annotations

import pytest

from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.desires import CHECKED_POD, VALID, condition, created, message, phase, wanted
from tests.support.operator_objects import TRAINED, make_job, make_pod, make_tuning_job
from tuning_operator.core.desired import ObjectRef


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
    assert desired.needs_events is False
    assert desired.requeue_after is None, "the Job's watch tells"
