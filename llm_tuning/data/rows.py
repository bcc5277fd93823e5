"""Every accepted row shape to one internal form, and the reasons a row is refused.

`RowForm` is what a mode says of its rows: the shapes that it takes, the number that each row carries, and what makes
them senseless. `prompt` and `completion` are texts or, as in TRL, lists of messages. The first row that has one of the
shapes decides; a later row of another shape is refused, since a file of mixed shapes is most often two files put
together by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from llm_tuning.core.suggestions import closest
from llm_tuning.data.faults import Reason, RowFault, got, shown
from llm_tuning.data.messages import (
    MESSAGE_FIELDS,
    Message,
    check_conversation,
    check_text,
    convert_messages,
    rename_or,
)

if TYPE_CHECKING:
    from llm_tuning.data.report import Report
    from llm_tuning.errors import Problem

LARGEST_NUMBER = 1e100
"""Squares of larger ones, and so their spread, are no longer finite."""
MAX_IGNORED_FIELDS = 20
"""Names of unused fields kept for the report."""

_UNSUPPORTED_FIELDS = ("tools", "functions")  # a row trained without them would teach calls out of nowhere
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sequence before it is tokenised: messages that end with an assistant turn, or plain text."""

    messages: list[Message] | None = None
    text: str | None = None
    learn_from: int = 0
    """Assistant turns before this index are context only (the prompt of {prompt, completion})."""
    not_learned: frozenset[int] = frozenset()
    """Indices of assistant turns that are seen and not learned, as their authors marked them. Never the last message."""
    prefixes: Mapping[int, int] = field(default_factory=dict)
    """By index of an assistant turn: how many characters at its start are given with the prompt and not learned."""

    @property
    def characters(self) -> int:
        """Characters of its texts."""
        return len(self.text or "") + sum(len(message["content"]) for message in self.messages or ())


@dataclass(frozen=True, slots=True)
class Example:
    """One row in the internal form: one or more sequences (two for a pair), and the number that belongs to them."""

    row_number: int
    sequences: tuple[Conversation, ...]
    number: float = math.nan
    """Such as a reward; NaN where the mode takes none."""


@dataclass(frozen=True)
class Shape:
    """A way to write a row: the fields that make it, and what they mean."""

    name: str
    fields: tuple[str, ...]
    convert: Callable[[Row], tuple[Conversation, ...]]
    """The sequences of a row that has the fields; raises RowFault."""
    optional: tuple[str, ...] = ()
    """Further fields that it reads."""

    def fits(self, row: Row) -> bool:
        """Return whether `row` has all the fields."""
        return all(row.get(name) is not None for name in self.fields)


@dataclass(frozen=True)
class NumberField:
    """The number that each row of a mode carries, by the first of `names` that is there."""

    names: tuple[str, ...]
    needed: str
    """Who needs it, as a fix says it."""

    def read(self, row: Row) -> float:
        """Return the number of `row`; raises RowFault."""
        name = next((name for name in self.names if row.get(name) is not None), None)
        if name is None:
            null = next((name for name in self.names if name in row), None)
            if null is None:
                fix = rename_or(row, self.names[0], self.needed)
                raise RowFault(Reason.MISSING_REWARD, f"`{self.names[0]}` is missing", fix)
            raise RowFault(Reason.MISSING_REWARD, f"`{null}` is null", self.needed)
        return _finite_number(row[name], name)


@dataclass(frozen=True)
class RowForm:
    """The rows that a mode takes, and how they become examples."""

    mode: str
    shapes: tuple[Shape, ...]
    """In the order in which a row is compared."""
    accepted: str
    """The shapes in words."""
    number: NumberField | None = None
    judge: Callable[[Report], Iterable[Problem]] = lambda report: ()
    """What makes the whole data set senseless for the mode, seen in the finished counts of at least two rows."""


class RowParser:
    """Turns the rows of one file into Examples; remembers the file's shape and what it left out."""

    def __init__(self, form: RowForm, columns: Mapping[str, str] | None = None) -> None:
        """Read rows of `form`; `columns` names the field of the file (value) that stands for one of ours (key)."""
        self.form = form
        self.columns = dict(columns or {})
        self.shape: Shape | None = None
        self.ignored_fields: set[str] = set()
        self.rows_trimmed = 0
        """Rows whose messages after the last assistant turn were left out: nothing there can be in the loss."""

    def parse(self, row_number: int, row: Any) -> Example:
        """Build the Example of one row; raises RowFault."""
        if isinstance(row, RowFault):
            raise row
        shape = self._shape_of(row)
        for name in _UNSUPPORTED_FIELDS:
            if row.get(name):
                raise RowFault(Reason.UNSUPPORTED_FIELD, f"`{name}` is not supported", "remove the row or the field")
        number = self.form.number.read(row) if self.form.number is not None else math.nan
        sequences = tuple(map(self._trimmed, shape.convert(row)))
        self._note_ignored(row, shape)
        return Example(row_number, sequences, number)

    def _trimmed(self, conversation: Conversation) -> Conversation:
        """Return `conversation` without the messages after its last assistant turn."""
        if conversation.messages is None:
            return conversation
        kept = check_conversation(conversation.messages)
        self.rows_trimmed += kept < len(conversation.messages)
        return Conversation(conversation.messages[:kept], learn_from=conversation.learn_from)

    def _shape_of(self, row: Row) -> Shape:
        if self.shape is not None and self.shape.fits(row):
            return self.shape
        found = next((shape for shape in self.form.shapes if shape.fits(row)), None)
        if self.shape is None:
            self.shape = found
        elif found is not None:
            raise RowFault(
                Reason.MIXED_SHAPES,
                f"has the shape {found.name}, but the first rows have {self.shape.name}",
                "keep rows of one shape in a file",
            )
        if found is not None:
            return found
        return self.shape or self._nearest_shape(row)

    def _nearest_shape(self, row: Row) -> Shape:
        """Return the shape whose fields the row has in part, so that the fault can name the field that is missing."""
        for is_there in (row.__contains__, lambda name: closest(name, row)):
            for shape in self.form.shapes:
                if any(map(is_there, shape.fields)):
                    return shape
        raise RowFault(
            Reason.UNKNOWN_SHAPE,
            f"has none of the shapes of {self.form.mode} rows",
            f"rows are {self.form.accepted}",
        )

    def _note_ignored(self, row: Row, shape: Shape) -> None:
        used = (*shape.fields, *shape.optional)
        numbers = self.form.number.names if self.form.number is not None else ()
        self._ignore(row, row.keys() - {*used, *numbers}, "")
        for name in used:
            if isinstance(row.get(name), list):
                for message in row[name]:
                    self._ignore(message, message.keys() - MESSAGE_FIELDS, f"{name}[].")

    def _ignore(self, values: Mapping[str, Any], names: Iterable[str], prefix: str) -> None:
        for name in names:
            if values[name] is not None and len(self.ignored_fields) < MAX_IGNORED_FIELDS:
                self.ignored_fields.add(f"{prefix}{shown(name)}")


def text_or_messages(row: Row, field: str, role: str) -> list[Message]:
    """Return `row[field]` as messages: a text is one message of `role`. Raises RowFault."""
    if isinstance(row.get(field), list):
        return convert_messages(row, field)
    return [{"role": role, "content": check_text(row, field)}]


def prompt_and(answer: str) -> Callable[[Row], tuple[Conversation, ...]]:
    """Return what makes a row of `prompt` and the field `answer` a conversation with the loss on the answer alone."""

    def convert(row: Row) -> tuple[Conversation, ...]:
        prompt, answers = text_or_messages(row, "prompt", "user"), text_or_messages(row, answer, "assistant")
        if not any(message["role"] == "assistant" for message in answers):
            raise RowFault(Reason.NO_ASSISTANT_TURN, f"`{answer}` has no assistant turn", "add the answer to learn")
        return (Conversation(prompt + answers, learn_from=len(prompt)),)

    return convert


def _messages_of(field: str) -> Callable[[Row], tuple[Conversation, ...]]:
    return lambda row: (Conversation(convert_messages(row, field)),)


def _from_instruction(row: Row) -> tuple[Conversation, ...]:
    prompt = check_text(row, "instruction")
    if row.get("input") not in (None, ""):
        prompt = f"{prompt}\n\n{check_text(row, 'input')}"
    answer = check_text(row, "output")
    return (Conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]),)


MESSAGES = Shape("messages", ("messages",), _messages_of("messages"))
CONVERSATIONS = Shape("conversations", ("conversations",), _messages_of("conversations"))
"""ShareGPT."""
PROMPT_OUTPUT = Shape("prompt/output", ("prompt", "output"), prompt_and("output"))
PROMPT_COMPLETION = Shape("prompt/completion", ("prompt", "completion"), prompt_and("completion"))
INSTRUCTION = Shape("instruction/output", ("instruction", "output"), _from_instruction, optional=("input",))
"""Alpaca."""
TEXT = Shape("text", ("text",), lambda row: (Conversation(text=check_text(row, "text")),))


def _finite_number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        fix = "write it without quotes" if isinstance(value, str) else "give one number, such as 0.5"
        raise RowFault(Reason.REWARD_NOT_A_NUMBER, f"`{name}` must be a finite number, got {got(value)}", fix)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        kind = "NaN" if math.isnan(number) else "an infinite number"
        raise RowFault(
            Reason.REWARD_NOT_FINITE, f"`{name}` must be a finite number, got {kind}", "give a number or remove the row"
        )
    if abs(number) > LARGEST_NUMBER:
        rule = f"`{name}` must be between -{LARGEST_NUMBER:g} and {LARGEST_NUMBER:g}, got {number:g}"
        raise RowFault(Reason.REWARD_NOT_FINITE, rule, f"scale the {name}s, or remove the row")
    return number
