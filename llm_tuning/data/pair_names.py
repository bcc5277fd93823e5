"""What other projects call the two sides of a pair, and the columns that make a pair of such names.

Only what is certain is proposed, as in `unknown_rows`: one better answer, one worse answer, and what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.pair_shapes import OPENAI_INPUT, SIDES
from llm_tuning.data.row_fields import ANSWER_NAMES, plain
from llm_tuning.data.rows import Row
from llm_tuning.data.values import is_given

_GOOD = ("chosen", "preferred", "better", "positive", "good", "best", "winning", "accepted")
_BAD = ("rejected", "dispreferred", "nonpreferred", "unpreferred", "worse", "worst", "negative", "bad", "losing")
_ANSWER = ("", "response", "responses", "answer", "answers", "output", "outputs", "completion", "messages", "text")
_CHOSEN = frozenset(good + answer for good in _GOOD for answer in _ANSWER if good not in ("good", "best") or answer)
_REJECTED = frozenset(bad + answer for bad in _BAD for answer in _ANSWER if bad not in ("bad", "worst") or answer)
_CHOSEN_LAST = frozenset((*(f"{answer}chosen" for answer in _ANSWER), "winner"))
_REJECTED_LAST = frozenset((*(f"{answer}rejected" for answer in _ANSWER), "loser"))
_NUMBERED = re.compile(r"(response|answer|output|completion|conversation)s?(0|1|2|a|b|j|k)")
_SHORTEST_ANSWER = 3
"""Characters of a text in a field like `preferred` that is an answer, and not the letter or number of one."""


def find_sides(row: Row) -> tuple[list[str], list[str]]:
    """Return the fields of the row that hold a better answer, and those that hold a worse one."""
    return list(_named(row, _CHOSEN | _CHOSEN_LAST, SIDES[0])), list(_named(row, _REJECTED | _REJECTED_LAST, SIDES[1]))


def _named(row: Row, names: frozenset[str], own: str) -> Iterator[str]:
    if is_given(row.get(own)):
        yield own
        return
    yield from (name for name, value in row.items() if plain(name) in names and _is_answer(value, row))


def _is_answer(value: Any, row: Row) -> bool:
    if isinstance(value, str):
        return len(value.strip()) >= _SHORTEST_ANSWER and value not in row
    return isinstance(value, list | dict) and is_given(value)


def holds_whole_conversations(row: Row, names: tuple[str, str]) -> bool:
    """Return whether both sides are lists that begin with a turn of the user, or with a system message."""
    firsts = [row[name][0] if isinstance(row[name], list) else None for name in names]
    roles = [first.get("role", first.get("from")) if isinstance(first, dict) else None for first in firsts]
    return all(role in ("user", "human", "system") for role in roles)


def has_prompt(row: Row) -> bool:
    """Return whether what was asked stands in a field of the project's own."""
    return any(is_given(row.get(name)) for name in ("prompt", "messages", "conversations", OPENAI_INPUT, "instruction"))


def numbered_fault(row: Row) -> RowFault | None:
    """Build the refusal of two answers of which no name says which one is better; else None."""
    if any(find_sides(row)):
        return None
    for name, value in row.items():
        if plain(name) in ANSWER_NAMES and _is_two_texts(value):
            fix = "write the better one as `chosen` and the other as `rejected`; in most such files the first is better"
            return RowFault(Reason.UNKNOWN_SHAPE, f"`{shown(name)}` holds two answers", fix)
    found = [name for name in row if _NUMBERED.fullmatch(plain(name)) and is_given(row[name])]
    if len(found) < 2:
        return None
    rule = f"has {' and '.join(f'`{shown(name)}`' for name in found[:2])}, and no name says which one is better"
    return RowFault(Reason.UNKNOWN_SHAPE, rule, "write the better one as `chosen` and the other as `rejected`")


def _is_two_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)
