"""Held-out evaluation: the bare base, the start policy and the tuned model on the same rows.

Only tokens in the loss mask count, as in training. In data-parallel runs every rank takes its share of the rows and the
sums are all-reduced, so that each rank holds the same scores.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from llm_tuning.core.files import write_json
from llm_tuning.data.splitting import MIN_ROWS_TO_SPLIT
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.models.layout import EVALUATION
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.calls import CallScorer
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.model import bare_base, start_policy
from llm_tuning.trainers.parallel import sum_over_ranks
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.transfer import read_behind

log = logging.getLogger(__name__)

NO_HELD_OUT_ROWS = "NoHeldOutRows"
"""Reason when the data set is too small for a split (below 20 rows), has one prompt, or the fraction is 0."""


@dataclass(frozen=True)
class Scores:
    """Means over the tokens in the loss. `loss` is in nats a token; `perplexity` = exp(loss)."""

    loss: float
    perplexity: float
    token_accuracy: float
    tokens: int
    rows: int
    of_mode: Mapping[str, float] = field(default_factory=dict)
    """Scores that only the mode or rows with tools have, by their names."""

    def as_dict(self) -> dict[str, float]:
        """Return the scores as `evaluation.json` has them."""
        common = {name: value for name, value in asdict(self).items() if name != "of_mode"}
        return common | dict(self.of_mode)


@dataclass(frozen=True)
class Measured:
    """Rows under one policy, for a mode's own scores; the tensors are (sequences of the rows,), row after row."""

    rows: TokenRows
    indices: Indices
    loglik: torch.Tensor
    """Log-probability summed over the tokens in the loss, float64 on the CPU."""
    tokens: torch.Tensor
    """Tokens in the loss."""


ScoresOfMode = Callable[[Measured], Mapping[str, float]]


def no_more_scores(measured: Measured) -> Mapping[str, float]:
    """Return the scores of a mode that has none but the common ones."""
    return {}


def evaluate_policy(
    policy: Policy, batches: MicroBatches, indices: Indices, of_mode: ScoresOfMode = no_more_scores
) -> Scores:
    """Score `policy` on the rows at `indices`; raises TryAgain on all ranks when one is asked to stop."""
    was_training = policy.training
    policy.eval()
    rows = batches.rows
    # Of each sequence of the data set: log-probability, number, and number right of its tokens in the loss.
    sums = torch.zeros(3, len(rows.sequence_learned_counts), dtype=torch.float64)
    passes = ((batch, torch.stack(policy.score(batch))) for batch in batches.mine(indices, "during evaluation"))
    for batch, numbers in read_behind(passes):
        logprobs_N, right_N = numbers.double()
        counts = rows.sequence_learned_counts[batch.sequences]
        sequence_N = torch.from_numpy(np.repeat(batch.sequences, counts))
        sums.index_add_(1, sequence_N, torch.stack([logprobs_N, torch.ones_like(logprobs_N), right_N]))
    policy.train(was_training)
    at = torch.from_numpy(rows.sequences_of(indices))
    loglik_S, tokens_S, correct_S = sum_over_ranks(sums, batches.device)[:, at].unbind()
    count = int(tokens_S.sum())
    loss = float(-loglik_S.sum() / count)
    return Scores(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        token_accuracy=float(correct_S.sum() / count),
        tokens=count,
        rows=len(indices),
        of_mode=of_mode(Measured(rows, indices, loglik_S, tokens_S)),
    )


WarningOfMode = Callable[[Mapping[str, float]], str | None]
"""Says what the scores of `evaluation.json` warn of; None for nothing."""


def no_warning(scores: Mapping[str, float]) -> str | None:
    """Find nothing, for a mode without warnings."""
    return None


def evaluate_run(
    run: TrainRun,
    policy: Policy,
    batches: MicroBatches,
    held_out: Indices,
    *,
    of_mode: ScoresOfMode = no_more_scores,
    warning_of: WarningOfMode = no_warning,
) -> Scores | None:
    """Score base, start policy (where training began at an adapter) and tuned; write the run's `evaluation.json`.

    What `warning_of` the tuned model's scores says is logged and written beside them. All ranks call it; rank 0 writes.
    Returns the tuned model's scores, None without held-out rows.
    """
    result: dict[str, object] = {"source": "held_out", "held_out_rows": len(held_out)}
    rows, tuned = batches.rows, None
    if (prompts := rows.count_prompts(held_out)) is not None:
        result |= {"held_out_prompts": prompts, "prompts": rows.count_prompts()}
    if rows.evaluation_from is not None:
        result["left_out_rows"] = len(rows) - rows.evaluation_from - len(held_out)  # their prompts are in training
    if len(held_out) == 0:
        why = _why_none(rows, run.config.training.eval_fraction)
        result |= {"source": "none", "reason": NO_HELD_OUT_ROWS, "message": why}
        result |= {"base": None, "start": None, "tuned": None}
    else:
        calls = CallScorer.of(run, policy, batches, held_out)

        def scored() -> Scores:
            scores = evaluate_policy(policy, batches, held_out, of_mode)
            return replace(scores, of_mode={**scores.of_mode, **calls.scores()})

        tuned = scored()
        with bare_base(policy.model):
            base = scored()
        start = None
        if run.spec.start_adapter is not None:
            with start_policy(policy.model):
                start = scored()
        if (said := calls.as_dict()) is not None:
            result["calls"] = said
        result |= {
            "base": base.as_dict(),
            "start": start.as_dict() if start else None,
            "tuned": tuned.as_dict(),
        }
        if (warning := warning_of(tuned.as_dict())) is not None:
            result["warnings"] = [warning]
            if run.is_main:
                log.warning("%s", warning)
    if run.is_main:
        write_json(run.work / EVALUATION, result)
    return tuned


def _why_none(rows: TokenRows, fraction: float) -> str:
    if fraction <= 0:
        return "evalFraction is 0"
    if len(rows) < MIN_ROWS_TO_SPLIT:
        return f"{len(rows)} rows are fewer than {MIN_ROWS_TO_SPLIT}"
    return f"all {len(rows):,} rows have one prompt, and rows of one prompt stay together"
