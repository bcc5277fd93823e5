"""Well-known data sets whose rows have no shape of ours: what to do with them, by the fields that only they have.

Where names alone are others the fix is columns; where values have to be brought into another form it is the section of
docs/other-rows.md with the lines of Python that do it. A test holds each entry to a file of its data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.rows import FORMS, Row, RowForm
from llm_tuning.data.values import is_given

PAGE = "docs/other-rows.md"

Holds = Literal["answers", "ratings", "pairs"]
"""What rows have to learn from: answers, answers that are rated, or two answers of which one is better."""


@dataclass(frozen=True)
class KnownSet:
    """Rows of a published form."""

    title: str
    fields: tuple[str, ...]
    """All of them are in a row, with a value."""
    what: str
    """What the row is, after "is a row of ...: "."""
    holds: Holds
    section: str = ""
    """Of PAGE, with the lines that convert it."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """These make the row work as it is."""
    fits: Callable[[Row], bool] = lambda row: True

    def modes(self) -> list[str]:
        """Return which modes learn from such rows, once they are converted."""
        return [form.mode for form in FORMS.values() if self.suits(form)]

    def suits(self, form: RowForm) -> bool:
        """Return whether a mode learns from what the rows hold."""
        match self.holds:
            case "answers":
                return form.number is None and not form.sides
            case "ratings":
                return form.number is not None
            case "pairs":
                return bool(form.sides)

    def fault(self, form: RowForm) -> RowFault:
        """Build the refusal of such a row."""
        parts = []
        modes = self.modes()
        if form.mode not in modes:
            parts.append(" or ".join(f"{{set:mode={mode}}}" for mode in modes))
        if self.columns:
            parts.append(f"{{set:dataset.columns={','.join(f'{own}={given}' for own, given in self.columns.items())}}}")
        else:
            parts.append(f"{PAGE}#{self.section} has the lines of Python that convert such rows")
        rule = f"has the fields of {self.title}: {self.what}"
        return RowFault(Reason.UNKNOWN_SHAPE, rule, ", and ".join(parts))


def _items_have(name: str, *fields: str) -> Callable[[Row], bool]:
    def fits(row: Row) -> bool:
        value = row[name]
        return isinstance(value, list) and all(isinstance(item, dict) and item.keys() >= {*fields} for item in value)

    return fits


def _is_text(name: str, *parts: str) -> Callable[[Row], bool]:
    def fits(row: Row) -> bool:
        value: Any = row[name]
        return isinstance(value, str) and all(part in value for part in parts)

    return fits


SETS = (
    KnownSet(
        "xLAM (xlam-function-calling-60k)",
        ("query", "answers", "tools"),
        "calls without turns, and tools with types of Python",
        "answers",
        "calls-of-xlam",
    ),
    KnownSet(
        "Glaive (glaive-function-calling-v2)",
        ("system", "chat"),
        "a conversation with its calls and tools written down as text",
        "answers",
        "calls-of-glaive",
        fits=_is_text("chat", "USER:", "ASSISTANT:"),
    ),
    KnownSet(
        "s1K",
        ("question", "attempt", "thinking_trajectories"),
        "`solution` is the reference, and `attempt` the answer with its reasoning",
        "answers",
        columns={"prompt": "question", "output": "attempt", "reasoning_content": "thinking_trajectories"},
    ),
    KnownSet(
        "s1K-1.1",
        ("question", "deepseek_attempt", "deepseek_thinking_trajectory"),
        "`solution` is the reference, and each `..._attempt` an answer with its reasoning",
        "answers",
        columns={
            "prompt": "question",
            "output": "deepseek_attempt",
            "reasoning_content": "deepseek_thinking_trajectory",
        },
    ),
    KnownSet(
        "OpenThoughts (metadata)",
        ("problem", "deepseek_solution", "deepseek_reasoning"),
        "`ground_truth_solution` is the reference, and `deepseek_solution` the answer with its reasoning",
        "answers",
        columns={"prompt": "problem", "output": "deepseek_solution", "reasoning_content": "deepseek_reasoning"},
    ),
    KnownSet(
        "UltraFeedback",
        ("instruction", "completions"),
        "several rated answers in a list",
        "ratings",
        "ratings-of-ultrafeedback",
        fits=_items_have("completions", "response", "overall_score"),
    ),
    KnownSet(
        "distilabel",
        ("instruction", "generations", "ratings"),
        "several rated answers in lists",
        "ratings",
        "ratings-of-distilabel",
    ),
    KnownSet(
        "HelpSteer",
        ("prompt", "response", "helpfulness"),
        "one answer with several ratings, of which one is to be learned from",
        "ratings",
        columns={"output": "response", "reward": "helpfulness"},
        fits=lambda row: isinstance(row["helpfulness"], int | float),
    ),
    KnownSet(
        "HelpSteer2's preferences",
        ("prompt", "response_1", "response_2", "preference_strength"),
        "which of the answers is better stands in a number",
        "pairs",
        "preferences-of-helpsteer",
    ),
    KnownSet(
        "HelpSteer3",
        ("context", "response1", "response2", "overall_preference"),
        "which of the answers is better stands in a number",
        "pairs",
        "preferences-of-helpsteer",
    ),
    KnownSet(
        "Nectar",
        ("prompt", "answers"),
        "several ranked answers in a list, and a prompt with the turns written into it",
        "ratings",
        "ranks-of-nectar",
        fits=_items_have("answers", "answer", "rank"),
    ),
    KnownSet(
        "Gemini's preference tuning",
        ("contents", "completions"),
        "turns with `parts`, and two answers with a score",
        "pairs",
        "preferences-of-gemini",
        fits=_items_have("completions", "completion", "score"),
    ),
    KnownSet(
        "Gemini's tuning (Vertex AI)",
        ("contents",),
        "turns with `parts`, whose role is `model` where it is the assistant's",
        "answers",
        "turns-of-gemini",
        fits=_items_have("contents", "parts"),
    ),
    KnownSet(
        "SHP",
        ("history", "human_ref_A", "human_ref_B"),
        "`labels` says which of two answers is better",
        "pairs",
        "answers-a-and-b",
    ),
    KnownSet(
        "PKU-SafeRLHF",
        ("prompt", "response_0", "response_1"),
        "`better_response_id` says which of two answers is better",
        "pairs",
        "answers-a-and-b",
        fits=lambda row: "better_response_id" in row,
    ),
    KnownSet(
        "Chatbot Arena",
        ("conversation_a", "conversation_b", "winner"),
        "`winner` says which of two conversations is better",
        "pairs",
        "answers-a-and-b",
    ),
)


def known_fault(form: RowForm, row: Row) -> RowFault | None:
    """Build the refusal of a row of a well-known data set; None for others, and where the mode needs no more of it."""
    for known in SETS:
        if not all(name in row and (is_given(row[name]) or row[name] == 0) for name in known.fields):
            continue
        if known.fits(row) and (known.suits(form) or not known.columns or known.holds == "answers"):
            return known.fault(form)
    return None
