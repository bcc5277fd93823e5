"""Held-out evaluation: the bare base, the start policy and the tuned model on the same rows.

Only learned tokens count, as in the loss. In data-parallel runs every rank takes its share of the rows and the sums
are added up, so that each rank holds the same scores.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llm_tuning.core.files import write_json
from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.data.splitting import MIN_ROWS_TO_SPLIT
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.models.layout import EVALUATION
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import pad, token_budget_batches
from llm_tuning.trainers.parallel import all_reduce_sum, world_size
from llm_tuning.trainers.policy import bare_base, start_policy

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


@torch.no_grad()
def evaluate_policy(
    model: nn.Module,
    rows: TokenRows,
    indices: NDArray[np.int64],
    *,
    max_tokens: int,
    device: str,
    dtype: torch.dtype,
    rank: int = 0,
) -> Scores:
    """Score `model` on the rows at `indices`; a forward pass holds at most `max_tokens` padded tokens."""
    was_training = model.training
    model.eval()
    loglik, tokens, correct = _row_sums(
        model, rows, indices[rank :: world_size()], len(rows), max_tokens=max_tokens, device=device, dtype=dtype
    )
    model.train(was_training)
    sums = all_reduce_sum(torch.stack([loglik, tokens, correct]).to(device)).cpu()[:, torch.from_numpy(indices)]
    loglik, tokens, correct = sums.unbind()
    count = int(tokens.sum())
    loss = float(-loglik.sum() / count)
    return Scores(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        token_accuracy=float(correct.sum() / count),
        tokens=count,
        rows=len(indices),
        reward_weighted_loglik=_reward_weighted(loglik / tokens, torch.from_numpy(rows.numbers[indices].copy())),
    )


def _reward_weighted(mean_loglik: torch.Tensor, rewards: torch.Tensor) -> float | None:
    if rewards.isnan().any():
        return None
    spread = rewards.std(correction=0)
    z = (rewards - rewards.mean()) / spread if spread > 0 else torch.zeros_like(rewards)
    return float((z * mean_loglik).mean())


def _row_sums(
    model: nn.Module,
    rows: TokenRows,
    share: NDArray[np.int64],
    n_rows: int,
    *,
    max_tokens: int,
    device: str,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per row of the data set: sum of log-probabilities, number and number right of learned tokens (float64)."""
    loglik, tokens, correct = torch.zeros(3, n_rows, dtype=torch.float64).unbind()
    for batch in token_budget_batches(rows.lengths[share], max_tokens):
        raise_if_stopped("during evaluation")
        at = share[batch]
        padded = pad([rows[int(i)] for i in at], pad_id=0)
        logprobs_N, right_N, row_N = _learned(model, padded, device=device, dtype=dtype)
        where = torch.from_numpy(at)[row_N]
        loglik.index_add_(0, where, logprobs_N.double())
        tokens.index_add_(0, where, torch.ones_like(logprobs_N, dtype=torch.float64))
        correct.index_add_(0, where, right_N.double())
    return loglik, tokens, correct


def _learned(
    model: nn.Module, padded: dict[str, torch.Tensor], *, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability, whether the arg-max is right, and the row, of each of the N learned tokens of a batch."""
    labels_BT = padded["labels"][:, 1:]
    learned_BT = labels_BT != -100
    with torch.autocast(device.split(":", maxsplit=1)[0], dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits_BTV = model(input_ids=padded["input_ids"].to(device), use_cache=False).logits[:, :-1]
    logits_NV = logits_BTV[learned_BT.to(device)].float()
    target_N = labels_BT[learned_BT].to(device)
    logprobs_N = logits_NV.log_softmax(-1).gather(1, target_N[:, None])[:, 0]
    right_N = logits_NV.argmax(-1) == target_N
    return logprobs_N.cpu(), right_N.cpu(), learned_BT.nonzero()[:, 0]


def evaluate_run(
    run: TrainRun,
    model: nn.Module,
    rows: TokenRows,
    held_out: NDArray[np.int64],
    *,
    max_tokens: int,
    dtype: torch.dtype,
) -> None:
    """Score base, start policy (where training began at an adapter) and tuned; write the run's `evaluation.json`.

    All ranks call it; rank 0 writes and reports.
    """
    result: dict[str, object] = {"source": "held_out", "held_out_rows": len(held_out)}
    if (prompts := rows.count_prompts(held_out)) is not None:
        result |= {"held_out_prompts": prompts, "prompts": rows.count_prompts()}
    if len(held_out) == 0:
        why = _why_none(rows, run.config.training.eval_fraction)
        result |= {"source": "none", "reason": NO_HELD_OUT_ROWS, "message": why}
        result |= {"base": None, "start": None, "tuned": None}
    else:

        def scores() -> Scores:
            return evaluate_policy(
                model, rows, held_out, max_tokens=max_tokens, device=run.device, dtype=dtype, rank=run.rank
            )

        tuned = scores()
        with bare_base(model):
            base = scores()
        start = None
        if run.start_adapter is not None:
            with start_policy(model):
                start = scores()
        result |= {"base": asdict(base), "start": asdict(start) if start else None, "tuned": asdict(tuned)}
    if run.is_main:
        write_json(run.work / EVALUATION, result)


def _why_none(rows: TokenRows, fraction: float) -> str:
    if fraction <= 0:
        return "evalFraction is 0"
    if len(rows) < MIN_ROWS_TO_SPLIT:
        return f"{len(rows)} rows are fewer than {MIN_ROWS_TO_SPLIT}"
    return f"all {len(rows):,} rows have one prompt, and rows of one prompt stay together"
