"""Rows of preferences and of labels: two answers of which one is better, and an answer that is good or bad."""

from __future__ import annotations

from dataclasses import dataclass

from llm_tuning.data.faults import Reason, RowFault, got
from llm_tuning.data.rows import Conversation, NumberField, Row, Shape
from llm_tuning.data.shapes import prompt_and
from llm_tuning.data.values import flag

_CHOSEN, _REJECTED = prompt_and("chosen"), prompt_and("rejected")


def _pair(row: Row) -> tuple[Conversation, ...]:
    chosen, rejected = *_CHOSEN(row), *_REJECTED(row)
    if chosen == rejected:
        rule = "`chosen` and `rejected` are the same, so nothing is better"
        raise RowFault(Reason.AMBIGUOUS, rule, "remove the row")
    return chosen, rejected


PREFERENCE = Shape("prompt/chosen/rejected", ("prompt", "chosen", "rejected"), _pair, history=True)


@dataclass(frozen=True)
class LabelField(NumberField):
    """Whether the answer of a row is good (1) or bad (0)."""

    def read(self, row: Row) -> float:
        """Return the label of `row`; raises RowFault."""
        name = next((name for name in self.names if row.get(name) is not None), None)
        if name is None:
            return super().read(row)
        label = flag(row[name])
        if label is None:
            rule = f"`{name}` must be true or false, got {got(row[name])}"
            raise RowFault(Reason.REWARD_NOT_A_NUMBER, rule, "write true for a good answer and false for a bad one")
        return float(label)
