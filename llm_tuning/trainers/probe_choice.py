"""Which rows a proof is made of: short ones, and a few longer ones of each kind whose prompt a server may render wrong.

The template of a base writes tools, their calls and reasoning by rules of their own: a server's rendering is compared
for rows that have them, which are seldom short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_tuning.data.calls import Tools
from llm_tuning.data.messages import Message
from llm_tuning.data.token_rows import TokenRows

MAX_PROBES = 32
MAX_PROBE_TOKENS = 256
"""Longer rows are cut: a proof should cost a server well under a second."""
PROBES_OF_A_KIND = 2
MAX_TOKENS_OF_A_KIND = 2048
"""Whole, for only whole rows can be rendered again: schemas of tools are long."""
SEARCHED_ROWS = 2000

_KINDS: Mapping[str, Callable[[Sequence[Message], Tools | None], bool]] = {
    "tools": lambda messages, tools: bool(tools),
    "calls before the answer": lambda messages, tools: any("tool_calls" in message for message in messages[:-1]),
    "reasoning": lambda messages, tools: any("reasoning_content" in message for message in messages),
}


@dataclass(frozen=True)
class Chosen:
    """A sequence by its number in the data set, and how many of its tokens are probed."""

    number: int
    tokens: int


def choose_probes(rows: TokenRows, pool: NDArray[np.int64]) -> list[Chosen]:
    """Choose up to 32 sequences, one of each of the rows in `pool`.

    First two of each kind, then whole ones of at most 256 tokens, then the first 256 tokens of others, as only whole
    ones can be rendered again; of a row the longest that fits.
    """
    chosen = _of_kinds(rows, pool[:SEARCHED_ROWS])
    cut: list[Chosen] = []
    for row in pool:
        if len(chosen) == MAX_PROBES:
            break
        if int(row) in chosen:
            continue
        if (number := _longest(rows, int(row), MAX_PROBE_TOKENS)) is not None:
            chosen[int(row)] = Chosen(number, int(rows.sequence_lengths[number]))
        else:
            cut.append(Chosen(int(rows.sequences_of_row(int(row))[-1]), MAX_PROBE_TOKENS))
    return [*chosen.values(), *cut][:MAX_PROBES]


def _of_kinds(rows: TokenRows, pool: NDArray[np.int64]) -> dict[int, Chosen]:
    """Return the first rows of each kind, by row."""
    found: dict[int, Chosen] = {}
    wanted = dict.fromkeys(_KINDS, PROBES_OF_A_KIND)
    for row in pool:
        number = _longest(rows, int(row), MAX_TOKENS_OF_A_KIND)
        if number is None:
            continue
        kinds = [kind for kind in _kinds_of(rows, number) if kind in wanted]
        if kinds:
            found[int(row)] = Chosen(number, int(rows.sequence_lengths[number]))
        for kind in kinds:
            wanted[kind] -= 1
            if not wanted[kind]:
                del wanted[kind]
        if not wanted:
            break
    return found


def _kinds_of(rows: TokenRows, number: int) -> list[str]:
    place = rows.place_of(number)
    messages: Any = rows.messages(*place)
    if not messages:
        return []
    tools = rows.tools(*place)
    return [kind for kind, is_of in _KINDS.items() if is_of(messages, tools)]


def _longest(rows: TokenRows, row: int, most: int) -> int | None:
    """Return the longest sequence of a row that has at most `most` tokens."""
    sequences = rows.sequences_of_row(row)
    fitting = sequences[rows.sequence_lengths[sequences] <= most]
    return int(fitting[rows.sequence_lengths[fitting].argmax()]) if len(fitting) else None
