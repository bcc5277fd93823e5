"""Rows whose answer is marked as good or bad, by a label or by a rating and a threshold."""

from __future__ import annotations

from dataclasses import dataclass

from llm_tuning.data.faults import Reason, RowFault, got, shown
from llm_tuning.data.rows import NumberField, Row
from llm_tuning.data.values import flag, is_set

GOOD, BAD = 1.0, 0.0
LABELS = ("label", "kto_tag")
"""TRL's name and LLaMA-Factory's."""
RATINGS = ("reward", "rating")


@dataclass(frozen=True)
class LabelField(NumberField):
    """Whether an answer is good (1.0) or bad (0.0), as its label or its rating says."""

    threshold: float | None = None
    """Answers that are rated so or higher are good; without it ratings are refused."""
    threshold_field: str = "threshold"
    """Who gives it, as a fix says it."""

    @property
    def ratings(self) -> tuple[str, ...]:
        """The names of ratings."""
        return RATINGS

    def read(self, row: Row) -> float:
        """Return GOOD or BAD; raises RowFault."""
        labels = {name: row[name] for name in LABELS if is_set(row.get(name))}
        is_rated = any(row.get(name) is not None for name in RATINGS)
        if labels:
            said = {name: self._read_label(name, value) for name, value in labels.items()}
            if is_rated and self.threshold is not None:
                said[next(name for name in RATINGS if row.get(name) is not None)] = self._read_rating(row)
            if len(set(said.values())) > 1:
                rule = f"{' and '.join(f'`{name}`' for name in said)} say different things"
                raise RowFault(Reason.AMBIGUOUS, rule, "keep the one that is meant")
            return next(iter(said.values()))
        if is_rated:
            return self._read_rating(row)
        empty = next((name for name in LABELS if name in row), None)
        rule = f"`{LABELS[0]}` is missing" if empty is None else f"`{empty}` is empty"
        raise RowFault(Reason.MISSING_LABEL, rule, self.needed)

    def _read_rating(self, row: Row) -> float:
        name = next(name for name in RATINGS if row.get(name) is not None)
        rating = NumberField(RATINGS, self.needed).read(row)
        if self.threshold is None:
            rule = f"`{name}` rates the answer, and no rating is said to be good"
            fix = f"give {self.threshold_field}: answers with that rating or a higher one are good, the others bad"
            raise RowFault(Reason.MISSING_LABEL, rule, fix)
        return GOOD if rating >= self.threshold else BAD

    def _read_label(self, name: str, value: object) -> float:
        label = flag(value)
        if label is None:
            rule = f"`{shown(name)}` must be true or 1 (a good answer), false or 0 (a bad one), got {got(value)}"
            fix = f"write it so; a rating stands in `{RATINGS[0]}`, with {self.threshold_field}"
            raise RowFault(Reason.LABEL_NOT_A_FLAG, rule, fix)
        return GOOD if label else BAD
