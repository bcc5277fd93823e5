"""Rows for the tests of preferences: questions with a good and a bad answer, as pairs or each with its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from tests.support.ppo_rows import Encoder, Example, examples


@dataclass(frozen=True)
class Pair:
    chosen: Example
    rejected: Example


def pairs(*, held_out: bool) -> list[Pair]:
    """The answers to every question, the good one chosen."""
    found = examples(held_out=held_out)
    return [Pair(good, bad) for good, bad in zip(found[::2], found[1::2], strict=True)]


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.output}]


def write_pairs(path: Path, base: Path, chosen: Sequence[Pair]) -> TokenRows:
    """Tokenise pairs into a folder as a run reads it."""
    encode = Encoder(base)
    with TokenRowsWriter(path) as writer:
        for number, pair in enumerate(chosen):
            good, bad = encode(pair.chosen), encode(pair.rejected)
            writer.append(good.input_ids, good.learned, row_number=number, messages=_messages(pair.chosen))
            writer.append_sequence(bad.input_ids, bad.learned, messages=_messages(pair.rejected))
    return TokenRows.open(path)


def write_labels(path: Path, base: Path, chosen: Sequence[Example], labels: Sequence[bool]) -> TokenRows:
    """Tokenise answers and their labels into a folder as a run reads it."""
    encode = Encoder(base)
    with TokenRowsWriter(path) as writer:
        for number, (example, label) in enumerate(zip(chosen, labels, strict=True)):
            row = encode(example)
            writer.append(
                row.input_ids, row.learned, row_number=number, number=float(label), messages=_messages(example)
            )
    return TokenRows.open(path)
