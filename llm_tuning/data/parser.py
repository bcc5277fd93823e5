"""The rows of one file to Examples: each field honoured, refused by its name, or named in a note."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from llm_tuning.data.call_fields import fields_beside
from llm_tuning.data.cells import CellRow, read_cells
from llm_tuning.data.columns import Columns
from llm_tuning.data.faults import RowFault, shown
from llm_tuning.data.known_sets import known_fault
from llm_tuning.data.messages import MESSAGE_FIELDS, PART_FIELDS, check_roles, read_flags
from llm_tuning.data.row_fields import FLAG_NAMES, PREFIX_NAMES, plain
from llm_tuning.data.row_plan import (
    RowPlan,
    build_plan,
    refuse_judgements,
    refuse_kinds,
    refuse_labels,
    refuse_texts,
    with_history,
    with_system,
)
from llm_tuning.data.row_tools import RowTools, with_reasoning
from llm_tuning.data.rows import Conversation, Example, Row, RowForm, Shape
from llm_tuning.data.tool_turns import RESULT_ROLES, TURN_FIELDS
from llm_tuning.data.unknown_rows import converted_fault, mixed_fault, number_fault, propose_columns, unfit_fault
from llm_tuning.data.values import is_set, number_in, says_missing

MAX_IGNORED_FIELDS = 10_000
"""Names of unused fields that are kept."""
_MAX_PLANS = 1_000
_NONE: frozenset[str] = frozenset()
_CUE_ENDS = (":", ":\n", ": ", ":\n\n")
_CUE_CHARACTERS = 32
_CUE = re.compile(r"(?:\A|\s|<)(?:#+ ?)?(?:assistant|response|bot)>?\s?:\s*\Z", re.IGNORECASE)
"""The end of a prompt that was rendered for a model without a chat template: `Assistant:`, `### Response:`."""
_PLACEHOLDER = re.compile(r"\{\{\s*[\w.]+\s*\}\}")


class RowParser:
    """Turns the rows of one file into Examples; remembers the file's shape and what it left out."""

    def __init__(self, form: RowForm, columns: Mapping[str, str] | None = None) -> None:
        """Read rows of `form`; `columns` names the field of the file (value) that stands for one of ours (key).

        Raises InputError for columns that the form does not know.
        """
        self.form = form
        self.shape: Shape | None = None
        self.ignored_fields: set[str] = set()
        self.counts: Counter[str] = Counter()
        """Rows by what is said of them: `trimmed` (messages after the last answer to learn were left out),
        `left out` (their author marked them as not learned), and those of _WARNED."""
        self.first: dict[str, int] = {}
        """The first row of each count."""
        self._columns = Columns(form, columns or {})
        self._plans: dict[tuple[str, ...], RowPlan] = {}
        self._tools = RowTools(form)
        self._noted: set[tuple[str, str]] = set()

    def parse(self, row_number: int, row: Any) -> Example | None:
        """Build the Example of one row, None for one whose author leaves it out; raises RowFault."""
        if isinstance(row, RowFault):
            raise row
        is_cells = isinstance(row, CellRow)
        row = self._columns.rename(row)
        if is_cells:
            row = read_cells(row, self.form.number.ratings if self.form.number is not None else ())
        row = self.form.unfold(row)
        shape = self._shape_of(row)
        if shape is None or (shape.is_text and not self._columns.names):
            known = known_fault(self.form, row)
            if known is not None:
                raise known
        plan = self._plan_of(row, shape or self.shape)
        if plan.refused:
            refuse_kinds(self.form, plan, row, shape, partial(propose_columns, self.form, row))
        if shape is None:
            raise unfit_fault(self.form, self.shape, row)
        number = self._number(row, shape)
        if plan.judgements:
            refuse_judgements(plan, row, number)
        if plan.has_flags and read_flags(row) is False:
            self._count("left out", row_number)
            return None
        sequences = self._sequences(row, shape, plan)
        self._note(row, shape, plan)
        finished: list[Conversation] = []
        for conversation in sequences:
            kept = _finished(conversation)
            if kept is None:
                self._count("left out", row_number)
                return None
            finished.append(kept)
        if any(kept is not conversation for kept, conversation in zip(finished, sequences, strict=True)):
            self._count("trimmed", row_number)
        tools = self._tools.read(row, plan.tools) if plan.tools else None
        finished = list(self._tools.check(row, plan.tools, finished, tools, number=number))
        if plan.scores is not None:
            self._compare_scores(row, plan.scores, row_number)
        for name, holds in _WARNED.items():
            if any(holds(text) for conversation in finished for text in conversation.texts):
                self._count(name, row_number)
        return Example(row_number, tuple(finished), number)

    def _number(self, row: Row, shape: Shape) -> float:
        if self.form.number is None or not shape.numbered:
            return math.nan
        try:
            return self.form.number.read(row)
        except RowFault as fault:
            raise number_fault(self.form, row, fault) from None

    def _compare_scores(self, row: Row, names: tuple[str, str], row_number: int) -> None:
        chosen, rejected = (number_in(row[name]) if name else 0.0 for name in names)
        if chosen is not None and rejected is not None and chosen <= rejected:
            self._count("equal scores" if chosen == rejected else "swapped scores", row_number)

    def _count(self, name: str, row_number: int) -> None:
        self.counts[name] += 1
        self.first.setdefault(name, row_number)

    def _sequences(self, row: Row, shape: Shape, plan: RowPlan) -> list[Conversation]:
        try:
            sequences = list(shape.convert(row))
        except RowFault as fault:
            raise converted_fault(self.form, shape, row, fault) from None
        if plan.is_plain:
            return sequences
        if shape.is_text:
            refuse_labels(plan, row)
        if plan.texts:
            refuse_texts(self.form, shape, plan, row, sequences)
        if plan.histories:
            sequences = list(with_history(sequences, plan, row, shape, learned=self.form.learns_history))
        if plan.reasoning:
            sequences = list(with_reasoning(sequences, plan.reasoning, row, shape))
        return list(with_system(sequences, plan, row, shape))

    def _shape_of(self, row: Row) -> Shape | None:
        """Return the shape that the row fits, None where it fits none; raises RowFault where the file's is another."""
        if self.shape is not None and self.shape.fits(row):
            return self.shape
        fitting = [shape for shape in self._columns.shapes if shape.fits(row)]
        found = next((shape for shape in fitting if all(row[name] != [] for name in shape.fields)), None)
        found = found or next(iter(fitting), None)
        if self.shape is None:
            self.shape = found
        elif found is not None:
            raise mixed_fault(found, self.shape)
        return found

    def _plan_of(self, row: Row, shape: Shape | None) -> RowPlan:
        key = (shape.name if shape is not None else "", *row)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = build_plan(self.form, shape, row, self._columns.names)
        return plan

    def _note(self, row: Row, shape: Shape, plan: RowPlan) -> None:
        if plan.unnoted:
            for name in [name for name in plan.unnoted if is_set(row[name])]:
                plan.unnoted.remove(name)
                self._ignore(shown(name))
        for name in (*shape.fields, *shape.optional):
            value = row.get(name)
            if isinstance(value, list | dict):
                self._note_messages(name, value if isinstance(value, list) else [value])

    def _note_messages(self, name: str, messages: Iterable[Any]) -> None:
        for message in messages:
            if not isinstance(message, dict):
                continue
            if not message.keys() <= MESSAGE_FIELDS:
                self._note_others(f"{name}[].", message, _known_fields(message))
                if isinstance(message.get("tool_calls"), list):
                    self._note_calls(f"{name}[].tool_calls[].", message["tool_calls"])
            if isinstance(message.get("content"), list):
                for part in message["content"]:
                    if isinstance(part, Mapping):
                        self._note_others(f"{name}[].content[].", part, PART_FIELDS)

    def _note_calls(self, where: str, calls: Iterable[Any]) -> None:
        for call in calls:
            if isinstance(call, Mapping):
                others = {place + own: value for place, own, value in fields_beside(call)}
                self._note_others(where, others, _NONE)

    def _note_others(self, where: str, values: Mapping[str, Any], known: frozenset[str]) -> None:
        """Note the fields of a message or part that nothing uses."""
        for own in values.keys() - known:
            if (where, own) not in self._noted and is_set(values[own]):
                self._noted.add((where, own))
                if plain(own) not in FLAG_NAMES | PREFIX_NAMES:
                    self._ignore(f"{where}{shown(own)}")

    def _ignore(self, name: str) -> None:
        if len(self.ignored_fields) < MAX_IGNORED_FIELDS:
            self.ignored_fields.add(name)


def _finished(conversation: Conversation) -> Conversation | None:
    """Return the conversation up to its last answer to learn, None where none is; raises RowFault."""
    if conversation.messages is None:
        return conversation
    check_roles([message["role"] for message in conversation.messages])
    last = conversation.last_learned()
    if last == len(conversation.messages) - 1:
        return conversation
    if last is None:
        return None
    return Conversation(
        conversation.messages[: last + 1],
        tools=conversation.tools,
        learn_from=conversation.learn_from,
        not_learned=frozenset(index for index in conversation.not_learned if index < last),
        prefixes={index: length for index, length in conversation.prefixes.items() if index <= last},
    )


def _known_fields(message: Mapping[str, Any]) -> frozenset[str]:
    known = MESSAGE_FIELDS | TURN_FIELDS
    return known | {"name"} if message.get("role", message.get("from")) in RESULT_ROLES else known


_WARNED: Mapping[str, Callable[[str], object]] = {
    "placeholders": lambda text: "{{" in text and _PLACEHOLDER.search(text),
    "images": lambda text: "<image>" in text,
    "missing values": says_missing,
    "cues": lambda text: text.endswith(_CUE_ENDS) and _CUE.search(text, max(0, len(text) - _CUE_CHARACTERS)),
}
"""What a text is warned of, by the name of its count."""
