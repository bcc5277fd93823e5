"""Held-out evaluation: the bare base, the start policy and the tuned model on the same rows.

Only learned tokens count, as in the loss. In data-parallel runs every rank takes its share of the rows and the sums
are added up, so that each rank holds the same scores.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from llm_tuning.core.files import write_json
from llm_tuning.data.splitting import MIN_ROWS_TO_SPLIT
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.models.layout import EVALUATION
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.model import bare_base, start_policy
from llm_tuning.trainers.parallel import sum_over_ranks
from llm_tuning.trainers.policy import Policy

NO_HELD_OUT_ROWS = "NoHeldOutRows"
"""Reason when the data set is too small for a split (below 20 rows), has one prompt, or the fraction is 0."""


@dataclass(frozen=True)
class Scores:
    """Means over learned tokens. `loss` is in nats a token; `perplexity` = exp(loss).

    `reward_weighted_loglik` (ppo): mean over rows of z_i times the row's mean log-probability a token, where z_i is the
    row's reward standardised over the rows evaluated; it rises when good rows gain likelihood against bad ones.
    """

    loss: float
    perplexity: float
    token_accuracy: float
    tokens: int
    rows: int
    reward_weighted_loglik: float | None = None


def evaluate_policy(policy: Policy, batches: MicroBatches, indices: Indices) -> Scores:
    """Score `policy` on the rows at `indices`; raises TryAgain on all ranks when one is asked to stop."""
    was_training = policy.training
    policy.eval()
    # Of each row of the data set: log-probability, number, and number right of its learned tokens.
    sums = torch.zeros(3, len(batches.rows), dtype=torch.float64)
    for batch in batches.mine(indices, "during evaluation"):
        logprobs_N, right_N = policy.score(batch)
        row_N = torch.from_numpy(np.repeat(batch.rows, batches.rows.learned_counts[batch.rows]))
        values = torch.stack([logprobs_N, torch.ones_like(logprobs_N), right_N.float()]).double().cpu()
        sums.index_add_(1, row_N, values)
    policy.train(was_training)
    loglik, tokens, correct = sum_over_ranks(sums, batches.device)[:, torch.from_numpy(indices)].unbind()
    count = int(tokens.sum())
    loss = float(-loglik.sum() / count)
    return Scores(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        token_accuracy=float(correct.sum() / count),
        tokens=count,
        rows=len(indices),
        reward_weighted_loglik=_reward_weighted(
            loglik / tokens, torch.from_numpy(batches.rows.numbers[indices].copy())
        ),
    )


def _reward_weighted(mean_loglik: torch.Tensor, rewards: torch.Tensor) -> float | None:
    if rewards.isnan().any():
        return None
    spread = rewards.std(correction=0)
    z = (rewards - rewards.mean()) / spread if spread > 0 else torch.zeros_like(rewards)
    return float((z * mean_loglik).mean())


def evaluate_run(run: TrainRun, policy: Policy, batches: MicroBatches, held_out: Indices) -> None:
    """Score base, start policy (where training began at an adapter) and tuned; write the run's `evaluation.json`.

    All ranks call it; rank 0 writes and reports.
    """
    result: dict[str, object] = {"source": "held_out", "held_out_rows": len(held_out)}
    rows = batches.rows
    if (prompts := rows.count_prompts(held_out)) is not None:
        result |= {"held_out_prompts": prompts, "prompts": rows.count_prompts()}
    if len(held_out) == 0:
        why = _why_none(rows, run.config.training.eval_fraction)
        result |= {"source": "none", "reason": NO_HELD_OUT_ROWS, "message": why}
        result |= {"base": None, "start": None, "tuned": None}
    else:
        tuned = evaluate_policy(policy, batches, held_out)
        with bare_base(policy.model):
            base = evaluate_policy(policy, batches, held_out)
        start = None
        if run.start_adapter is not None:
            with start_policy(policy.model):
                start = evaluate_policy(policy, batches, held_out)
        result |= {"base": asdict(base), "start": asdict(start) if start else None, "tuned": asdict(tuned)}
    if run.is_main:
        write_json(run.work / EVALUATION, result)


def _why_none(rows: TokenRows, fraction: float) -> str:
    if fraction <= 0:
        return "evalFraction is 0"
    if len(rows) < MIN_ROWS_TO_SPLIT:
        return f"{len(rows)} rows are fewer than {MIN_ROWS_TO_SPLIT}"
    return f"all {len(rows):,} rows have one prompt, and rows of one prompt stay together"
