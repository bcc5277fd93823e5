"""Tokenised rows on disk: written as a stream, read through memory maps, never taken for whole when they are not.

A row has one or more sequences (a pair has two). A folder holds one flat file per column, in the machine's byte
order, and `rows.json`, which is written last and names the size of every other file:

    per row        row_starts.bin  int64 (rows + 1,) into the sequences
                   numbers.bin  float64 (rows,)              row_numbers.bin  int64 (rows,)
                   prompts.bin  uint64 (rows,): `splitting.PromptGroups`
    per sequence   starts.bin  int64 (sequences + 1,) into the tokens
                   learned_counts.bin  int32 (sequences,)    source_starts.bin  int64 (sequences + 1,) bytes
                   source.jsonl  one line a sequence, {"messages": ...} or {"text": ...}; with "tools" where
                                 there are some, and "prompt_tokens" where a server makes that many of its ids
                                 of the messages before the last one
    per token      input_ids.bin  int32                      learned.bin  bool

Rows to evaluate on that have a file of their own follow the training rows; `rows.json` says from which row on
(`evaluation_from`). Version 1, whose rows had one sequence each, had neither row_starts nor prompts and called numbers
rewards; it is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from llm_tuning.core.files import read_json, write_json
from llm_tuning.data.calls import Tools
from llm_tuning.data.labels import GOOD
from llm_tuning.data.messages import Message
from llm_tuning.data.splitting import PromptGroups, held_out_apart, split, split_rows

MARKER = "rows.json"
FORMAT_VERSION = 2

_COLUMNS: dict[str, type[np.generic]] = {
    "input_ids": np.int32,
    "learned": np.bool_,
    "starts": np.int64,
    "row_starts": np.int64,
    "numbers": np.float64,
    "row_numbers": np.int64,
    "learned_counts": np.int32,
    "source_starts": np.int64,
    "prompts": np.uint64,
}
_SOURCE = "source.jsonl"
_FILES = (*(f"{name}.bin" for name in _COLUMNS), _SOURCE)
_NUMBERS_1, _NOT_IN_1 = "rewards", ("row_starts", "prompts")
_FILES_OF_VERSION = {
    1: (*(f"{_NUMBERS_1 if name == 'numbers' else name}.bin" for name in _COLUMNS if name not in _NOT_IN_1), _SOURCE),
    FORMAT_VERSION: _FILES,
}


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence; the arrays, of shape (tokens,), are read-only views of the file."""

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """Loss mask: token t is a target of the loss, predicted from the tokens before it; learned[0] is False."""

    @property
    def sequences(self) -> tuple[TokenSequence, ...]:
        """Itself, as a row has its sequences."""
        return (self,)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row; the arrays hold all its sequences, one after the other, and are read-only views of the file."""

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    number: float
    """Such as a reward; NaN where the mode takes none."""
    row_number: int
    """Where the row is in the file of the data set."""
    lengths: tuple[int, ...] = ()
    """Tokens of each sequence; left out where there is one."""

    @property
    def sequences(self) -> tuple[TokenSequence, ...]:
        """The sequences apart."""
        lengths = self.lengths or (len(self.input_ids),)
        return tuple(
            TokenSequence(self.input_ids[end - length : end], self.learned[end - length : end])
            for end, length in zip(accumulate(lengths), lengths, strict=True)
        )


class TokenRowsWriter:
    """Writes a folder of rows; whole only after `close()`. As a context manager an error leaves no folder behind."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKER).unlink(missing_ok=True)  # first: rows of an earlier, killed write must not look whole
        self._path = path
        self._files: dict[str, BinaryIO] = {name: (path / name).open("wb") for name in _FILES}
        self._rows = self._sequences = self._tokens = self._source_bytes = 0
        self._prompts = PromptGroups()
        self._evaluation_from: int | None = None
        self._write("starts", 0)
        self._write("source_starts", 0)

    def append(
        self,
        input_ids: NDArray[np.int32],
        learned: NDArray[np.bool_],
        *,
        row_number: int,
        number: float = math.nan,
        messages: Sequence[Message] | None = None,
        tools: Tools | None = None,
        text: str | None = None,
        prompt_tokens: int = 0,
        authored: Sequence[Message] | None = None,
        learn_from: int = 0,
        not_learned: frozenset[int] = frozenset(),
    ) -> None:
        """Begin a row with its first sequence; `messages` (and `tools`) or `text` is what its ids were made of.

        `authored`: the conversation of the row where the sequence is the beginning of it. `learn_from` and
        `not_learned` are as in a Conversation, and `prompt_tokens` as in `TokenRows.prompt_tokens`.
        """
        first = self._sequences
        self.append_sequence(input_ids, learned, messages=messages, tools=tools, text=text, prompt_tokens=prompt_tokens)
        self._rows += 1
        self._write("row_starts", first)
        self._write("numbers", number)
        self._write("row_numbers", row_number)
        whole = authored if authored is not None else messages
        self._prompts.add(whole, text, tools=tools, learn_from=learn_from, not_learned=not_learned)

    def append_sequence(
        self,
        input_ids: NDArray[np.int32],
        learned: NDArray[np.bool_],
        *,
        messages: Sequence[Message] | None = None,
        tools: Tools | None = None,
        text: str | None = None,
        prompt_tokens: int = 0,
    ) -> None:
        """Add a further sequence to the row begun last."""
        if len(input_ids) != len(learned) or len(input_ids) == 0 or learned[0]:
            raise ValueError("a sequence needs as many learned flags as ids, at least one, and the first one False")
        source: dict[str, Any] = {"messages": messages} if messages is not None else {"text": text}
        if tools:
            source["tools"] = tools
        if prompt_tokens:
            source["prompt_tokens"] = prompt_tokens
        line = json.dumps(source, ensure_ascii=False).encode() + b"\n"
        self._files[_SOURCE].write(line)
        self._sequences += 1
        self._tokens += len(input_ids)
        self._source_bytes += len(line)
        self._write("input_ids", input_ids)
        self._write("learned", learned)
        self._write("starts", self._tokens)
        self._write("learned_counts", np.count_nonzero(learned))
        self._write("source_starts", self._source_bytes)

    @property
    def path(self) -> Path:
        """The folder of the rows."""
        return self._path

    def begin_evaluation(self) -> None:
        """Take the rows that follow for those to evaluate on: none of them trains, and no other is held out."""
        self._evaluation_from = self._rows

    def close(self) -> None:
        """Flush all to disk, then write the marker that makes the folder whole."""
        self._write("row_starts", self._sequences)
        self._write("prompts", self._prompts.keys())
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        sizes = {name: (self._path / name).stat().st_size for name in _FILES}
        marker: dict[str, Any] = {"version": FORMAT_VERSION, "rows": self._rows, "sizes": sizes}
        if self._evaluation_from is not None:
            marker["evaluation_from"] = self._evaluation_from
        write_json(self._path / MARKER, marker)

    def discard(self) -> None:
        """Remove what was written; the folder goes too if nothing else is in it."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk cannot take what is still buffered
                file.close()
        for name in (MARKER, *_FILES):
            (self._path / name).unlink(missing_ok=True)
        if not any(self._path.iterdir()):
            self._path.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _write(self, column: str, values: Any) -> None:
        self._files[f"{column}.bin"].write(np.asarray(values, dtype=_COLUMNS[column]).tobytes())


class TokenRows:
    """A whole folder of rows, memory-mapped: opening costs nothing and processes share the pages."""

    def __init__(self, path: Path) -> None:
        """Open the rows in `path`; raises FileNotFoundError if the folder is not whole."""
        if not self.is_whole(path):
            raise FileNotFoundError(f"{path} holds no whole set of tokenised rows: check the dataset again")
        self._path = path
        old = _version(path) == 1
        self._columns: dict[str, NDArray[Any]] = {
            name: _map(path / f"{_NUMBERS_1 if old and name == 'numbers' else name}.bin", dtype)
            for name, dtype in _COLUMNS.items()
            if not (old and name in _NOT_IN_1)
        }
        self._starts: NDArray[np.int64] = self._columns["starts"]
        self._row_starts: NDArray[np.int64] = (
            np.arange(len(self._starts), dtype=np.int64) if old else self._columns["row_starts"]
        )
        self.lengths: NDArray[np.int32] = np.diff(self._starts[self._row_starts]).astype(np.int32)
        """Tokens of each row, over all its sequences."""
        self.sequence_lengths: NDArray[np.int32] = np.diff(self._starts).astype(np.int32)
        """Tokens of each sequence."""
        self.sequence_learned_counts: NDArray[np.int32] = self._columns["learned_counts"]
        """Tokens in the loss mask of each sequence."""
        learned = np.concatenate([[0], np.cumsum(self.sequence_learned_counts, dtype=np.int64)])
        self.learned_counts: NDArray[np.int32] = np.diff(learned[self._row_starts]).astype(np.int32)
        """Tokens in the loss mask of each row, summed over its sequences."""
        self.numbers: NDArray[np.float64] = self._columns["numbers"]
        self.row_numbers: NDArray[np.int64] = self._columns["row_numbers"]
        self.prompts: NDArray[np.uint64] | None = self._columns.get("prompts")
        """Equal where rows must be on one side of a split; None in rows that were written before prompts were kept."""
        self.evaluation_from: int | None = _marker(path).get("evaluation_from")
        """The first of the rows to evaluate on, which follow the training rows; None where they have no file."""

    @classmethod
    def open(cls, path: Path) -> TokenRows:
        """Open the rows in `path`; raises FileNotFoundError if the folder is not whole."""
        return cls(path)

    @staticmethod
    def is_whole(path: Path) -> bool:
        """Return whether a writer finished in `path` and every file still has its size."""
        marker = _marker(path)
        sizes = marker.get("sizes", {})
        files = _FILES_OF_VERSION.get(_version(path), ())
        return bool(files) and all(
            (path / name).is_file() and (path / name).stat().st_size == sizes.get(name) for name in files
        )

    def hold_out(
        self, fraction: float, seed: int, *, labelled: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of the training rows and of the held-out rows: see `splitting.split`.

        `labelled`: the numbers of the rows are labels, and both sides should have rows of both.

        Rows to evaluate on that have a file of their own are all that is held out: see `splitting.held_out_apart`.
        """
        if self.evaluation_from is not None and self.prompts is not None:
            return held_out_apart(self.prompts, self.evaluation_from)
        if self.prompts is None:
            return split_rows(len(self), fraction, seed)
        return split(self.prompts, fraction, seed, good=self.numbers == GOOD if labelled else None)

    def sequences_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the sequences of the rows at `indices`, row after row."""
        first, after = self._row_starts[indices], self._row_starts[indices + 1]
        if len(self) == len(self._starts) - 1:
            return np.asarray(first, dtype=np.int64)
        return np.concatenate([np.arange(*pair, dtype=np.int64) for pair in zip(first, after, strict=True)] or [first])

    def sequences_of_row(self, index: int) -> NDArray[np.int64]:
        """Return the numbers of the sequences of one row."""
        return self.sequences_of(np.asarray([range(len(self))[index]]))

    def rows_of(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each of these sequences."""
        return np.searchsorted(self._row_starts, sequences, side="right").astype(np.int64) - 1

    def place_of(self, sequence: int) -> tuple[int, int]:
        """Return the row of a sequence and its place among those of the row."""
        row = int(self.rows_of(np.asarray([sequence]))[0])
        return row, sequence - int(self._row_starts[row])

    def padded_lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens of the rows at `indices` with their sequences padded to the longest one of the row."""
        longest = np.maximum.reduceat(self.sequence_lengths, self._row_starts[:-1])[indices]
        return longest * np.diff(self._row_starts)[indices]

    def sequence(self, number: int) -> TokenSequence:
        """Return one sequence by its number in the data set."""
        part = slice(int(self._starts[number]), int(self._starts[number + 1]))
        return TokenSequence(self._columns["input_ids"][part], self._columns["learned"][part])

    def squared_lengths(self, indices: NDArray[np.int64]) -> float:
        """Sum the squared lengths of the sequences of the rows at `indices`: what attention grows with."""
        return float(np.square(self.sequence_lengths[self.sequences_of(indices)].astype(np.float64)).sum())

    def count_prompts(self, indices: NDArray[np.int64] | None = None) -> int | None:
        """Count the prompts of the rows (at `indices`); None where they are not known."""
        if self.prompts is None:
            return None
        return len(np.unique(self.prompts if indices is None else self.prompts[indices]))

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def __getitem__(self, index: int) -> TokenRow:
        index = range(len(self))[index]
        starts = self._starts[self._row_starts[index] : self._row_starts[index + 1] + 1]
        part = slice(int(starts[0]), int(starts[-1]))
        return TokenRow(
            self._columns["input_ids"][part],
            self._columns["learned"][part],
            float(self.numbers[index]),
            int(self.row_numbers[index]),
            tuple(np.diff(starts).tolist()),
        )

    def messages(self, index: int, sequence: int = 0) -> list[Message] | None:
        """Return the conversation whose rendering was tokenised, None for a sequence of plain text."""
        return self._source(index, sequence).get("messages")

    def tools(self, index: int, sequence: int = 0) -> Tools | None:
        """Return the tools of that conversation's prompts, None without any."""
        return self._source(index, sequence).get("tools")

    def text(self, index: int, sequence: int = 0) -> str | None:
        """Return the text that was tokenised, None for a conversation."""
        return self._source(index, sequence).get("text")

    def prompt_tokens(self, index: int, sequence: int = 0) -> int:
        """Count the ids that a server makes of the messages before the last one, with its generation prompt.

        0 where it cannot be asked for them: plain text, a given beginning of the answer, rows of older versions.
        """
        return int(self._source(index, sequence).get("prompt_tokens", 0))

    def _source(self, index: int, sequence: int) -> dict[str, Any]:
        index = range(len(self))[index]
        at = range(int(self._row_starts[index]), int(self._row_starts[index + 1]))[sequence]
        starts = self._columns["source_starts"]
        with (self._path / _SOURCE).open("rb") as file:
            file.seek(int(starts[at]))
            source: dict[str, Any] = json.loads(file.read(int(starts[at + 1] - starts[at])))
        return source


def _marker(path: Path) -> dict[str, Any]:
    """Read the marker of a finished writer; empty where it has not finished."""
    try:
        marker = read_json(path / MARKER)
    except ValueError:
        return {}
    return marker if isinstance(marker, dict) else {}


def _version(path: Path) -> int:
    version = _marker(path).get("version")
    return version if isinstance(version, int) else 0


def _map(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
