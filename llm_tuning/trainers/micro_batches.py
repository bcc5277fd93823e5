"""Rows as micro-batches: end to end where the model keeps them apart, padded to similar lengths elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llm_tuning.data.token_rows import TokenRow, TokenRows
from llm_tuning.trainers.batching import Indices, full_batches, token_budget_batches
from llm_tuning.trainers.parallel import stop_together

IGNORED = -100
"""Label of a position outside the loss mask, as in torch's cross_entropy."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together: B sequences (1 where they lie end to end) of T tokens."""

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
    """Which rows of the data set these are, in the order of their tokens."""


def pad(rows: Sequence[TokenRow], indices: Indices | None = None) -> MicroBatch:
    """Stack the sequences of rows one below the other, padded on the right with id 0."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    shape = (len(sequences), max(len(sequence.input_ids) for sequence in sequences))
    input_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for i, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        input_ids[i, :length] = sequence.input_ids
        labels[i, :length] = np.where(sequence.learned, sequence.input_ids, IGNORED)
    at = np.arange(len(rows)) if indices is None else indices
    return MicroBatch(torch.from_numpy(input_ids), torch.from_numpy(labels), None, at)


def flatten(rows: Sequence[TokenRow], indices: Indices | None = None) -> MicroBatch:
    """Lay the sequences of rows end to end, without padding."""
    input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    labels = np.where(np.concatenate([row.learned for row in rows]), input_ids, IGNORED)
    lengths = [len(sequence.input_ids) for row in rows for sequence in row.sequences]
    at = np.arange(len(rows)) if indices is None else indices
    return MicroBatch(torch.from_numpy(input_ids)[None], torch.from_numpy(labels)[None], lengths, at)


@dataclass(frozen=True)
class MicroBatches:
    """How rows become micro-batches of at most `max_tokens` tokens (padding counted), and which rank takes which.

    With `flat` they lie end to end: only for a model that keeps them apart (`Policy.flat_rows`).
    """

    rows: TokenRows
    max_tokens: int
    flat: bool
    device: str
    rank: int = 0
    world: int = 1

    def cut(self, indices: Indices) -> list[Indices]:
        """Return the rows of each micro-batch over `indices`."""
        cut = full_batches if self.flat else token_budget_batches
        return [indices[at] for at in cut(self.rows.lengths[indices], self.max_tokens)]

    def lay(self, at: Indices) -> MicroBatch:
        """Build one micro-batch of the rows `at`."""
        rows = [self.rows[int(i)] for i in at]
        return flatten(rows, at) if self.flat else pad(rows, at)

    def mine(self, indices: Indices, doing: str) -> Iterator[MicroBatch]:
        """Yield this rank's share of the micro-batches over `indices`, dealt out in turn.

        All ranks take the same number of turns and all-reduce the stop flag in each: a signal to one of them raises
        TryAgain on all, which says what is being left (`doing`).
        """
        cut = self.cut(indices)
        for first in range(0, len(cut), self.world):
            stop_together(doing, self.device)
            if first + self.rank < len(cut):
                yield self.lay(cut[first + self.rank])
