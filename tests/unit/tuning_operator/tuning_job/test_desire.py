"""Single passes: what is wanted in one state of the world. Whole lives are in test_convergence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.api.tuning_job import Progress, TuningJobStatus
from llm_tuning.pod.contract import PodInput
from llm_tuning.pod.roles import CHECK, REPORT, TRAIN
from tests.support.operator_objects import (
    CHECKED,
    MODEL_ID,
    SETTINGS,
    TRAINED,
    Raw,
    after,
    jobs_in,
    make_job,
    make_observed,
    make_pod,
    make_status,
    make_tuning_job,
    make_warning,
)
from tuning_operator.core.desired import Desired, ObjectRef
from tuning_operator.tuning_job.desire import desire

CHECKED_POD = make_pod(CHECK, phase="Succeeded", result=CHECKED)
VALID = make_status(DatasetValid="True/DatasetValid")
FROM_FIRST: Raw = {"path": "base/tiny", "adapter": {"tuningJob": "first"}}


def wanted(job: Raw | None = None, *, seconds: float = 70, **observed: Any) -> Desired:
    return desire(make_observed(job, **observed), SETTINGS, after(seconds))


def created(desired: Desired) -> list[str]:
    return [job["metadata"]["name"] for job in jobs_in(desired)]


def condition(desired: Desired, kind: str) -> tuple[str, str]:
    assert desired.status is not None
    found = next(c for c in desired.status["conditions"] if c["type"] == kind)
    return found["status"], found["reason"]


def message(desired: Desired, kind: str) -> str:
    assert desired.status is not None
    return str(next(c for c in desired.status["conditions"] if c["type"] == kind)["message"])


def phase(desired: Desired) -> str:
    assert desired.status is not None
    return str(desired.status["phase"])


def start_of(desired: Desired) -> str | None:
    container = jobs_in(desired)[0]["spec"]["template"]["spec"]["containers"][0]
    text = next(v["value"] for v in container["env"] if v["name"] == "LLM_TUNING_POD")
    return PodInput.model_validate_json(text).start_model_id


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


# --- the start adapter -----------------------------------------------------------------------------------------------


def test_the_check_does_not_wait_for_the_start_adapter() -> None:
    desired = wanted(make_tuning_job(model=FROM_FIRST), seconds=1)
    assert created(desired) == ["faq-check"]
    assert start_of(desired) is None


def test_the_check_looks_at_an_adapter_that_is_there() -> None:
    first = make_tuning_job("first", status=make_status(Finished="True", Succeeded="True"))
    assert start_of(wanted(make_tuning_job(model=FROM_FIRST), adapter=first)) == MODEL_ID


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (None, "AdapterJobNotFound"),
        (make_tuning_job("first"), "WaitingForAdapter"),
        (make_tuning_job("first", status=make_status(Finished="False")), "WaitingForAdapter"),
    ],
)
def test_it_waits_for_the_start_adapter_and_says_so(adapter: Raw | None, reason: str) -> None:
    desired = wanted(make_tuning_job(model=FROM_FIRST, status=VALID), adapter=adapter)
    assert created(desired) == []
    assert phase(desired) == "Waiting"
    assert condition(desired, "Reconciling") == ("True", reason)
    assert condition(desired, "Trained") == ("Unknown", reason)
    assert condition(desired, "Stalled")[0] == "False"
    assert "first" in message(desired, "Reconciling")
    assert [e.reason for e in desired.events] == [reason]


def test_the_start_adapter_is_written_down_before_it_is_used() -> None:
    first = make_tuning_job("first", status=make_status(Finished="True", Succeeded="True"))
    status = VALID | {"startTime": "2026-01-02T03:04:06Z"}
    desired = wanted(make_tuning_job(model=FROM_FIRST, status=status), adapter=first)
    assert (created(desired), desired.requeue_after) == ([], 0)
    assert desired.status is not None
    assert desired.status["startAdapterModelId"] == MODEL_ID
    again = wanted(make_tuning_job(model=FROM_FIRST, status=desired.status))  # the other job has gone since
    assert created(again) == ["faq-train"]
    assert start_of(again) == MODEL_ID
    assert again.status == desired.status, "one write, not two"


def test_a_failed_start_is_the_end() -> None:
    first = make_tuning_job("first", status=make_status(Finished="True", Succeeded="False"))
    desired = wanted(make_tuning_job(model=FROM_FIRST, status=VALID), adapter=first)
    assert condition(desired, "Succeeded") == ("False", "AdapterJobFailed")
    assert condition(desired, "Trained") == ("False", "NotReached")


def test_a_job_cannot_start_from_itself() -> None:
    model = {"path": "base/tiny", "adapter": {"tuningJob": "faq"}}
    desired = wanted(make_tuning_job(model=model, status=VALID), adapter=make_tuning_job())
    assert condition(desired, "Succeeded") == ("False", "InvalidInput")


def test_a_job_that_starts_from_itself_is_refused_before_anything_runs() -> None:
    desired = wanted(make_tuning_job(model={"path": "base/tiny", "adapter": {"tuningJob": "faq"}}))
    assert condition(desired, "Succeeded") == ("False", "InvalidInput")
    assert created(desired) == []


def test_jobs_that_wait_for_each_other_are_told_so() -> None:
    chain = ("first", "second", "faq")
    desired = wanted(make_tuning_job(model=FROM_FIRST, status=VALID), adapter=make_tuning_job("first"), chain=chain)
    assert condition(desired, "Stalled") == ("True", "InvalidInput")
    assert "faq -> first -> second -> faq" in message(desired, "Stalled")
    assert condition(desired, "Finished")[0] == "False", "another TuningJob of the name may be applied"
    waiting = wanted(make_tuning_job(model=FROM_FIRST, status=VALID), adapter=make_tuning_job("first"), chain=chain[:2])
    assert condition(waiting, "Stalled")[0] == "False"


def test_a_start_that_is_there_is_written_down_at_once_since_it_may_be_deleted_before_the_check_has_ended() -> None:
    first = make_tuning_job("first", status=make_status(Finished="True", Succeeded="True"))
    desired = wanted(make_tuning_job(model=FROM_FIRST), adapter=first, jobs=[make_job(CHECK)], pods=[make_pod(CHECK)])
    assert desired.status is not None
    assert desired.status["startAdapterModelId"] == MODEL_ID
    checked = {"jobs": [make_job(CHECK, complete=60)], "pods": [CHECKED_POD]}
    again = wanted(make_tuning_job(model=FROM_FIRST, status=desired.status), **checked)
    assert (created(again), start_of(again)) == (["faq-train"], MODEL_ID)


def test_a_start_by_model_id_waits_for_nothing() -> None:
    model = {"path": "base/tiny", "adapter": {"modelId": "ft_sft_x"}}
    assert start_of(wanted(make_tuning_job(model=model, status=VALID))) == "ft_sft_x"
    assert start_of(wanted(make_tuning_job(model=model))) == "ft_sft_x"


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


# --- suspend and Kueue -----------------------------------------------------------------------------------------------


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


# --- stuck and failing -----------------------------------------------------------------------------------------------


def test_a_stuck_child_stalls_it() -> None:
    pod = make_pod(phase="Pending", scheduled="0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job()], pods=[pod])
    assert condition(desired, "Stalled") == ("True", "Unschedulable")
    assert condition(desired, "Reconciling") == ("True", "Starting")
    assert [(e.type, e.reason) for e in desired.events] == [("Warning", "Unschedulable")]
    assert desired.requeue_after is None
    running = wanted(make_tuning_job(status=desired.status), jobs=[make_job()], pods=[make_pod()])
    assert condition(running, "Stalled") == ("False", "NotStalled")


def test_events_are_asked_for_when_nothing_else_tells_and_ever_more_seldom() -> None:
    job = make_tuning_job(status=VALID)
    looks = [
        (d.needs_events, d.requeue_after) for s in (1, 6, 60, 600) for d in [wanted(job, seconds=s, jobs=[make_job()])]
    ]
    assert looks == [(False, 4), (True, 5), (True, 11), (True, 30)]


def test_the_warning_that_was_asked_for_stalls_it() -> None:
    warning = make_warning(make_job(), "FailedCreate", "Error creating: x violates PodSecurity y")
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job()], warnings=[warning])
    assert condition(desired, "Stalled") == ("True", "PodSecurityDenied")


def test_attempts_are_told_while_the_job_goes_on() -> None:
    pods = [make_pod(phase="Failed", exit_code=137, reason="OOMKilled"), make_pod(number=2, created=60)]
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job(failures=1)], pods=pods)
    assert condition(desired, "Stalled") == ("True", "OutOfMemory")
    assert message(desired, "Stalled").startswith("attempt 1 of 4 failed: ")
    assert condition(desired, "Trained") == ("Unknown", "Training")
    assert desired.requeue_after == 51


def test_a_name_that_somebody_else_has() -> None:
    desired = wanted(jobs=[make_job(CHECK, owner="somebody", owner_name="other")])
    assert (created(desired), desired.delete) == ([], [])
    assert condition(desired, "Stalled") == ("True", "NameTaken")
    assert desired.requeue_after == 30


def test_what_a_namesake_left_over_is_waited_for_without_alarm() -> None:
    desired = wanted(jobs=[make_job(CHECK, owner="earlier")])
    assert (created(desired), desired.delete) == ([], [])
    assert condition(desired, "Stalled") == ("False", "NotStalled")


def test_a_stored_spec_that_this_version_does_not_know() -> None:
    desired = wanted(make_tuning_job(lora={"rank": 0}))
    assert created(desired) == []
    assert condition(desired, "Stalled") == ("True", "SpecInvalid")
    assert "spec.lora.rank" in message(desired, "Stalled")
    assert condition(desired, "Finished") == ("False", "Running")


# --- GPUs that cannot be joined --------------------------------------------------------------------------------------

SLICES = SETTINGS.model_copy(update={"gpu_resource": "nvidia.com/mig-3g.40gb"})
TWO_GPUS = make_tuning_job(resources={"gpus": 2})


def test_several_slices_are_refused_before_anything_is_begun_and_not_tried_again() -> None:
    desired = desire(make_observed(TWO_GPUS), SLICES, after(1))
    assert created(desired) == []
    assert desired.requeue_after is None
    assert condition(desired, "Stalled") == ("True", "GPUsNotCombinable")
    assert condition(desired, "Finished")[0] == "False"
    assert "spec.resources.gpus: must be at most 1" in message(desired, "Stalled")
    assert desired.status is not None
    again = desire(make_observed({**TWO_GPUS, "status": desired.status}), SLICES, after(3600))
    assert (again.status, again.events) == (desired.status, [])


def test_what_was_refused_starts_once_the_operator_hands_out_whole_gpus() -> None:
    refused = desire(make_observed(TWO_GPUS), SLICES, after(1))
    desired = desire(make_observed({**TWO_GPUS, "status": refused.status}), SETTINGS, after(60))
    assert created(desired) == ["faq-check"]
    assert condition(desired, "Stalled") == ("False", "NotStalled")


def test_a_training_that_has_begun_is_followed_to_its_end_whatever_gpus_are_now() -> None:
    observed = make_observed({**TWO_GPUS, "status": VALID}, jobs=[make_job(TRAIN)])
    assert condition(desire(observed, SLICES, after(1)), "Stalled") == ("False", "NotStalled")


def test_one_that_is_suspended_says_that_alone() -> None:
    desired = desire(make_observed(make_tuning_job(resources={"gpus": 2}, suspend=True)), SLICES, after(1))
    assert condition(desired, "Suspended")[0] == "True"
    assert condition(desired, "Stalled")[0] == "False"
