from __future__ import annotations

from llm_tuning.api.conditions import ConditionType, Reason
from tests.support.operator_objects import after, make_observed, make_status, make_tuning_job
from tuning_operator.core.conditions import FALSE, TRUE, UNKNOWN, Conditions, timestamp
from tuning_operator.core.constants import MESSAGE_CHARACTERS
from tuning_operator.tuning_job.stages import STAGES
from tuning_operator.tuning_job.status import conditions_of

C = ConditionType


def made(*, generation: int = 1, seconds: float = 60, **old: str) -> Conditions:
    job = make_tuning_job(status=make_status(**old), generation=generation)
    return conditions_of(make_observed(job), after(seconds), STAGES)


def test_all_are_set_on_the_first_visit() -> None:
    listed = conditions_of(make_observed(), after(0), STAGES).as_list()
    assert [c.type for c in listed] == [kind for kind in ConditionType if kind not in (C.FETCHED, C.SERVED)]
    assert {(c.status, c.reason, c.last_transition_time) for c in listed} == {
        ("Unknown", "Pending", timestamp(after(0)))
    }


def test_a_transition_time_changes_only_with_the_status() -> None:
    conditions = made(Trained="Unknown/Starting")
    conditions.set(C.TRAINED, UNKNOWN, Reason.TRAINING, "other words")
    assert conditions.get(C.TRAINED).last_transition_time == timestamp(after(0))
    conditions.set(C.TRAINED, TRUE, Reason.TRAINED)
    assert conditions.get(C.TRAINED).last_transition_time == timestamp(after(60))


def test_set_twice_in_a_pass_only_the_last_counts() -> None:
    conditions = made(Stalled="True/Unschedulable")
    conditions.set(C.STALLED, FALSE, Reason.NOT_STALLED)
    conditions.set(C.STALLED, TRUE, Reason.UNSCHEDULABLE)
    assert conditions.get(C.STALLED).last_transition_time == timestamp(after(0))


def test_every_condition_tells_of_the_newest_generation() -> None:
    assert {c.observed_generation for c in made(generation=3, Trained="True").as_list()} == {3}


def test_a_long_message_is_cut() -> None:
    conditions = made()
    conditions.set(C.STALLED, TRUE, Reason.UNSCHEDULABLE, "word " * 1000)
    message = conditions.get(C.STALLED).message
    assert len(message) <= MESSAGE_CHARACTERS
    assert message.endswith("...")


def test_numbers_in_the_words_of_kubernetes_are_no_news() -> None:
    old = make_status(Stalled="True/Unschedulable")
    old["conditions"][0]["message"] = "0/9 nodes are available: 4 Insufficient cpu"
    conditions = conditions_of(make_observed(make_tuning_job(status=old)), after(60), STAGES)
    conditions.set_steadily(C.STALLED, TRUE, Reason.UNSCHEDULABLE, "0/12 nodes are available: 7 Insufficient cpu")
    assert conditions.get(C.STALLED).message == "0/9 nodes are available: 4 Insufficient cpu"
    conditions.set_steadily(C.STALLED, TRUE, Reason.UNSCHEDULABLE, "0/12 nodes are available: 7 Insufficient memory")
    assert conditions.get(C.STALLED).message.endswith("7 Insufficient memory")
    conditions.set_steadily(C.STALLED, TRUE, Reason.QUOTA_EXCEEDED, "0/9 nodes are available: 4 Insufficient cpu")
    assert conditions.get(C.STALLED).reason == Reason.QUOTA_EXCEEDED
