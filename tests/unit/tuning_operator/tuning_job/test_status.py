from __future__ import annotations

import pytest

from llm_tuning.api.conditions import ConditionType
from llm_tuning.api.kube import Condition
from tests.support.operator_objects import START, make_observed, make_status, make_tuning_job
from tuning_operator.core.desired import Desired, Event
from tuning_operator.tuning_job.stages import STAGES
from tuning_operator.tuning_job.status import Draft


def conditions(message: str = "", **given: str) -> list[Condition]:
    listed = make_observed(make_tuning_job(status=make_status(**given))).status.conditions
    return [c.model_copy(update={"message": message}) for c in listed]


def events_of(old: list[Condition], new: list[Condition]) -> list[Event]:
    """What a pass records that changes `old` to `new`."""
    raw = make_tuning_job(serve={"name": "faq"}, status={"conditions": [c.model_dump(by_alias=True) for c in old]})
    draft, desired = Draft(make_observed(raw), START, STAGES), Desired()
    for condition in new:
        draft.conditions.set(ConditionType(condition.type), condition.status, condition.reason, condition.message)
    draft.record_in(desired)
    return desired.events


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {"DatasetValid": "True/DatasetValid"}, [("Normal", "DatasetValid")]),
        ({"DatasetValid": "Unknown/Checking"}, {"DatasetValid": "True/DatasetValid"}, [("Normal", "DatasetValid")]),
        ({"Trained": "True/Trained"}, {"Trained": "True/Trained"}, []),
        ({}, {"Reconciling": "True/Checking"}, []),
        ({}, {"Reconciling": "True/AdapterJobNotFound"}, [("Normal", "AdapterJobNotFound")]),
        ({"Reconciling": "True/Starting"}, {"Reconciling": "True/Training"}, [("Normal", "Training")]),
        ({"Stalled": "False/NotStalled"}, {"Stalled": "True/Unschedulable"}, [("Warning", "Unschedulable")]),
        ({"Stalled": "True/Unschedulable"}, {"Stalled": "True/ClaimPending"}, [("Warning", "ClaimPending")]),
        ({"Stalled": "True/Unschedulable"}, {"Stalled": "False/NotStalled"}, []),
        ({}, {"Suspended": "True/Suspended"}, [("Normal", "Suspended")]),
        ({}, {"DatasetValid": "False/DatasetInvalid", "Succeeded": "False/DatasetInvalid", "Finished": "True/Finished"},
         [("Warning", "DatasetInvalid")]),
    ],
)  # fmt: skip
def test_what_is_told(old: dict[str, str], new: dict[str, str], told: list[tuple[str, str]]) -> None:
    assert [(e.type, e.reason) for e in events_of(conditions(**old), conditions(**new))] == told


def test_the_event_has_the_conditions_words() -> None:
    events = events_of([], conditions("no node takes the pod", Stalled="True/Unschedulable"))
    assert [e.message for e in events] == ["no node takes the pod"]


def test_each_failed_attempt_is_told_and_other_words_of_a_stage_are_not() -> None:
    first = conditions("attempt 1 of 4", Stalled="True/TrainerFailing")
    assert events_of(first, first) == []
    second = events_of(first, conditions("attempt 2 of 4", Stalled="True/TrainerFailing"))
    assert [e.message for e in second] == ["attempt 2 of 4"]
    assert events_of(conditions("a", Trained="True/Trained"), conditions("b", Trained="True/Trained")) == []
