"""Optimizer steps, and the floating point operations of a run.

A token costs 2 N operations forward and 4 N backward, N being the parameters of the matrices (Kaplan et al., arXiv
2001.08361, section 2.1). Of the backward pass the half that makes gradients of weights is not done for a frozen base:
4 N in all, and 6 P for an adapter of P parameters; checkpointing repeats the forward pass. Attention adds 4 times half
the row's length times Q in each layer forward (causal), three times that with backward. The output layer is 4 h V a
token in the loss: logits, and the derivative taken at once.

Evaluation is forward only: base, start adapter and tuned model on the held-out rows, and about ten times a run
on the way. A mode may score all training rows besides (`Memory.scoring_passes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.data.report import Report
from llm_tuning.data.splitting import MIN_ROWS_TO_SPLIT
from llm_tuning.planning.memory import Setting, adapter_parameters
from llm_tuning.planning.shape import Linear, ModelShape

EVALUATIONS = 10
"""Of a run, by default of training.evalSteps."""


@dataclass(frozen=True)
class Rows:
    """What a data check has counted of the rows; tokens are those left by maxLength."""

    count: int
    tokens: int
    learned: int
    longest: int

    @classmethod
    def of(cls, report: Report) -> Rows | None:
        """Take the rows and tokens from a data check's report; None where the check had no tokenizer."""
        found = report.tokens
        if found is None or found.lengths is None:
            return None
        longest = min(found.lengths.max, found.max_length)
        return cls(report.kept, found.lengths.total - found.tokens_lost, found.learned, longest)

    @property
    def mean(self) -> float:
        """Tokens of a row."""
        return self.tokens / self.count


@dataclass(frozen=True)
class Steps:
    """How often the optimizer moves."""

    training_rows: int
    held_out: int
    rows_per_step: int
    per_epoch: int
    total: int

    @property
    def epochs(self) -> float:
        return self.total / self.per_epoch


def count_steps(rows: int, training: TrainingSpec, *, processes: int) -> Steps:
    """Count steps as `data.splitting.split` holds rows out and `trainers.batching.StepBatches` batches the others."""
    held_out = 0
    if rows >= MIN_ROWS_TO_SPLIT and training.eval_fraction > 0:
        held_out = max(1, round(rows * training.eval_fraction))
    rows_per_step = training.effective_batch_size(processes)
    per_epoch = math.ceil((rows - held_out) / rows_per_step)
    total = training.max_steps if training.max_steps is not None else training.epochs * per_epoch
    return Steps(rows - held_out, held_out, rows_per_step, per_epoch, total)


def forward_operations(shape: ModelShape, rows: Rows) -> float:
    """Count the operations of a forward pass for one token of the base, without the output layer."""
    matrices = sum(linear.size * linear.share for linear in shape.linears)
    return 2 * matrices + 4 * shape.layers * shape.query * rows.mean / 2


def run_operations(
    shape: ModelShape,
    targets: tuple[Linear, ...],
    setting: Setting,
    *,
    rows: Rows,
    steps: Steps,
    training: TrainingSpec,
) -> float:
    """Count the operations of the whole run, summed over all devices."""
    forward = forward_operations(shape, rows)
    matrices = sum(linear.size * linear.share for linear in shape.linears)
    attention = forward - 2 * matrices
    adapter = adapter_parameters(targets, setting.rank)
    token = 4 * matrices + 3 * attention + 6 * adapter
    if setting.checkpointing:
        token += forward + 2 * adapter
    head = 4 * shape.hidden * shape.vocabulary * rows.learned / rows.tokens
    trained = steps.epochs * steps.training_rows * rows.mean

    looked_at = min(steps.total, EVALUATIONS if training.eval_steps is None else steps.total // training.eval_steps)
    scored = steps.held_out * rows.mean * (looked_at + 2 + setting.start_adapter)
    scored += steps.training_rows * rows.mean * setting.memory.scoring_passes(steps.epochs)
    return trained * (token + head) + scored * (forward + head / 2)
