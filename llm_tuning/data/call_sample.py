"""The held-out answers that a model is asked for again, to see whether it has learned to call tools.

A recorded answer counts as a call where its own token ids, read as a generated text is read, give the calls of the row:
what the reader would misread is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_tuning.data.call_forms import Call
from llm_tuning.data.call_reader import BrokenCall, CallReader, NotReadable, learn_calls, recorded_calls, same_calls
from llm_tuning.data.calls import Tools
from llm_tuning.data.messages import THINK_END, Message
from llm_tuning.data.schemas import BrokenSchema, Schema
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.data.tokens import RowTokenizer

MAX_CALLS, MAX_WORDS = 32, 8
"""Answers that are asked for: those that are calls, and those in words where there are tools."""
ROWS_LOOKED_AT = 2048
"""Held-out rows among which they are sought."""
_SHOWN = (
    "training.learnReasoning is false and the base's template asks for answers behind reasoning of its own: the calls "
    "are learned behind the recorded reasoning, which often names them, so to ask for them again would show nothing"
)
ROOM = 32
"""Tokens that an answer may have beyond those of the recorded one."""


class ReasoningShown(NotReadable):
    """No recorded call can be asked for again, since the reasoning before it is given."""


@dataclass(frozen=True)
class Asked:
    """One answer to be generated."""

    prompt: NDArray[np.int32]
    max_tokens: int
    tools: Tools
    recorded: Sequence[Call]
    """None where the recorded answer has no call."""


@dataclass(frozen=True)
class CallSample:
    """The answers to ask for, and how to read them."""

    reader: CallReader
    tokenizer: RowTokenizer
    asked: Sequence[Asked] = ()
    not_read: int = 0
    """Recorded calls that the reader does not find in their own text."""

    def read(self, asked: Asked, ids: Sequence[int]) -> Counted:
        """Judge the ids generated for `asked`, with or without the one that stopped them."""
        try:
            calls = self.reader.read(self.tokenizer.text(until_stop(ids, self.tokenizer.stop_ids)), asked.tools)
        except BrokenCall:
            return Counted(called=True)
        if not calls:
            return Counted()
        return Counted(True, True, fit_tools(calls, asked.tools), same_calls(calls, asked.recorded))


@dataclass(frozen=True)
class Counted:
    """What one generated answer is."""

    called: bool = False
    """It has a call, or the beginning of one."""
    parsed: bool = False
    fits: bool = False
    """Every call names a tool of the prompt, and its arguments fit the tool's schema."""
    equal: bool = False
    """The calls are the recorded ones."""


def sample_calls(
    rows: TokenRows,
    held_out: NDArray[np.int64],
    tokenizer: RowTokenizer,
    is_wanted: Callable[[float, int], bool] = lambda number, sequence: True,
) -> CallSample | None:
    """Choose held-out answers, at most one of a row; None where no row looked at has tools. Raises NotReadable, which a
    ReasoningShown is.

    `is_wanted`, given the number of a row and the place of a sequence in it, says whether the model should answer so.
    """
    chosen = np.random.default_rng(0).permutation(held_out)[:ROWS_LOOKED_AT]
    reader: CallReader | None = None
    calls: list[Asked] = []
    words: list[Asked] = []
    not_read = shown = 0
    for row in chosen.tolist():
        if len(calls) == MAX_CALLS:
            break
        found = []
        for place in range(len(rows.sequences_of_row(row))):
            if is_wanted(float(rows.numbers[row]), place) and (tools := rows.tools(row, place)):
                reader = reader or learn_calls(tokenizer.template.render, tokenizer.stop_tokens)
                answers = _Answers(rows, row, place, tools)
                found += list(answers.read(reader, tokenizer))
                not_read += answers.not_read
                shown += answers.not_read if answers.shown else 0
        called = [asked for asked in found if asked.recorded]
        if called:
            calls.append(called[0])
        elif found and len(words) < MAX_WORDS:
            words.append(found[0])
    if reader is None:
        return None
    if not calls and not_read:
        if shown == not_read:
            raise ReasoningShown(_SHOWN)
        raise NotReadable("the calls of its rows cannot be read back from what it writes")
    return CallSample(reader, tokenizer, [*calls, *words], not_read)


@dataclass
class _Answers:
    """The learned answers of one sequence."""

    rows: TokenRows
    row: int
    place: int
    tools: Tools
    not_read: int = field(default=0, init=False)
    shown: bool = field(default=False, init=False)
    """They are behind reasoning that is in the prompt, not learned: it often names the call."""

    def read(self, reader: CallReader, tokenizer: RowTokenizer) -> Iterator[Asked]:
        """Yield the answers whose own ids give what the row says; count the calls that they do not give."""
        sequence = self.rows.sequence(int(self.rows.sequences_of_row(self.row)[self.place]))
        messages = self.rows.messages(self.row, self.place) or []
        expected = [calls for message in messages if (calls := recorded_calls(message))]
        server_prompt = self.rows.prompt_tokens(self.row, self.place)
        if not server_prompt and any(map(_reasons, messages)):
            self.not_read, self.shown = len(expected), True
            return
        edges = np.flatnonzero(np.diff(sequence.learned.astype(np.int8), append=0))
        for before, last in edges.reshape(-1, 2).tolist():
            start, end = before + 1, last + 1
            if end == len(sequence.input_ids) and server_prompt:
                start = server_prompt  # reasoning that is seen and not learned is the model's to make
            ids = sequence.input_ids[start:end].tolist()
            try:
                calls = reader.read(tokenizer.text(until_stop(ids, tokenizer.stop_ids)), self.tools)
            except BrokenCall:
                continue
            if calls and not any(same_calls(calls, recorded) for recorded in expected):
                continue
            if calls:
                expected.remove(next(recorded for recorded in expected if same_calls(calls, recorded)))
            yield Asked(sequence.input_ids[:start], len(ids) + ROOM, self.tools, calls)
        self.not_read = len(expected)


def _reasons(message: Message) -> bool:
    return bool(message.get("reasoning_content")) or THINK_END in (message["content"] or "")


def until_stop(ids: Sequence[int], stop_ids: frozenset[int]) -> Sequence[int]:
    """Return the ids before the first one that stops generation."""
    return ids[: next((at for at, number in enumerate(ids) if number in stop_ids), len(ids))]


def fit_tools(calls: Sequence[Call], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether every call names one of `tools`, with arguments that its schema takes."""
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    return all(call.name in functions and _fits(call, functions[call.name].get("parameters")) for call in calls)


def _fits(call: Call, parameters: Mapping[str, Any] | None) -> bool:
    try:
        return Schema(parameters).fault(call.arguments) is None
    except BrokenSchema:
        return True  # the check of the data has let it pass
