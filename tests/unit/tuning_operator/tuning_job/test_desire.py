"""Single passes: what is wanted in one state of the world. Whole lives are in test_convergence."""

from __future__ import annotations

import json

import pytest

from llm_tuning.api.tuning_job import Progress, TuningJobStatus
from llm_tuning.pod.roles import CHECK, REPORT
from tests.support.desires import CHECKED_POD, VALID, condition, created, message, phase, wanted
from tests.support.operator_objects import CHECKED, MODEL_ID, TRAINED, Raw, make_job, make_pod, make_tuning_job
from tuning_operator.core.desired import Desired

# --- check, then train -----------------------------------------------------------------------------------------------


def test_first_the_data_is_checked_and_everything_has_a_name() -> None:
    desired = wanted(seconds=1)
    assert created(desired) == ["faq-check"]
    assert phase(desired) == "Checking"
    assert desired.status is not None
    assert desired.status["modelId"] == MODEL_ID
    assert desired.status["startTime"] == "2026-01-02T03:04:06Z"
    assert condition(desired, "DatasetValid") == ("Unknown", "Checking")
    assert condition(desired, "Finished") == ("False", "Running")
    assert condition(desired, "Stalled") == ("False", "NotStalled")


def test_a_start_whose_write_was_lost_is_when_the_first_job_was_made() -> None:
    desired = wanted(jobs=[make_job(CHECK, created=7)], pods=[make_pod(CHECK)])
    assert created(desired) == []
    assert desired.status is not None
    assert desired.status["startTime"] == "2026-01-02T03:04:12Z"


def test_a_valid_dataset_starts_the_training_in_the_same_pass() -> None:
    desired = wanted(jobs=[make_job(CHECK, complete=60)], pods=[CHECKED_POD])
    assert created(desired) == ["faq-train"]
    assert condition(desired, "DatasetValid") == ("True", "DatasetValid")
    assert message(desired, "DatasetValid") == CHECKED["message"]
    assert phase(desired) == "Training"


def test_a_check_whose_report_is_gone_has_still_passed() -> None:
    desired = wanted(jobs=[make_job(CHECK, complete=60)])
    assert created(desired) == ["faq-train"]
    assert condition(desired, "DatasetValid") == ("True", "DatasetValid")


def test_nothing_is_said_before_job_and_pod_are_both_seen() -> None:
    assert wanted(jobs=[make_job(CHECK, complete=69)]) == Desired(requeue_after=4)
    ended = make_pod(phase="Succeeded", result=TRAINED, ended=68)
    assert wanted(make_tuning_job(status=VALID), jobs=[make_job()], pods=[ended]) == Desired(requeue_after=3)


def test_a_recorded_check_is_not_made_again() -> None:
    assert created(wanted(make_tuning_job(status=VALID))) == ["faq-train"]


def test_bad_data_is_the_end() -> None:
    refused = {"ok": False, "reason": "DatasetInvalid", "message": "row 3: prompt is empty"}
    pod = make_pod(CHECK, phase="Failed", exit_code=64, result=refused)
    desired = wanted(jobs=[make_job(CHECK, failed="PodFailurePolicy")], pods=[pod])
    assert created(desired) == []
    assert phase(desired) == "Failed"
    assert condition(desired, "DatasetValid") == ("False", "DatasetInvalid")
    for kind in ("Trained", "Registered", "Evaluated"):
        assert condition(desired, kind) == ("False", "NotReached")
    assert condition(desired, "Succeeded") == ("False", "DatasetInvalid")
    assert condition(desired, "Finished") == ("True", "Finished")
    assert [(e.type, e.reason, e.message) for e in desired.events] == [
        ("Warning", "DatasetInvalid", "row 3: prompt is empty")
    ]
    assert desired.requeue_after is None


def test_a_training_job_that_vanished_is_made_again() -> None:
    status = VALID | {"startTime": "2026-01-02T03:04:06Z", "jobName": "faq-train"}
    desired = wanted(make_tuning_job(status=status))
    assert created(desired) == ["faq-train"]
    assert desired.status is not None
    assert desired.status["startTime"] == "2026-01-02T03:04:06Z"


def test_never_a_trainer_beside_one_that_still_runs() -> None:
    desired = wanted(make_tuning_job(status=VALID), pods=[make_pod(job_uid="gone")])
    assert created(desired) == []
    assert desired.requeue_after == 5


def test_a_job_that_is_being_deleted_is_waited_out() -> None:
    failed = make_job(deleting=True, failed="BackoffLimitExceeded")
    for job in (make_job(deleting=True), failed):
        desired = wanted(make_tuning_job(status=VALID), jobs=[job])
        assert (created(desired), desired.delete) == ([], [])
        assert condition(desired, "Finished") == ("False", "Running")


def test_a_deleted_job_that_was_complete_counts() -> None:
    job, pod = make_job(deleting=True, complete=60), make_pod(phase="Succeeded", result=TRAINED)
    assert phase(wanted(make_tuning_job(status=VALID), jobs=[job], pods=[pod])) == "Succeeded"


# --- what came of it -------------------------------------------------------------------------------------------------


def test_the_result_is_recorded() -> None:
    pod = make_pod(phase="Succeeded", result=TRAINED)
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job(complete=60)], pods=[pod])
    for kind in ("DatasetValid", "Trained", "Registered", "Evaluated", "Succeeded", "Finished"):
        assert condition(desired, kind)[0] == "True"
    assert desired.status is not None
    assert desired.status["adapterPath"] == f"models/{MODEL_ID}"
    assert desired.status["mlflowRunId"] == "0123abcd"
    assert desired.status["evaluation"] == {"baseLoss": 3.0, "tunedLoss": 1.0}
    assert desired.status["completionTime"] == "2026-01-02T03:05:15Z"
    assert message(desired, "Evaluated") == "loss on 2 held-out rows: base 3.0000, tuned 1.0000"


@pytest.mark.parametrize(
    ("mode", "scores", "said"),
    [
        ("dpo", {"startRewardAccuracy": 0.5, "tunedRewardAccuracy": 1.0}, "reward accuracy"),
        ("kto", {"startLabelAccuracy": 0.5, "tunedLabelAccuracy": 1.0}, "label accuracy"),
    ],
)
def test_a_mode_with_bad_answers_is_not_judged_by_the_loss_over_all_of_them(
    mode: str, scores: dict[str, float], said: str
) -> None:
    result = TRAINED | {"evaluation": {"startLoss": 1.0, "tunedLoss": 3.0, **scores}}
    raw, pod = make_tuning_job(status=VALID, mode=mode), make_pod(phase="Succeeded", result=result)
    evaluated = message(wanted(raw, jobs=[make_job(complete=60)], pods=[pod]), "Evaluated")
    assert evaluated == f"{said} on 2 held-out rows: start adapter 0.5000, tuned 1.0000"


@pytest.mark.parametrize(
    ("change", "kind", "want"),
    [
        ({"heldOutRows": 0, "evaluation": None}, "Evaluated", ("Unknown", "NoHeldOutRows")),
        ({"registered": False}, "Registered", ("Unknown", "Pending")),
    ],
)
def test_what_a_result_leaves_open(change: Raw, kind: str, want: tuple[str, str]) -> None:
    pod = make_pod(phase="Succeeded", result=TRAINED | change)
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job(complete=60)], pods=[pod])
    assert condition(desired, kind) == want
    assert condition(desired, "Succeeded") == ("True", "Succeeded")


def test_a_result_with_absurd_names_still_makes_a_status_that_the_api_server_takes() -> None:
    pod = make_pod(phase="Succeeded", result=TRAINED | {"mlflowRunId": "r" * 1500, "adapterPath": "p" * 1500})
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job(complete=60)], pods=[pod])
    TuningJobStatus.model_validate_json(json.dumps(desired.status))


def test_a_result_that_was_lost_is_read_again() -> None:
    job = make_tuning_job(status=VALID)
    desired = wanted(job, jobs=[make_job(complete=60)])
    assert created(desired) == ["faq-report"]
    assert condition(desired, "Trained") == ("Unknown", "ReadingResult")
    reported = make_pod(REPORT, phase="Succeeded", result=TRAINED)
    done = wanted(job, jobs=[make_job(complete=60), make_job(REPORT, complete=65)], pods=[reported])
    assert condition(done, "Succeeded") == ("True", "Succeeded")


@pytest.mark.parametrize(
    ("report", "pods"),
    [
        (make_job(REPORT, complete=60), [make_pod(REPORT, phase="Succeeded")]),
        (make_job(REPORT, failed="PodFailurePolicy"), []),
    ],
)
def test_a_result_that_cannot_be_read_is_said_to_be_lost(report: Raw, pods: list[Raw]) -> None:
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job(complete=60), report], pods=pods)
    assert condition(desired, "Trained") == ("Unknown", "ResultLost")
    assert condition(desired, "Succeeded") == ("False", "ResultLost")
    assert condition(desired, "Finished") == ("True", "Finished")


def test_a_report_whose_pod_is_gone_as_well_is_made_again() -> None:
    job = make_tuning_job(status=VALID)
    desired = wanted(job, jobs=[make_job(complete=60), make_job(REPORT, complete=60)])
    assert [ref.name for ref in desired.delete] == ["faq-report"]
    assert condition(desired, "Trained") == ("Unknown", "ReadingResult")
    leaving = wanted(job, jobs=[make_job(complete=60), make_job(REPORT, complete=60, deleting=True)])
    assert (leaving.delete, created(leaving)) == ([], [])


# --- progress --------------------------------------------------------------------------------------------------------

HALF = Progress(percent=50, step=5, total_steps=10, loss=1.5, remaining_seconds=9, last_update_time="t")


def test_progress_is_the_newest_report_or_the_last_known() -> None:
    world: Raw = {"jobs": [make_job()], "pods": [make_pod()]}
    desired = wanted(make_tuning_job(status=VALID), progress=HALF, **world)
    assert desired.status is not None
    assert desired.status["progress"]["percent"] == 50
    kept = wanted(make_tuning_job(status=desired.status), **world)  # after the operator's restart
    assert kept.status == desired.status


def test_a_report_without_a_loss_keeps_the_last_one() -> None:
    """A start says none before its first step, and transformers' callback sends one with some reports only."""
    world: Raw = {"jobs": [make_job()], "pods": [make_pod()]}
    first = wanted(make_tuning_job(status=VALID), progress=HALF, **world)
    for silent in (HALF.model_copy(update={"step": 6, "loss": None}), Progress(percent=0, last_update_time="u")):
        desired = wanted(make_tuning_job(status=first.status), progress=silent, **world)
        assert desired.status is not None
        assert desired.status["progress"] == silent.model_dump(mode="json", by_alias=True, exclude_none=True) | {
            "loss": 1.5
        }


@pytest.mark.parametrize(
    "last", [None, HALF, Progress(percent=10, step=1, total_steps=10, epoch=0.1, loss=2.8, last_update_time="t")]
)
@pytest.mark.parametrize(
    ("ended", "shown"),
    [
        ({"steps": 10, "epochs": 1.0, "loss": 0.5}, {"step": 10, "totalSteps": 10, "epoch": 1.0, "loss": 0.5}),
        ({"steps": 7, "epochs": 0.7, "loss": 0.9}, {"step": 7, "totalSteps": 7, "epoch": 0.7, "loss": 0.9}),
        ({"steps": 10, "epochs": 1.0, "loss": "NaN"}, {"step": 10, "totalSteps": 10, "epoch": 1.0}),
    ],
)
def test_a_finished_training_is_at_its_end_whatever_was_reported_last(
    last: Progress | None, ended: Raw, shown: Raw
) -> None:
    """`step 1 of 10` beside 100 percent: reports come each ten seconds, and the last of a short run is of its start."""
    world: Raw = {"jobs": [make_job(complete=60)], "pods": [make_pod(phase="Succeeded", result=TRAINED | ended)]}
    desired = wanted(make_tuning_job(status=VALID), progress=last, **world)
    assert desired.status is not None
    progress = desired.status["progress"]
    assert {name: value for name, value in progress.items() if name != "lastUpdateTime"} == {"percent": 100, **shown}
    assert progress["lastUpdateTime"]


def test_a_result_without_steps_ends_at_the_last_step_that_was_planned() -> None:
    """Of a trainer image of an earlier version; a loss of an early step is not that of the end."""
    world: Raw = {"jobs": [make_job(complete=60)], "pods": [make_pod(phase="Succeeded", result=TRAINED)]}
    early = wanted(make_tuning_job(status=VALID), progress=HALF, **world)
    assert early.status is not None
    assert early.status["progress"] == {"percent": 100, "step": 10, "totalSteps": 10, "lastUpdateTime": "t"}
    whole = HALF.model_copy(update={"step": 10, "epoch": 1.0})
    last = wanted(make_tuning_job(status=VALID), progress=whole, **world)
    assert last.status is not None
    assert last.status["progress"]["loss"] == HALF.loss
    assert last.status["progress"]["epoch"] == 1.0
    silent = wanted(make_tuning_job(status=VALID), **world)
    assert silent.status is not None
    assert silent.status["progress"]["percent"] == 100


def test_a_failed_training_keeps_how_far_it_came() -> None:
    world: Raw = {"jobs": [make_job(failed="DeadlineExceeded")]}
    desired = wanted(make_tuning_job(status=VALID), progress=HALF, **world)
    assert desired.status is not None
    assert desired.status["progress"]["percent"] == 50
