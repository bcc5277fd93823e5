"""A TuningJob that goes on from another's adapter: what waits for it, and what becomes of it when that fails."""

from __future__ import annotations

import pytest

from llm_tuning.pod.contract import PodInput
from llm_tuning.pod.roles import CHECK
from tests.support.desires import CHECKED_POD, VALID, condition, created, message, phase, wanted
from tests.support.operator_objects import MODEL_ID, Raw, jobs_in, make_job, make_pod, make_status, make_tuning_job
from tuning_operator.core.desired import Desired

FROM_FIRST: Raw = {"path": "base/tiny", "adapter": {"tuningJob": "first"}}


def start_of(desired: Desired) -> str | None:
    container = jobs_in(desired)[0]["spec"]["template"]["spec"]["containers"][0]
    text = next(v["value"] for v in container["env"] if v["name"] == "LLM_TUNING_POD")
    return PodInput.model_validate_json(text).start_model_id


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
