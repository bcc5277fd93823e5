"""Passes over a TuningJob that does not go on by itself, and what is said of it."""

from __future__ import annotations

from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.desires import VALID, condition, created, message, wanted
from tests.support.operator_objects import SETTINGS, make_job, make_pod, make_tuning_job, make_warning

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
    desired = wanted(TWO_GPUS, settings=SLICES, seconds=1)
    assert created(desired) == []
    assert desired.requeue_after is None
    assert condition(desired, "Stalled") == ("True", "GPUsNotCombinable")
    assert condition(desired, "Finished")[0] == "False"
    assert "spec.resources.gpus: must be at most 1" in message(desired, "Stalled")
    assert desired.status is not None
    again = wanted({**TWO_GPUS, "status": desired.status}, settings=SLICES, seconds=3600)
    assert (again.status, again.events) == (desired.status, [])


def test_what_was_refused_starts_once_the_operator_hands_out_whole_gpus() -> None:
    refused = wanted(TWO_GPUS, settings=SLICES, seconds=1)
    desired = wanted({**TWO_GPUS, "status": refused.status}, seconds=60)
    assert created(desired) == ["faq-check"]
    assert condition(desired, "Stalled") == ("False", "NotStalled")


def test_a_training_that_has_begun_is_followed_to_its_end_whatever_gpus_are_now() -> None:
    desired = wanted({**TWO_GPUS, "status": VALID}, jobs=[make_job(TRAIN)], settings=SLICES, seconds=1)
    assert condition(desired, "Stalled") == ("False", "NotStalled")


def test_one_that_is_suspended_says_that_alone() -> None:
    desired = wanted(make_tuning_job(resources={"gpus": 2}, suspend=True), settings=SLICES, seconds=1)
    assert condition(desired, "Suspended")[0] == "True"
    assert condition(desired, "Stalled")[0] == "False"
