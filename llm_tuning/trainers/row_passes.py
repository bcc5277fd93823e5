"""Forward passes over many rows, shared out over the ranks, and the flat arrays that hold a number an output token.

All ranks go round equally often and look at the stop flag together, so a signal that reaches one of them ends all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_tuning.core.stopping import stop_requested
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import TryAgain
from llm_tuning.trainers.actor_critic import ActorCritic
from llm_tuning.trainers.batching import Indices, pad, token_budget_batches
from llm_tuning.trainers.parallel import all_reduce_sum, any_rank, world_size


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
        """Positions of the output tokens of the rows `at` (which must be among the chosen), row after row."""
        starts = self._starts[at]
        assert (starts >= 0).all(), "a row that is not in the layout"
        return torch.from_numpy(
            np.concatenate([np.arange(s, s + n) for s, n in zip(starts, self._counts[at], strict=True)])
        )


@dataclass(frozen=True)
class RowPasses:
    """How rows become forward passes: at most `max_tokens` padded tokens each, dealt out to the ranks in turn."""

    rows: TokenRows
    max_tokens: int
    device: str
    rank: int
    world: int

    def batches(self, indices: Indices) -> list[Indices]:
        """The rows of each pass over `indices`."""
        return [indices[batch] for batch in token_budget_batches(self.rows.lengths[indices], self.max_tokens)]

    def padded(self, at: Indices) -> dict[str, Tensor]:
        return pad([self.rows[int(i)] for i in at], pad_id=0)

    def mine(self, indices: Indices, doing: str) -> Iterator[tuple[Indices, dict[str, Tensor]]]:
        """This rank's passes over `indices`; raises TryAgain on all ranks when one was asked to stop."""
        batches = self.batches(indices)
        for first in range(0, len(batches), self.world):
            stop_together(doing, self.device)
            if first + self.rank < len(batches):
                at = batches[first + self.rank]
                yield at, self.padded(at)

    def over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a CPU tensor over the ranks; each rank has filled in its share and left the rest zero."""
        return all_reduce_sum(values.to(self.device)).cpu() if world_size() > 1 else values


def stop_together(doing: str, device: str) -> None:
    """Raise TryAgain on every rank if any was asked to stop; `doing` says what is being left."""
    if any_rank(stop_requested(), device):
        raise TryAgain("Stopped", f"stopped {doing} on request; the same command with the same model_id goes on")


@torch.no_grad()
def score_rows(
    policy: ActorCritic, passes: RowPasses, layout: TokenLayout, indices: Indices, doing: str
) -> tuple[Tensor, Tensor]:
    """(logprobs, values) of the output tokens of the rows `indices`, laid out flat with zeros for the layout's other
    rows; fp32 on the CPU, the same on every rank."""
    flat = torch.zeros(2, layout.size)
    for at, batch in passes.mine(indices, doing):
        flat[:, layout.positions(at)] = torch.stack(policy(batch)).cpu()
    logprobs, values = passes.over_ranks(flat)
    return logprobs, values


def start_states(policy: ActorCritic, passes: RowPasses, layout: TokenLayout, doing: str) -> Tensor:
    """hidden_MH of the layout's M output tokens, on the CPU, the same on every rank."""
    states: Tensor | None = None
    for at, batch in passes.mine(layout.indices, doing):
        hidden_NH = policy.hidden(batch).cpu()
        if states is None:
            states = hidden_NH.new_zeros(layout.size, hidden_NH.shape[1])
        states[layout.positions(at)] = hidden_NH
    if states is None:  # more ranks than passes
        width = policy.value_head.linear.in_features
        states = torch.zeros(layout.size, width, dtype=policy.dtype)
    return passes.over_ranks(states)


def mean_kl(policy: ActorCritic, passes: RowPasses, layout: TokenLayout, start_states_MH: Tensor) -> float:
    """Mean of the exact KL(pi || pi_start) over the layout's output tokens, in nats a token, the same on every rank."""
    total = torch.zeros(1, dtype=torch.float64)
    for at, batch in passes.mine(layout.indices, "while measuring the KL"):
        total += policy.kl(batch, start_states_MH[layout.positions(at)]).double().sum().cpu()
    return float(passes.over_ranks(total)) / layout.size
