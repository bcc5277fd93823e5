"""The status of a job of this machine is one of the operator's: what reads those reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_tuning.api.conditions import ConditionType
from llm_tuning.api.tuning_job import Evaluation, Progress, TuningJobStatus
from llm_tuning.client.objects import TuningJobView
from llm_tuning.openai_api.job_view import status_of
from llm_tuning.openai_api.local.status import Draft
from llm_tuning.pod.contract import CheckResult, TrainResult

JOB: dict[str, Any] = {
    "metadata": {"name": "faq", "namespace": "local", "uid": "u", "generation": 1},
    "spec": {
        "model": {"path": "base/tiny"},
        "dataset": {"path": "datasets/faq.json"},
        "volume": {"claimName": "local"},
    },
}
CHECKED = CheckResult(ok=True, reason="DatasetValid", message="20 of 20 rows are kept")
TRAINED = TrainResult(
    ok=True,
    reason="Trained",
    message="6 steps",
    model_id="m",
    adapter_path="models/m",
    evaluation=Evaluation(held_out_rows=2, tuned_loss=1.5),
    held_out_rows=2,
    registered=True,
    steps=6,
    loss=0.5,
)
PROGRESS = Progress(percent=50, step=3, total_steps=6, loss=1.0, last_update_time="2026-12-01T00:00:03Z")

Change = Callable[[Draft], None]


def _after(*changes: Change) -> list[TuningJobView]:
    """The job after each change, a second apart; every status is one that the CRD allows."""
    job, found = dict(JOB), []
    for second, change in enumerate(changes):
        draft = Draft(job, f"2026-12-01T00:00:0{second}Z")
        change(draft)
        job = {**job, "status": draft.status()}
        TuningJobStatus.parse(job["status"])
        found.append(TuningJobView.of(job))
    return found


def _train(draft: Draft) -> None:
    draft.train(PROGRESS)


def test_a_whole_life_in_openais_words() -> None:
    found = _after(
        lambda draft: draft.wait("1 job before it"),
        lambda draft: draft.check(),
        lambda draft: draft.checked(CHECKED),
        lambda draft: draft.train(None),
        _train,
        lambda draft: draft.suspend(),
        _train,
        lambda draft: draft.succeed(TRAINED),
    )
    assert [status_of(job) for job in found] == [
        *("queued", "validating_files", "queued", "queued", "running", "queued", "running", "succeeded"),
    ]  # it is the spec that says `paused`
    assert [job.name for job in found if job.is_true(ConditionType.SUSPENDED)] == ["faq"]
    done = found[-1]
    assert done.status is not None
    assert (done.status.adapter_path, done.status.completion_time) == ("models/m", "2026-12-01T00:00:07Z")
    assert done.status.progress is not None
    assert (done.status.progress.step, done.status.progress.percent, done.status.progress.loss) == (6, 100, 0.5)
    assert done.status.evaluation is not None
    assert done.status.evaluation.tuned_loss == 1.5


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    found = _after(
        lambda draft: draft.wait("2 jobs"), lambda draft: draft.wait("1 job"), lambda draft: draft.checked(CHECKED)
    )
    times = [job.conditions[ConditionType.RECONCILING].last_transition_time for job in found]
    assert set(times) == {"2026-12-01T00:00:00Z"}
    assert found[-1].conditions[ConditionType.DATASET_VALID].last_transition_time == "2026-12-01T00:00:02Z"


@pytest.mark.parametrize("stage", [ConditionType.DATASET_VALID, ConditionType.TRAINED])
def test_a_failure_ends_it_with_its_reason(stage: ConditionType) -> None:
    (job,) = _after(lambda draft: draft.fail(stage, "DatasetInvalid", "row 3"))
    assert status_of(job) == "failed"
    assert (job.conditions[stage].status, job.conditions[stage].reason) == ("False", "DatasetInvalid")
    assert job.conditions[ConditionType.SUCCEEDED].message == "row 3"


def test_what_stalls_it_goes_when_it_goes_on() -> None:
    stalled, going = _after(
        lambda draft: (draft.check(), draft.stall("Busy", "another run has the folder"))[0], lambda draft: draft.check()
    )
    assert stalled.trouble == "Busy: another run has the folder"
    assert going.trouble == ""
