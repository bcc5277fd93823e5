"""The promise of ppo.targetKl: what is published is at most that far from the start policy on the rows measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from llm_tuning.data.token_rows import TokenRows
from llm_tuning.trainers.batching import Indices

log = logging.getLogger(__name__)

KL_TOKENS = 4096
"""Output tokens on which the exact KL is measured: its mean is steady there, and their states fit any memory."""

BACKTRACKS = 5
"""Halvings of the last stretch that are tried before all of it is given up."""

TARGET_KL = "TargetKl"
"""`stopped_early` of a run whose KL went over its target."""


def rows_to_measure(rows: TokenRows, candidates: Indices, seed: int) -> Indices:
    """Choose `candidates` by seed with at most `KL_TOKENS` output tokens (at least one row), in rising order."""
    shuffled = np.random.default_rng(seed).permutation(candidates)
    fitting = int(np.searchsorted(np.cumsum(rows.learned_counts[shuffled]), KL_TOKENS, side="right"))
    return np.sort(shuffled[: max(1, fitting)])


@dataclass
class KlTarget:
    """Holds a run to `target`: above it the run restores weights within it, and ends."""

    adapter: list[nn.Parameter]
    measure: Callable[[], float]
    target: float
    within: list[Tensor] = field(default_factory=list)
    """The adapter at the last measurement whose KL was within the target; the start policy before the first one."""
    kl: float = 0.0
    """The last KL measured, of the weights that were kept."""
    stopped_early: str | None = None
    """Never set in a checkpoint, which is of the moment before a measurement: a resume measures again."""

    def __post_init__(self) -> None:
        self.within = self.within or copy_of(self.adapter)

    def hold(self, step: int) -> None:
        """Measure the exact KL. Within the target these weights are remembered; above it the run ends with some within.

        They lie on the line from the last weights within the target to the present ones, at the first of 1/2, 1/4, ...
        whose KL is within: the backtracking line search of TRPO (Schulman et al. 2015, arXiv 1502.05477, appendix C).
        """
        self.kl = self.measure()
        if self.kl <= self.target:
            self.within = copy_of(self.adapter)
            return
        over, self.stopped_early = self.kl, TARGET_KL
        beyond = copy_of(self.adapter)
        for halvings in range(1, BACKTRACKS + 1):
            pairs = zip(self.within, beyond, strict=True)
            set_parameters(self.adapter, [good + (bad - good) * 0.5**halvings for good, bad in pairs])
            self.kl = self.measure()
            if self.kl <= self.target:
                break
        else:
            set_parameters(self.adapter, self.within)
            self.kl = self.measure()
        log.warning(
            "stopped at step %d: the KL to the start policy was %.3g nats a token, above ppo.targetKl %g; the adapter "
            "went back to %.3g. A lower learning rate or a higher ppo.klCoef goes further within the target.",
            step,
            over,
            self.target,
            self.kl,
        )


def copy_of(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Copy the parameters' values of now to the CPU."""
    return [parameter.detach().cpu().clone() for parameter in parameters]


@torch.no_grad()
def set_parameters(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
