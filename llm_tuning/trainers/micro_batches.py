"""Rows as micro-batches: end to end where the model keeps them apart, padded to similar lengths elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_tuning.data.token_rows import TokenRow, TokenRows, TokenSequence
from llm_tuning.trainers.batching import Indices, full_batches, token_budget_batches
from llm_tuning.trainers.parallel import stop_together

T = TypeVar("T")

IGNORED = -100
"""Label of a position outside the loss mask, as in torch's cross_entropy."""


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model together: B sequences (1 where they lie end to end) of T tokens."""

    input_ids: Tensor
    """(B, T), int64 on the CPU."""
    labels: Tensor
    """(B, T): -100 outside the loss mask, and always at the first token of a sequence: shifting by one never crosses
    sequences."""
    row_lengths: list[int] | None = None
    """Tokens of sequences that lie end to end; None where they are padded on the right.

    Padding needs no attention mask: with causal attention a real position never sees what is on its right.
    """
    rows: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Which rows of the data set these are, in the order of their tokens; a row may be here in part."""
    sequences: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The numbers of the sequences in the data set, in the order of their tokens."""
    padded_lengths: list[int] | None = None
    """Tokens of padded sequences without their padding; None where none has any, or they lie end to end."""


def pad(rows: Sequence[TokenRow | TokenSequence]) -> MicroBatch:
    """Stack the sequences of rows one below the other, padded on the right with id 0."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    lengths = [len(sequence.input_ids) for sequence in sequences]
    shape = (len(sequences), max(lengths))
    input_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for i, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        input_ids[i, :length] = sequence.input_ids
        labels[i, :length] = np.where(sequence.learned, sequence.input_ids, IGNORED)
    return MicroBatch(torch.from_numpy(input_ids), torch.from_numpy(labels), padded_lengths=lengths)


def flatten(rows: Sequence[TokenRow | TokenSequence]) -> MicroBatch:
    """Lay the sequences of rows end to end, without padding."""
    input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    labels = np.where(np.concatenate([row.learned for row in rows]), input_ids, IGNORED)
    lengths = [len(sequence.input_ids) for row in rows for sequence in row.sequences]
    return MicroBatch(torch.from_numpy(input_ids)[None], torch.from_numpy(labels)[None], lengths)


@dataclass(frozen=True)
class MicroBatches:
    """How rows become micro-batches of at most `max_tokens` tokens (padding counted), and which rank takes which.

    The sequences of a row may go through the model apart, unless the loss needs them together (`whole_rows`). With
    `flat` sequences lie end to end: only for a model that keeps them apart (`Policy.flat_rows`).
    """

    rows: TokenRows
    max_tokens: int
    flat: bool
    device: str
    rank: int = 0
    world: int = 1
    idle: Callable[[], None] | None = None
    """What a rank does in a turn that has no micro-batch for it: in a sharded model, an empty pass."""

    def cut(self, indices: Indices, *, whole_rows: bool = False) -> list[Indices]:
        """Return the sequences of each micro-batch over the rows at `indices`, by their numbers in the data set.

        With `whole_rows` those of a row stay together: for a loss that compares them.
        """
        rows = self.rows
        if whole_rows:
            lengths = rows.lengths[indices] if self.flat else rows.padded_lengths(indices)
            return [rows.sequences_of(indices[at]) for at in self.cut_lengths(lengths)]
        sequences = rows.sequences_of(indices)
        return [sequences[at] for at in self.cut_lengths(rows.sequence_lengths[sequences])]

    def cut_lengths(self, lengths: NDArray[np.integer] | Sequence[int]) -> list[Indices]:
        """Cut sequences of these lengths into micro-batches; returns positions in `lengths`."""
        return (full_batches if self.flat else token_budget_batches)(lengths, self.max_tokens)

    def lay(self, sequences: Indices) -> MicroBatch:
        """Build one micro-batch of the sequences with these numbers."""
        laid = self.lay_out([self.rows.sequence(int(number)) for number in sequences])
        rows = self.rows.rows_of(sequences)
        return replace(laid, rows=rows[np.diff(rows, prepend=-1) != 0], sequences=sequences)

    def lay_out(self, sequences: Sequence[TokenSequence]) -> MicroBatch:
        """Build one micro-batch of sequences that may be no rows of the data set."""
        return (flatten if self.flat else pad)(sequences)

    def mine(self, indices: Indices, doing: str, *, whole_rows: bool = False) -> Iterator[MicroBatch]:
        """Yield this rank's share of the micro-batches over `indices`, dealt out in turn.

        All ranks take the same number of turns and all-reduce the stop flag in each: a signal to one of them raises
        TryAgain on all, which says what is being left (`doing`).
        """
        return (self.lay(sequences) for sequences in self.deal(self.cut(indices, whole_rows=whole_rows), doing))

    def deal(self, passes: Sequence[T], doing: str | None, *, idle: Callable[[], None] | None = None) -> Iterator[T]:
        """Yield every `world`-th of `passes`, this rank's; in a turn that has none for it, `idle` is called instead.

        With `doing` a request to stop raises TryAgain on every rank, between two turns.
        """
        idle = idle or self.idle
        for first in range(0, len(passes), self.world):
            if doing is not None:
                stop_together(doing, self.device)
            if first + self.rank < len(passes):
                yield passes[first + self.rank]
            elif idle is not None:
                idle()
