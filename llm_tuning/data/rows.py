"""Every accepted row shape to one internal form, and the reasons a row is refused.

    sft   {prompt, output}   {prompt, completion}   {messages}   {conversations} (ShareGPT)
          {instruction, input, output} (Alpaca)   {text}
    ppo   {prompt, output, reward}   {prompt, completion, reward}; `rating` is accepted for `reward`

`prompt` and `completion` are texts or, as in TRL, lists of messages. The first row that has one of the shapes decides;
a later row of another shape is refused, since a file of mixed shapes is most often two files put together by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from llm_tuning.api.tuning import Mode
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

SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt/output": ("prompt", "output"),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
    "text": ("text",),
}
"""Name of each shape and the fields that make it, in the order in which a row is compared."""

MODE_SHAPES: dict[Mode, tuple[str, ...]] = {
    "sft": tuple(SHAPES),
    "ppo": ("prompt/output", "prompt/completion"),
}
REWARD_FIELDS = ("reward", "rating")
LARGEST_REWARD = 1e100
"""Squares of larger ones, and so their spread, are no longer finite."""
MAX_IGNORED_FIELDS = 20
"""Names of unused fields kept for the report."""

_UNSUPPORTED_FIELDS = ("tools", "functions")  # a row trained without them would teach calls out of nowhere
_ACCEPTED = {
    "sft": "{prompt, output or completion}, {messages}, {conversations}, {instruction, input, output} or {text}",
    "ppo": "{prompt, output, reward}",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One row in the internal form: a conversation that ends with an assistant turn, or plain text."""

    row_number: int
    messages: list[Message] | None = None
    text: str | None = None
    reward: float = math.nan
    """NaN where the mode has no rewards."""
    learn_from: int = 0
    """Assistant turns before this index are context only (the prompt of {prompt, completion})."""


class RowParser:
    """Turns the rows of one file into Examples; remembers the file's shape and what it left out."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.shape: str | None = None
        self.ignored_fields: set[str] = set()
        self.rows_trimmed = 0
        """Rows whose messages after the last assistant turn were left out: nothing there can be learned."""

    def parse(self, row_number: int, row: Any) -> Example:
        """The Example of one row; raises RowFault."""
        if isinstance(row, RowFault):
            raise row
        shape = self._shape_of(row)
        for name in _UNSUPPORTED_FIELDS:
            if row.get(name):
                raise RowFault(Reason.UNSUPPORTED_FIELD, f"`{name}` is not supported", "remove the row or the field")
        reward = _reward(row) if self.mode == "ppo" else math.nan
        if shape == "text":
            example = Example(row_number, text=check_text(row, "text"))
            used: tuple[str, ...] = ("text",)
        else:
            messages, learn_from, used = _CONVERSATIONS[shape](row)
            kept = check_conversation(messages)
            self.rows_trimmed += kept < len(messages)
            example = Example(row_number, messages=messages[:kept], reward=reward, learn_from=learn_from)
        self._note_ignored(row, used)
        return example

    def _shape_of(self, row: Mapping[str, Any]) -> str:
        if self.shape is not None and _has(row, self.shape):
            return self.shape
        found = next((shape for shape in MODE_SHAPES[self.mode] if _has(row, shape)), None)
        if self.shape is None:
            self.shape = found
        elif found is not None:
            raise RowFault(
                Reason.MIXED_SHAPES,
                f"has the shape {found}, but the first rows have {self.shape}",
                "keep rows of one shape in a file",
            )
        if found is not None:
            return found
        return self.shape or self._nearest_shape(row)

    def _nearest_shape(self, row: Mapping[str, Any]) -> str:
        """The shape whose fields the row has in part, so that the fault can name the field that is missing."""
        shapes = MODE_SHAPES[self.mode]
        for is_there in (row.__contains__, lambda name: closest(name, row)):
            for shape in shapes:
                if any(map(is_there, SHAPES[shape])):
                    return shape
        raise RowFault(
            Reason.UNKNOWN_SHAPE,
            f"has none of the shapes of {self.mode} rows",
            f"rows are {_ACCEPTED[self.mode]}",
        )

    def _note_ignored(self, row: Mapping[str, Any], used: tuple[str, ...]) -> None:
        rewards = REWARD_FIELDS if self.mode == "ppo" else ()
        self._ignore(row, row.keys() - {*used, *rewards}, "")
        for name in used:
            if isinstance(row.get(name), list):
                for message in row[name]:
                    self._ignore(message, message.keys() - MESSAGE_FIELDS, f"{name}[].")

    def _ignore(self, values: Mapping[str, Any], names: Iterable[str], prefix: str) -> None:
        for name in names:
            if values[name] is not None and len(self.ignored_fields) < MAX_IGNORED_FIELDS:
                self.ignored_fields.add(f"{prefix}{shown(name)}")


def _has(row: Mapping[str, Any], shape: str) -> bool:
    return all(row.get(name) is not None for name in SHAPES[shape])


_Conversation = tuple[list[Message], int, tuple[str, ...]]
"""Messages, index of the first one to learn from, fields used."""


def _from_messages(row: Mapping[str, Any]) -> _Conversation:
    return convert_messages(row, "messages"), 0, ("messages",)


def _from_conversations(row: Mapping[str, Any]) -> _Conversation:
    return convert_messages(row, "conversations"), 0, ("conversations",)


def _from_instruction(row: Mapping[str, Any]) -> _Conversation:
    prompt = check_text(row, "instruction")
    if row.get("input") not in (None, ""):
        prompt = f"{prompt}\n\n{check_text(row, 'input')}"
    messages = [_user(prompt), _assistant(check_text(row, "output"))]
    return messages, 0, ("instruction", "input", "output")


def _from_prompt(answer: str) -> Callable[[Mapping[str, Any]], _Conversation]:
    def convert(row: Mapping[str, Any]) -> _Conversation:
        if isinstance(row.get("prompt"), list):
            prompt = convert_messages(row, "prompt")
        else:
            prompt = [_user(check_text(row, "prompt"))]
        if isinstance(row.get(answer), list):
            answers = convert_messages(row, answer)
        else:
            answers = [_assistant(check_text(row, answer))]
        if not any(message["role"] == "assistant" for message in answers):
            raise RowFault(Reason.NO_ASSISTANT_TURN, f"`{answer}` has no assistant turn", "add the answer to learn")
        return prompt + answers, len(prompt), ("prompt", answer)

    return convert


_CONVERSATIONS: dict[str, Callable[[Mapping[str, Any]], _Conversation]] = {
    "messages": _from_messages,
    "conversations": _from_conversations,
    "prompt/output": _from_prompt("output"),
    "prompt/completion": _from_prompt("completion"),
    "instruction/output": _from_instruction,
}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _reward(row: Mapping[str, Any]) -> float:
    name = next((name for name in REWARD_FIELDS if row.get(name) is not None), None)
    if name is None:
        null = next((name for name in REWARD_FIELDS if name in row), None)
        if null is None:
            fix = rename_or(row, "reward", "ppo needs a number in every row")
            raise RowFault(Reason.MISSING_REWARD, "`reward` is missing", fix)
        raise RowFault(Reason.MISSING_REWARD, f"`{null}` is null", "ppo needs a number in every row")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        fix = "write it without quotes" if isinstance(value, str) else "give one number, such as 0.5"
        raise RowFault(Reason.REWARD_NOT_A_NUMBER, f"`{name}` must be a finite number, got {got(value)}", fix)
    try:
        reward = float(value)
    except OverflowError:
        reward = math.inf
    if not math.isfinite(reward):
        kind = "NaN" if math.isnan(reward) else "an infinite number"
        raise RowFault(
            Reason.REWARD_NOT_FINITE, f"`{name}` must be a finite number, got {kind}", "give a number or remove the row"
        )
    if abs(reward) > LARGEST_REWARD:
        rule = f"`{name}` must be between -{LARGEST_REWARD:g} and {LARGEST_REWARD:g}, got {reward:g}"
        raise RowFault(Reason.REWARD_NOT_FINITE, rule, "scale the rewards, or remove the row")
    return reward
