"""What a reconcile wants: children, status, Events, and when the next one is due. Data; the reconciler applies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_tuning.api.kube import Condition

NORMAL, WARNING = "Normal", "Warning"


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event on the custom resource; `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class EventRule:
    """Which status of a condition is recorded as an Event, and of which type."""

    condition: str
    status: str
    type: str
    reasons: tuple[str, ...] = ()
    """Only these, where any are named."""
    but: tuple[str, ...] = ()
    """Never these: the normal course of things."""
    each_message: bool = False
    """Whether another message alone is another Event, as each failed attempt is."""

    def covers(self, condition: Condition) -> bool:
        """Return whether an Event is recorded for the condition as it is now."""
        if (condition.type, condition.status) != (self.condition, self.status) or condition.reason in self.but:
            return False
        return not self.reasons or condition.reason in self.reasons

    def is_news(self, old: Condition | None, new: Condition) -> bool:
        """Return whether status or reason changed, or the message, where each message is recorded."""
        if old is None or (old.status, old.reason) != (new.status, new.reason):
            return True
        return self.each_message and old.message != new.message


def events_of(rules: Sequence[EventRule], old: Sequence[Condition], new: Sequence[Condition]) -> list[Event]:
    """List the Events of what changed between two lists of conditions: each once, when it happens."""
    before = {condition.type: condition for condition in old}
    events = []
    for condition in new:
        rule = next((rule for rule in rules if rule.covers(condition)), None)
        if rule is not None and rule.is_news(before.get(condition.type), condition):
            events.append(Event(rule.type, condition.reason, condition.message))
    return events


@dataclass(frozen=True)
class ObjectRef:
    """An object that is to be deleted, exactly this one."""

    kind: str
    name: str
    uid: str


@dataclass
class Desired:
    """`status` None: nothing is to be written."""

    create: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Kind and body of what is not there, in this order. A Job or custom resource is made once, never changed."""
    apply: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """The same of what is there, is ours, and has drifted."""
    delete: list[ObjectRef] = field(default_factory=list)
    status: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)
    requeue_after: float | None = None
    needs_events: bool = False
    """Something waits without saying why in its own status: the Warning Events are to be read, then decided again."""
    needs_pods: bool = False
    """A pod that should be there is not seen: pods are to be read, then decided again. A watch may have lost it."""

    def requeue(self, seconds: float) -> None:
        """Ask for another reconcile in at most `seconds`."""
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)
