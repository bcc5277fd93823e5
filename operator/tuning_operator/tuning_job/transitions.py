"""Events for what has changed between two lists of conditions: told once, when it happens."""

from __future__ import annotations

from collections.abc import Sequence

from llm_tuning.api.conditions import ConditionType, Reason
from llm_tuning.api.kube import Condition
from tuning_operator.core.desired import Event

NORMAL, WARNING = "Normal", "Warning"
C = ConditionType

TOLD: dict[tuple[str, str], str] = {
    (C.DATASET_VALID, "True"): NORMAL,
    (C.TRAINED, "True"): NORMAL,
    (C.EVALUATED, "True"): NORMAL,
    (C.SERVED, "True"): NORMAL,
    (C.SERVED, "False"): WARNING,
    (C.SUSPENDED, "True"): NORMAL,
    (C.SUCCEEDED, "True"): NORMAL,
    (C.SUCCEEDED, "False"): WARNING,
    (C.STALLED, "True"): WARNING,
}
"""The other conditions say the same at the same moment."""
REASONS_TOLD = (Reason.WAITING_FOR_ADAPTER, Reason.ADAPTER_JOB_NOT_FOUND, Reason.QUEUED, Reason.TRAINING)
"""Of Reconciling: what a job waits for, and that it trains."""


def events_of(old: Sequence[Condition], new: Sequence[Condition]) -> list[Event]:
    """One Event for each condition that came to be so, or is so for another reason; each failed attempt is one."""
    before = {condition.type: _told(condition) for condition in old}
    events = []
    for condition in new:
        if before.get(condition.type) == _told(condition):
            continue
        kind = TOLD.get((condition.type, condition.status))
        if condition.type == C.RECONCILING and condition.reason in REASONS_TOLD:
            kind = NORMAL
        if kind is not None:
            events.append(Event(kind, condition.reason, condition.message))
    return events


def _told(condition: Condition) -> tuple[str, ...]:
    message = condition.message if condition.type == C.STALLED else ""
    return condition.status, condition.reason, message
