"""The promise of ppo.targetKl: what is published is at most that far from the start policy on the rows measured."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from torch import nn

from llm_tuning.data.token_rows import TokenRows
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.ppo_state import PpoState, copy_of, set_parameters

log = logging.getLogger(__name__)

KL_TOKENS = 4096
"""Output tokens on which the exact KL is measured: its mean is steady there, and their states fit any memory."""

BACKTRACKS = 5
"""Halvings of the last stretch that are tried before all of it is given up."""

TARGET_KL = "TargetKl"
"""`stopped_early` of a run whose KL went over its target."""


def rows_to_measure(rows: TokenRows, candidates: Indices, seed: int) -> Indices:
    """A seeded choice of `candidates` with at most `KL_TOKENS` output tokens (at least one row), in rising order."""
    shuffled = np.random.default_rng(seed).permutation(candidates)
    fitting = int(np.searchsorted(np.cumsum(rows.learned_counts[shuffled]), KL_TOKENS, side="right"))
    return np.sort(shuffled[: max(1, fitting)])


def hold_to_target(
    adapter: list[nn.Parameter], state: PpoState, measure_kl: Callable[[], float], *, target_kl: float
) -> None:
    """Measure the exact KL. Within the target these weights are remembered; above it the run ends with weights within.

    They lie on the line from the last weights within the target to the present ones, at the first of 1/2, 1/4, ...
    whose KL is within: the backtracking line search of TRPO (Schulman et al. 2015, arXiv 1502.05477, appendix C).
    """
    state.kl = measure_kl()
    if state.kl <= target_kl:
        state.within_target = copy_of(adapter)
        return
    over, state.stopped_early = state.kl, TARGET_KL
    beyond = copy_of(adapter)
    for halvings in range(1, BACKTRACKS + 1):
        pairs = zip(state.within_target, beyond, strict=True)
        set_parameters(adapter, [good + (bad - good) * 0.5**halvings for good, bad in pairs])
        state.kl = measure_kl()
        if state.kl <= target_kl:
            break
    else:
        set_parameters(adapter, state.within_target)
        state.kl = measure_kl()
    log.warning(
        "stopped at step %d: the KL to the start policy was %.3g nats a token, above ppo.targetKl %g; the adapter went "
        "back to %.3g. A lower learning rate or a higher ppo.klCoef goes further within the target.",
        state.step,
        over,
        target_kl,
        state.kl,
    )
