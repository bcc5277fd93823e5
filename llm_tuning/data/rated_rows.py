"""Rows of one rated answer each, kept until all are read, and then written as pairs.

The tokenised answers lie on disk meanwhile, and are read from there by their place: memory holds some bytes an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.data.compared import answer_characters, content_key, prompt_identity
from llm_tuning.data.pairing import Pairing, PairingCounts, RatedAnswers, RatedPair
from llm_tuning.data.rows import Example
from llm_tuning.data.token_rows import TokenRowsWriter
from llm_tuning.data.tokenised import TokenisedRow, TokenisedSequence

ANSWERS = "answers"
"""The folder of the answers, inside that of the rows; it goes when they are written."""
_NUMBERS = ("starts.bin", "source_starts.bin", "input_ids.bin", "learned.bin", "row_numbers.bin")
_PAIRS_BETWEEN_LOOKS = 1024


class RatedRows:
    """The rated answers of one file."""

    def __init__(self, pairing: Pairing, writer: TokenRowsWriter | None) -> None:
        """Collect answers; with a `writer` of rows also their tokens, beside them."""
        self._answers = RatedAnswers(pairing)
        self._writer = writer
        self._folder = writer.path / ANSWERS if writer is not None else None
        self._stored: TokenRowsWriter | None = None
        self._learned, self._full = array("I"), array("I")
        self._learn_from = array("I")

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def counts(self) -> PairingCounts:
        """What became of the answers; whole when all pairs are made."""
        return self._answers.counts

    def add(self, example: Example, row: TokenisedRow | None) -> None:
        """Take in the next answer; `row` is None where there is no tokenizer."""
        conversation = example.sequences[0]
        sequence = row.sequences[0] if row is not None else None
        ids = None if sequence is None else hashlib.blake2b(sequence.input_ids.tobytes(), digest_size=8).digest()
        answer = content_key(conversation) if ids is None else int.from_bytes(ids, "little")
        self._answers.add(prompt=prompt_identity(conversation), answer=answer, rating=example.number)
        if sequence is None:
            self._learned.append(answer_characters(conversation))
            return
        self._learned.append(int(sequence.learned.sum()))
        self._full.append(sequence.full_length)
        if self._folder is not None:
            self._store(self._folder, example, sequence)

    def _store(self, folder: Path, example: Example, sequence: TokenisedSequence) -> None:
        if self._stored is None:
            self._stored = TokenRowsWriter(folder)
        conversation = example.sequences[0]
        self._learn_from.append(conversation.learn_from)
        self._stored.append(
            sequence.input_ids,
            sequence.learned,
            row_number=example.row_number,
            messages=sequence.messages,
            tools=sequence.tools,
            prompt_tokens=sequence.prompt_tokens,
        )

    def learned(self, place: int) -> int:
        """Return the length of an answer: its learned tokens, or characters where there is no tokenizer."""
        return self._learned[place]

    def full_length(self, place: int) -> int:
        """Return the tokens of an answer with its prompt, before any is cut; 0 without a tokenizer."""
        return self._full[place] if self._full else 0

    def pairs(self) -> Iterator[RatedPair]:
        """Make the pairs, and write each where there is a writer. Call it once, when all answers are in.

        Two prompts may have one key; at writing they are compared, and such a pair is left out.
        """
        if self._stored is not None:
            self._stored.close()
        stored = _Stored(self._folder) if self._stored is not None and self._folder is not None else None
        try:
            for number, pair in enumerate(self._answers.pairs()):
                if number % _PAIRS_BETWEEN_LOOKS == 0:
                    raise_if_stopped("while pairing the rows of the dataset")
                if stored is None or self._write(stored, pair):
                    yield pair
                else:
                    self.counts.pairs -= 1
        finally:
            if stored is not None:
                stored.close()
            self.discard()

    def discard(self) -> None:
        """Remove the stored answers."""
        if self._stored is not None:
            self._stored.discard()
            self._stored = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, stored: _Stored, pair: RatedPair) -> bool:
        assert self._writer is not None
        (chosen, one), (rejected, other) = stored.read(pair.chosen), stored.read(pair.rejected)
        begin, end = self._learn_from[pair.chosen], self._learn_from[pair.rejected]
        if one["messages"][:begin] != other["messages"][:end] or one.get("tools") != other.get("tools"):
            return False
        row_number = stored.row_number(pair.chosen)
        self._writer.append(*chosen, row_number=row_number, number=pair.difference, learn_from=begin, **one)
        self._writer.append_sequence(*rejected, **other)
        return True


class _Stored:
    """Reads answers from their folder by place, with file reads: mapped pages would count as the process's memory."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: (folder / name).open("rb", buffering=0) for name in (*_NUMBERS, "source.jsonl")}

    def read(self, place: int) -> tuple[tuple[NDArray[np.int32], NDArray[np.bool_]], dict[str, Any]]:
        """Return ids and loss mask of an answer, and its line of the sources."""
        first, after = self._numbers("starts.bin", np.int64, place, place + 2).tolist()
        begin, end = self._numbers("source_starts.bin", np.int64, place, place + 2).tolist()
        ids = self._numbers("input_ids.bin", np.int32, first, after)
        learned = self._numbers("learned.bin", np.bool_, first, after)
        source: dict[str, Any] = json.loads(os.pread(self._files["source.jsonl"].fileno(), end - begin, begin))
        return (ids, learned), source

    def row_number(self, place: int) -> int:
        """Return where the row of an answer is in the file of the data set."""
        return int(self._numbers("row_numbers.bin", np.int64, place, place + 1)[0])

    def _numbers(self, name: str, dtype: type[np.generic], start: int, end: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize
        return np.frombuffer(os.pread(self._files[name].fileno(), (end - start) * size, start * size), dtype=dtype)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
