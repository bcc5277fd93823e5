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
from typing import TYPE_CHECKING, Any, Literal

from llm_tuning.data.faults import Reason, RowFault, got
from llm_tuning.data.messages import Message
from llm_tuning.data.pairing import Pairing
from llm_tuning.data.row_fields import HISTORY, SYSTEM

if TYPE_CHECKING:
    from llm_tuning.data.report import Report
    from llm_tuning.errors import Problem

LARGEST_NUMBER = 1e100
"""Squares of larger ones, and so their spread, are no longer finite."""

_NAMED_BESIDE = {"tools": "tools", "reasoning": "reasoning_content"}
"""By kind of fields: the one that a column of another name may stand for."""

Row = Mapping[str, Any]
Learn = Literal["all", "last"]
"""Which answers of a conversation are in the loss."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sequence before it is tokenised: messages that end with an answer to learn, or plain text."""

    messages: list[Message] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    """The tools that the answers may call, as vLLM hands OpenAI's `tools` to a template; None without any."""
    learn_from: int = 0
    """Assistant turns before this index are context only (the prompt of {prompt, completion})."""
    not_learned: frozenset[int] = frozenset()
    """Indices of assistant turns that are seen and not learned, as their author marked them. Never the last message."""
    prefixes: Mapping[int, int] = field(default_factory=dict)
    """By index of an assistant turn: how many characters at its start are given with the prompt and not learned."""

    @property
    def texts(self) -> list[str]:
        """Its texts, of each message its content and then its reasoning."""
        if self.messages is None:
            return [self.text or ""]
        return [
            message[name] for message in self.messages for name in ("content", "reasoning_content") if name in message
        ]

    @property
    def characters(self) -> int:
        """Characters of its texts and of its calls, about; its tools are not counted."""
        calls = sum(len(str(message["tool_calls"])) for message in self.messages or () if "tool_calls" in message)
        return sum(map(len, self.texts)) + calls

    def learned_turns(self) -> list[int]:
        """Return the indices of the messages that are learned."""
        return [
            index
            for index, message in enumerate(self.messages or ())
            if message["role"] == "assistant" and index >= self.learn_from and index not in self.not_learned
        ]

    def last_learned(self) -> int | None:
        """Return the index of the last message that is learned, None where none is."""
        messages = self.messages or ()
        for index in range(len(messages) - 1, self.learn_from - 1, -1):
            if messages[index]["role"] == "assistant" and index not in self.not_learned:
                return index
        return None

    def after(self, messages: list[Message], *, learned: bool = False) -> Conversation:
        """Return this conversation with `messages` before it; `learned`: their assistant turns and all of its own are.

        Only messages come before messages.
        """
        count = len(messages)
        return Conversation(
            messages + (self.messages or []),
            tools=self.tools,
            learn_from=0 if learned else self.learn_from + count,
            not_learned=frozenset(index + count for index in self.not_learned),
            prefixes={index + count: length for index, length in self.prefixes.items()},
        )


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
    may_be_null: tuple[str, ...] = ()
    """Those of `fields` that are there and may be null."""
    history: bool = False
    """The prompt is a text, and pairs of questions and answers may be given to come before it."""
    is_text: bool = False
    """Plain text without turns."""
    numbered: bool = True
    """Its rows carry the number of a mode that has one."""

    def fits(self, row: Row) -> bool:
        """Return whether `row` has all the fields."""
        return all(row.get(name) is not None or (name in self.may_be_null and name in row) for name in self.fields)


@dataclass(frozen=True)
class NumberField:
    """The number that each row of a mode carries, by any of `names`."""

    names: tuple[str, ...]
    needed: str
    """Who needs it, as a fix says it."""

    @property
    def ratings(self) -> tuple[str, ...]:
        """Those of its names that hold any number."""
        return self.names

    def read(self, row: Row) -> float:
        """Return the number of `row`; raises RowFault."""
        given = [name for name in self.names if row.get(name) is not None]
        if not given:
            null = next((name for name in self.names if name in row), None)
            rule = f"`{self.names[0]}` is missing" if null is None else f"`{null}` is null"
            raise RowFault(Reason.MISSING_REWARD, rule, self.needed)
        numbers = {_finite_number(row[name], name) for name in given}
        if len(numbers) > 1:
            rule = f"{' and '.join(f'`{name}`' for name in given)} differ"
            raise RowFault(Reason.AMBIGUOUS, rule, "keep the one that is meant")
        return numbers.pop()


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
    sides: tuple[str, ...] = ()
    """The names of an example's sequences, where there are several."""
    pairing: Pairing | None = None
    """Rows of a numbered shape, one answer each, become pairs of answers of one prompt."""
    unfold: Callable[[Row], Row] = lambda row: row
    """Bring what lies deeper in a row to its top, before its shape is looked for; raises RowFault."""
    learns_history: bool = False
    """Answers in a row's history are learned, too; else the row's own answer alone."""
    takes: frozenset[str] = frozenset()
    """The kinds of fields (`row_fields.KINDS`) that its shapes understand."""
    is_right: Callable[[int, float], bool] = lambda side, number: True
    """Whether an answer is learned as right, by which sequence of the row it is and the row's number: only such a call
    has to fit the schema of its tool."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """By kind of fields: what to write in their place, as a refusal says it."""

    @property
    def own_fields(self) -> tuple[str, ...]:
        """Every field that some shape of the mode reads, or the number."""
        numbers = self.number.names if self.number is not None else ()
        read = (name for shape in self.shapes for name in (*shape.fields, *shape.optional))
        return tuple(dict.fromkeys((*read, *numbers)))

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field of a row or message that has a meaning to the mode."""
        beside = tuple(name for kind, name in _NAMED_BESIDE.items() if kind in self.takes)
        return (*self.own_fields, *SYSTEM[:1], *HISTORY[:1], *beside, "role", "content")


FORMS: dict[str, RowForm] = {}
"""The forms of all modes by name, filled by `llm_tuning.modes`: a refusal says which mode takes such rows."""


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
