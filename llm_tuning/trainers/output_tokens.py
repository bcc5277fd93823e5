"""Numbers that belong to output tokens: flat arrays over the rows of a data set, and what fills them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_tuning.data.token_rows import TokenRows
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.parallel import sum_over_ranks
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.transfer import read_behind


class TokenLayout:
    """Where the output tokens of chosen rows lie in a flat array: row after row, in the order of `indices`."""

    def __init__(self, rows: TokenRows, indices: Indices) -> None:
        self.indices = indices
        self._counts = rows.learned_counts
        counts = rows.learned_counts[indices].astype(np.int64)
        self._starts = np.full(len(rows), -1, dtype=np.int64)
        self._starts[indices] = np.cumsum(counts) - counts
        self.size = int(counts.sum())

    def positions(self, at: Indices) -> Tensor:
        """Return the positions of the output tokens of the rows `at` (all among the chosen), row after row."""
        starts = self._starts[at]
        assert (starts >= 0).all(), "a row that is not in the layout"
        return torch.from_numpy(
            np.concatenate([np.arange(s, s + n) for s, n in zip(starts, self._counts[at], strict=True)])
        )


@torch.no_grad()
def score_logprobs(policy: Policy, batches: MicroBatches, layout: TokenLayout, doing: str) -> Tensor:
    """Compute the logprobs of the layout's output tokens, fp32 on the CPU, the same on every rank."""
    logprobs = torch.zeros(layout.size)
    passes = ((batch, policy.logprobs(batch).float()) for batch in batches.mine(layout.indices, doing, whole_rows=True))
    for batch, numbers in read_behind(passes):
        logprobs[layout.positions(batch.rows)] = numbers
    return sum_over_ranks(logprobs, batches.device)


def sums_of(numbers_N: Tensor, counts_S: NDArray[np.integer]) -> Tensor:
    """Sum numbers of tokens by sequence, (S,); differentiable, and the same each time on a GPU too."""
    return torch.stack([part.sum() for part in numbers_N.split(counts_S.tolist())])


@torch.no_grad()
def score_rows(
    policy: Policy, batches: MicroBatches, layout: TokenLayout, indices: Indices, doing: str
) -> tuple[Tensor, Tensor]:
    """Compute (logprobs, values) of the output tokens of the rows `indices`, fp32 on the CPU, the same on every rank.

    They are laid out flat, with zeros for the layout's other rows.
    """
    flat = torch.zeros(2, layout.size)
    passes = (
        (batch, torch.stack(policy.logprobs_and_values(batch)))
        for batch in batches.mine(indices, doing, whole_rows=True)
    )
    for batch, numbers in read_behind(passes):
        flat[:, layout.positions(batch.rows)] = numbers
    logprobs, values = sum_over_ranks(flat, batches.device)
    return logprobs, values


def start_states(policy: Policy, batches: MicroBatches, layout: TokenLayout, doing: str) -> Tensor:
    """Compute hidden_MH of the layout's M output tokens, on the CPU, the same on every rank."""
    assert policy.head is not None
    states = torch.zeros(layout.size, policy.head.weight.shape[1], dtype=policy.dtype)
    # In one dtype, whichever the last norm gives: a rank without a pass must agree with the others.
    passes = (
        (batch, policy.hidden(batch).to(policy.dtype)) for batch in batches.mine(layout.indices, doing, whole_rows=True)
    )
    for batch, hidden in read_behind(passes):
        states[layout.positions(batch.rows)] = hidden
    return sum_over_ranks(states, batches.device)


def mean_kl(policy: Policy, batches: MicroBatches, layout: TokenLayout, start_states_MH: Tensor) -> float:
    """Compute the mean exact KL(pi || pi_start) of the layout's output tokens, in nats a token, alike on every rank."""
    total = torch.zeros(1, dtype=torch.float64, device=batches.device)
    for batch in batches.mine(layout.indices, "while measuring the KL", whole_rows=True):
        total += policy.kl(batch, start_states_MH[layout.positions(batch.rows)]).double().sum()
    return float(sum_over_ranks(total, batches.device)) / layout.size
