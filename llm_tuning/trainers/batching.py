"""Which rows an optimizer step sees, and how many of them go through the model together; torch-free.

The two questions are kept apart on purpose. `StepBatches` decides the rows of a step from seed, epoch and the total
batch size alone, so that gradients do not depend on how memory is used; `full_batches` and `token_budget_batches` then
cut rows into micro-batches under a token budget, without padding and with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

PASS_COST = 64
"""What a micro-batch costs besides its tokens, in tokens: 30 to 80 with a 13 M Llama on a CPU."""


FIRST_FIT_ROWS = 1024
"""Rows among which `full_batches` finds a fit: an evaluation cuts a hundred thousand at once, and first fit takes
the square of their number."""


class StepBatches:
    """The rows of every optimizer step of an epoch, for one rank.

    A step takes batch_size x grad_accum x world rows of a permutation drawn from (seed, epoch); the ranks share them
    out. So world 2 with batch B sees the same rows in a step as world 1 with batch 2 B, and 8 x 1 the same as 1 x 8.
    """

    def __init__(
        self,
        rows: int | Sequence[int] | npt.NDArray[np.integer],
        *,
        batch_size: int,
        grad_accum: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lengths: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Take `rows`, their number or their indices. With `lengths` (indexed by row) ranks get equally long shares."""
        self.rows: Indices = np.arange(rows) if isinstance(rows, int) else np.asarray(rows, dtype=np.int64)
        self.rows_per_step = batch_size * grad_accum * world
        self.seed, self.rank, self.world = seed, rank, world
        self.lengths = lengths

    def __len__(self) -> int:
        """Return the optimizer steps in an epoch, the last of them possibly smaller."""
        return math.ceil(len(self.rows) / self.rows_per_step)

    def epoch(self, epoch: int) -> list[Indices]:
        """Return this rank's rows for every step of `epoch` (from 0).

        Every rank gets the same number of steps; a share of the last one may be empty.
        """
        return [self.share(step_rows, self.rank) for step_rows in self.whole(epoch)]

    def whole(self, epoch: int) -> list[Indices]:
        """Return the rows of all ranks for every step of `epoch`."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        starts = range(0, len(order), self.rows_per_step)
        return [order[start : start + self.rows_per_step] for start in starts]

    def visited(self, first_step: int, steps: int) -> Indices:
        """Return the rows of all ranks in at most one epoch of `steps` from `first_step` on, rising, each once."""
        epoch, done = divmod(first_step, len(self))
        if steps >= len(self):
            return np.sort(self.rows)
        return np.sort(np.concatenate(self.whole(epoch)[done : done + steps]))

    def total_steps(self, epochs: int, max_steps: int | None) -> int:
        """Return the optimizer steps of a run: `max_steps` where it is set (as in transformers), else whole epochs."""
        return max_steps if max_steps is not None else epochs * len(self)

    def share(self, step_rows: Indices, rank: int) -> Indices:
        """Return those of a step's rows that `rank` takes."""
        if self.world == 1 or self.lengths is None:
            return step_rows[rank :: self.world]
        # Longest first, dealt out and back (0 1 1 0 0 1 ...), so that no rank gets all the long rows.
        longest_first = step_rows[np.argsort(-self.lengths[step_rows], kind="stable")]
        there, back = rank, 2 * self.world - 1 - rank
        return np.sort(np.concatenate([longest_first[there :: 2 * self.world], longest_first[back :: 2 * self.world]]))


def token_budget_batches(
    lengths: npt.NDArray[np.integer] | Sequence[int],
    max_tokens: int,
    max_rows: int | None = None,
    *,
    pass_cost: int = PASS_COST,
) -> list[Indices]:
    """Cut rows into micro-batches of similar lengths; returns positions in `lengths`, longest rows first.

    Rows x longest row of a micro-batch is at most `max_tokens`; a row that alone is longer gets one of its own. Among
    all such cuts of the rows in order of length, the one with the least work: padded tokens, and `pass_cost` tokens for
    each micro-batch. Longest first, so that a run that needs too much memory fails in its first one, not in its last.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    widths = np.maximum(1, np.asarray(lengths, dtype=np.int64)[order])
    fitting = np.maximum(1, max_tokens // widths)
    if max_rows is not None:
        fitting = np.minimum(fitting, max_rows)
    # least[i]: work of the rows from i on when a micro-batch begins at i; the best one ends before end[i].
    least = np.zeros(len(order) + 1, dtype=np.int64)
    end = np.zeros(len(order), dtype=np.int64)
    for i in range(len(order) - 1, -1, -1):
        rows = np.arange(1, min(fitting[i], len(order) - i) + 1)
        work = rows * widths[i] + least[i + rows]
        best = len(rows) - 1 - int(np.argmin(work[::-1]))  # of equal ones the largest
        least[i], end[i] = pass_cost + work[best], i + rows[best]
    batches: list[Indices] = []
    start = 0
    while start < len(order):
        batches.append(order[start : end[start]])
        start = int(end[start])
    return batches


def full_batches(lengths: npt.NDArray[np.integer] | Sequence[int], max_tokens: int) -> list[Indices]:
    """Cut rows into few micro-batches of at most `max_tokens` tokens in all, for rows that need no padding.

    First fit, longest rows first; returns positions in `lengths`. A row that alone is longer gets one of its own.
    """
    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    groups = math.ceil(len(longest_first) / FIRST_FIT_ROWS)
    return [at for group in range(groups) for at in _first_fit(longest_first[group::groups], lengths, max_tokens)]


def _first_fit(order: Indices, lengths: npt.NDArray[np.integer] | Sequence[int], max_tokens: int) -> Iterator[Indices]:
    batches: list[list[int]] = []
    free: list[int] = []
    for i in order.tolist():
        length = int(lengths[i])
        at = next((b for b, space in enumerate(free) if space >= length), None)
        if at is None:
            at = len(batches)
            batches.append([])
            free.append(max_tokens)
        batches[at].append(i)
        free[at] -= length
    return (np.array(batch, dtype=np.int64) for batch in batches)
