from __future__ import annotations

import pytest

from tests.support.operator_objects import (
    SETTINGS,
    UID,
    Raw,
    after,
    make_job,
    make_observed,
    make_status,
    make_tuning_job,
)
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.desired import Desired, ObjectRef
from tuning_operator.tuning_job.desire import desire

NOTHING = Desired()


def finished(**arguments: object) -> Raw:
    status = make_status(Finished="True", Succeeded="False") | {"completionTime": timestamp(after(100))}
    return make_tuning_job(status=status, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [[], [make_job()], [make_job("check", failed="BackoffLimitExceeded")]])
def test_nothing_runs_again_whatever_became_of_its_jobs(jobs: list[Raw]) -> None:
    assert desire(make_observed(finished(), jobs=jobs), SETTINGS, after(200)) == NOTHING


def test_suspend_means_nothing_any_more_but_is_taken_note_of() -> None:
    job = finished(suspend=True, generation=2)
    desired = desire(make_observed(job, jobs=[make_job()]), SETTINGS, after(200))
    assert desired.delete == desired.create == desired.events == []
    assert desired.status is not None
    assert desired.status["observedGeneration"] == 2
    assert {c["observedGeneration"] for c in desired.status["conditions"]} == {2}
    settled = make_tuning_job(status=desired.status, suspend=True, generation=2)
    assert desire(make_observed(settled), SETTINGS, after(201)) == NOTHING


@pytest.mark.parametrize(
    ("ttl", "seconds", "wanted"),
    [
        (60, 130, Desired(requeue_after=30)),
        (60, 160, Desired(delete=[ObjectRef("tuningjobs", "faq", UID)])),
        (60, 9999, Desired(delete=[ObjectRef("tuningjobs", "faq", UID)])),
        (0, 100, Desired(delete=[ObjectRef("tuningjobs", "faq", UID)])),
    ],
)
def test_its_time_to_go(ttl: int, seconds: float, wanted: Desired) -> None:
    observed = make_observed(finished(ttlSecondsAfterFinished=ttl))
    assert desire(observed, SETTINGS, after(seconds)) == wanted


def test_one_that_is_being_deleted_is_left_alone() -> None:
    assert desire(make_observed(make_tuning_job(deleting=True), jobs=[make_job()]), SETTINGS, after(1)) == NOTHING
    assert desire(make_observed(finished(deleting=True, ttlSecondsAfterFinished=0)), SETTINGS, after(999)) == NOTHING
