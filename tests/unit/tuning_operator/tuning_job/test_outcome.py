"""How a Job ended, by what the Job, its pods and the pods' own results say."""

from __future__ import annotations

import pytest

from llm_tuning.api.conditions import Reason
from llm_tuning.pod.contract import CheckResult, TrainResult
from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.operator_objects import (
    CHECKED,
    TRAINED,
    Raw,
    after,
    make_job,
    make_observed,
    make_pod,
    make_tuning_job,
)
from tuning_operator.pods.observed import Child
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.outcome import (
    failing,
    failure_of,
    result_of,
    seconds_undecided,
)
from tuning_operator.tuning_job.stage import JobStage
from tuning_operator.tuning_job.stages import STAGES

STAGE = {stage.role.name: stage for stage in STAGES if isinstance(stage, JobStage)}
SPEC = make_observed(make_tuning_job(activeDeadlineSeconds=90)).spec
REFUSED = {"ok": False, "reason": "DatasetInvalid", "message": "row 3: prompt is empty"}
NO_GPU = {"ok": False, "reason": "GPUUnavailable", "message": "no CUDA device"}


def child_of(job: Raw, *pods: Raw, role: str = TRAIN) -> Child:
    return make_observed(jobs=[job], pods=pods).children[role]


def failed_pod(number: int = 1, code: int = 1, *, role: str = TRAIN, **arguments: object) -> Raw:
    made: Raw = {"phase": "Failed", "exit_code": code, "number": number, "created": number, **arguments}
    return make_pod(role, **made)


def why(child: Child, role: str = TRAIN) -> Trouble:
    assert SPEC is not None
    return failure_of(child, STAGE[role], SPEC)


# --- results ---------------------------------------------------------------------------------------------------------


def test_results_are_read_from_the_pod_that_succeeded() -> None:
    pods = [failed_pod(result=NO_GPU), make_pod(number=2, created=5, phase="Succeeded", result=TRAINED)]
    result = result_of(child_of(make_job(complete=60), *pods), TrainResult)
    assert result is not None
    assert result.model_id == TRAINED["modelId"]
    check = make_pod(CHECK, phase="Succeeded", result=CHECKED)
    assert result_of(child_of(make_job(CHECK, complete=60), check, role=CHECK), CheckResult) is not None


@pytest.mark.parametrize("message", ["", "the end of some log", '{"ok": tru'])
def test_a_lost_or_broken_result_is_none(message: str) -> None:
    pod = make_pod(phase="Succeeded", result=message)
    assert result_of(child_of(make_job(complete=60), pod), TrainResult) is None
    assert result_of(child_of(make_job(complete=60)), TrainResult) is None


# --- what is not fully seen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("child", "seconds"),
    [
        (child_of(make_job(complete=60)), 4),  # Job first, pod later
        (child_of(make_job(complete=60), make_pod()), 4),
        (child_of(make_job(complete=60), make_pod(phase="Succeeded")), None),
        (child_of(make_job(complete=50)), None),  # gone for good
        (child_of(make_job(failed="PodFailurePolicy", failures=1)), 4),
        (child_of(make_job(failed="PodFailurePolicy", failures=2), failed_pod()), 4),  # the decisive one is not seen
        (child_of(make_job(failed="PodFailurePolicy", failures=1), failed_pod()), None),
        (child_of(make_job(failed="DeadlineExceeded", failures=1)), None),
        (child_of(make_job(), make_pod(phase="Succeeded", ended=60)), 4),  # pod first, Job later
        (child_of(make_job(), failed_pod(code=64, ended=60)), 4),
        (child_of(make_job(retries=0), failed_pod(ended=60)), 4),
        (child_of(make_job(retries=0), failed_pod(ended=40)), None),
        (child_of(make_job(retries=1), failed_pod(ended=60)), None),  # there will be another attempt
        (child_of(make_job(retries=0), failed_pod(ended=60, disrupted=True)), None),
        (child_of(make_job(retries=0, deleting=True), failed_pod(ended=60)), None),
        (child_of(make_job()), None),
    ],
)
def test_how_long_a_half_seen_end_is_waited_for(child: Child, seconds: float | None) -> None:
    assert seconds_undecided(child, after(61)) == seconds


# --- ended for good --------------------------------------------------------------------------------------------------


def test_exit_64_has_the_pods_own_reason_and_message() -> None:
    child = child_of(make_job(failed="PodFailurePolicy"), failed_pod(code=64, result=REFUSED))
    assert why(child) == Trouble("DatasetInvalid", "row 3: prompt is empty")


@pytest.mark.parametrize(("role", "reason"), [(CHECK, Reason.DATASET_INVALID), (TRAIN, Reason.INVALID_INPUT)])
def test_exit_64_without_a_result(role: str, reason: str) -> None:
    pod = failed_pod(code=64, role=role, result="log line\nInputError: no such folder\n")
    failure = why(child_of(make_job(role, failed="PodFailurePolicy"), pod, role=role), role)
    assert failure.reason == reason
    assert "exit code 64: InputError: no such folder" in failure.message
    gone = why(child_of(make_job(role, failed="PodFailurePolicy"), role=role), role)
    assert gone.reason == reason
    assert "its pods were deleted, so the cause is unknown; see the Events" in gone.message


def test_the_deadline() -> None:
    failure = why(child_of(make_job(failed="DeadlineExceeded"), failed_pod(code=75, result=NO_GPU)))
    assert failure.reason == Reason.DEADLINE_EXCEEDED
    assert "spec.activeDeadlineSeconds (90 s)" in failure.message


@pytest.mark.parametrize(
    ("last", "reason", "words"),
    [
        ({"reason": "OOMKilled", "code": 137}, Reason.OUT_OF_MEMORY, "spec.resources.memory (8Gi)"),
        ({"code": 75, "result": NO_GPU}, Reason.GPU_UNAVAILABLE, "no CUDA device"),
        (
            {"code": 75, "result": {"ok": False, "reason": "Busy", "message": "volume busy"}},
            "RetriesExhausted",
            "volume",
        ),
        ({"code": 1, "result": "Traceback\nImportError: libx.so\n"}, Reason.RETRIES_EXHAUSTED, "ImportError: libx.so"),
        ({"code": 137}, Reason.RETRIES_EXHAUSTED, "exit code 137 (SIGKILL, often out of memory)"),
    ],
)
def test_all_retries_used_up(last: Raw, reason: str, words: str) -> None:
    job = make_job(failed="BackoffLimitExceeded", failures=3)
    failure = why(child_of(job, failed_pod(1), failed_pod(2), failed_pod(3, **last)))
    assert failure.reason == reason
    assert failure.message.startswith("the training failed 3 times; last: ")
    assert words in failure.message


def test_one_attempt_is_not_counted() -> None:
    failure = why(child_of(make_job(failed="BackoffLimitExceeded"), failed_pod()))
    assert failure.message.startswith("the training failed: exit code 1; see `kubectl logs faq-train-1`")


def test_retries_used_up_and_no_pod_left() -> None:
    failure = why(child_of(make_job(failed="BackoffLimitExceeded")))
    assert failure == Trouble(
        "RetriesExhausted",
        "the training failed: the Job has failed; its pods were deleted, so the cause is unknown; see the Events",
    )


def test_a_check_that_runs_out_of_memory_names_the_operators_setting() -> None:
    pod = failed_pod(137, role=CHECK, reason="OOMKilled")
    failure = why(child_of(make_job(CHECK, failed="BackoffLimitExceeded"), pod, role=CHECK), CHECK)
    assert failure.reason == Reason.OUT_OF_MEMORY
    assert "Helm value dataCheck.memory" in failure.message


def test_a_pod_that_the_kubelet_failed_without_a_container() -> None:
    pod = failed_pod()
    pod["status"] = {"phase": "Failed", "reason": "NodeAffinity", "message": "Pod was rejected\nno such label"}
    failure = why(child_of(make_job(failed="BackoffLimitExceeded"), pod))
    assert "pod faq-train-1 failed: no such label" in failure.message


# --- while it goes on ------------------------------------------------------------------------------------------------


def tell(child: Child, at: float = 61) -> tuple[Trouble, float | None] | None:
    assert SPEC is not None
    return failing(child, STAGE[TRAIN], SPEC, after(at))


def test_a_failed_attempt_is_told_until_the_next_has_run_for_a_while() -> None:
    job = make_job(failures=1)
    told = tell(child_of(job, failed_pod()))
    assert told is not None
    assert told[0].reason == Reason.TRAINER_FAILING
    assert told[0].message.startswith("attempt 1 of 4 failed: exit code 1")
    running = make_pod(number=2, created=60)
    again = tell(child_of(job, failed_pod(), running), at=71)
    assert again == (told[0], 50)  # looked at again once it is settled
    assert tell(child_of(job, failed_pod(), running), at=121) is None


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (failed_pod(code=137, reason="OOMKilled"), Reason.OUT_OF_MEMORY),
        (failed_pod(code=75, result=NO_GPU), Reason.GPU_UNAVAILABLE),
        (failed_pod(code=1), Reason.TRAINER_FAILING),
    ],
)
def test_reasons_of_attempts(pod: Raw, reason: str) -> None:
    told = tell(child_of(make_job(), pod))
    assert told is not None
    assert told[0].reason == reason


def test_nothing_failed() -> None:
    assert tell(child_of(make_job())) is None
    assert tell(child_of(make_job(), make_pod())) is None
    assert tell(child_of(make_job(), failed_pod(disrupted=True))) is None
    assert tell(child_of(make_job(complete=60), failed_pod())) is None
