"""Collect the conditions of one reconcile; a transition time changes only with its status."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum

from llm_tuning.api.conditions import Reason
from llm_tuning.api.kube import Condition
from tuning_operator.core.constants import MESSAGE_CHARACTERS

UNKNOWN, TRUE, FALSE = "Unknown", "True", "False"
SPEC_UNKNOWN = "this version of the operator does not know such a spec"


class Conditions:
    """Begins with what the status has; what was never set is Unknown."""

    def __init__(self, kinds: Iterable[StrEnum], old: Sequence[Condition], generation: int, now: datetime) -> None:
        self._kinds = tuple(kinds)
        self._old = {condition.type: condition for condition in old}
        self._now = timestamp(now)
        self._generation = generation
        self._new: dict[str, Condition] = {}
        for kind in self._kinds:
            known = self._old.get(kind)
            if known is None:
                self.set(kind, UNKNOWN, Reason.PENDING, "")
            else:
                self.set(kind, known.status, known.reason, known.message)

    def set(self, kind: StrEnum, status: str, reason: str, message: str = "") -> None:
        """Set a condition; its message is cut to what a table can show."""
        old = self._old.get(kind)
        if len(message) > MESSAGE_CHARACTERS:
            message = message[: MESSAGE_CHARACTERS - 3].rstrip() + "..."
        self._new[kind] = Condition(
            type=kind.value,
            status=status,  # type: ignore[arg-type]
            reason=str(reason),
            message=message,
            observed_generation=self._generation,
            last_transition_time=old.last_transition_time if old and old.status == status else self._now,
        )

    def set_steadily(self, kind: StrEnum, status: str, reason: str, message: str) -> None:
        """Set a condition, but keep its message where only numbers differ.

        Kubernetes counts nodes and quotas in its words; on a busy cluster every waiting job would be written for each.
        """
        old = self._old.get(kind)
        same = old is not None and (old.status, old.reason) == (status, reason)
        if old is not None and same and _without_numbers(old.message) == _without_numbers(message):
            message = old.message
        self.set(kind, status, reason, message)

    def holds(self, kind: StrEnum) -> bool:
        return self._new[kind].status == TRUE

    def get(self, kind: StrEnum) -> Condition:
        return self._new[kind]

    def as_list(self) -> list[Condition]:
        """Return the conditions in the order of the kinds."""
        return [self._new[kind] for kind in self._kinds]


def timestamp(time: datetime) -> str:
    """Format a time as Kubernetes does: RFC 3339 in UTC, whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _without_numbers(message: str) -> str:
    return re.sub(r"\d+", "#", message)
