"""Optimizer steps, and the floating point operations of a run.

What a token costs stands in `models.operations`; checkpointing repeats the forward pass of the decoder. Evaluation is
forward only: base, start adapter and tuned model on the held-out rows, and about ten times a run on the way. A mode may
score all training rows besides (`Memory.scoring_passes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.data.call_sample import MAX_CALLS, MAX_WORDS
from llm_tuning.data.report import Report
from llm_tuning.data.splitting import MIN_ROWS_TO_SPLIT
from llm_tuning.models.operations import Operations
from llm_tuning.planning.memory import Setting

EVALUATIONS = 10
"""Of a run, by default of training.evalSteps."""


@dataclass(frozen=True)
class Rows:
    """What a data check has counted of the rows; tokens are those left by maxLength."""

    count: int
    tokens: int
    learned: int
    longest: int
    sequences: int = 0
    """Sequences of the rows; 0 where each row is one."""
    with_tools: int = 0
    """Rows that declare tools: answers to some of those that are held out are generated."""

    @classmethod
    def of(cls, report: Report) -> Rows | None:
        """Take the rows and tokens from a data check's report; None where the check had no tokenizer."""
        found = report.tokens
        if found is None or found.lengths is None:
            return None
        longest = min(found.lengths.max, found.max_length)
        left = found.lengths.total - found.tokens_lost
        return cls(report.examples, left, found.learned, longest, found.sequences, report.tools.declaring)

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


def count_steps(rows: int, training: TrainingSpec, *, processes: int, evaluation: int | None = None) -> Steps:
    """Count steps as `data.splitting.split` holds rows out and `trainers.batching.StepBatches` batches the others.

    `evaluation`: rows of a file to evaluate on, which leaves all of `rows` to the training.
    """
    held_out, trained = evaluation or 0, rows
    if evaluation is None and rows >= MIN_ROWS_TO_SPLIT and training.eval_fraction > 0:
        held_out = max(1, round(rows * training.eval_fraction))
        trained = rows - held_out
    rows_per_step = training.effective_batch_size(processes)
    per_epoch = math.ceil(trained / rows_per_step)
    total = training.max_steps if training.max_steps is not None else training.epochs * per_epoch
    return Steps(trained, held_out, rows_per_step, per_epoch, total)


def run_operations(
    operations: Operations, setting: Setting, *, rows: Rows, steps: Steps, training: TrainingSpec
) -> float:
    """Count the operations of the whole run, summed over all devices; every sequence as long as their mean.

    An answer that is generated counts as a row that is scored, though it takes a pass for each of its tokens.
    """

    def work(rows_seen: float, *, trained: bool) -> float:
        tokens = rows_seen * rows.mean
        squares = tokens * rows.tokens / (rows.sequences or rows.count)
        amounts = {"tokens": tokens, "squares": squares, "learned": tokens * rows.learned / rows.tokens}
        forward = operations.forward(**amounts)
        if not trained:
            return forward
        again = operations.forward(**amounts | {"learned": 0}) if setting.checkpointing else 0
        return operations.training(**amounts) + again

    evaluations = min(steps.total, EVALUATIONS if training.eval_steps is None else steps.total // training.eval_steps)
    policies = 2 + setting.start_adapter
    answers = min(steps.held_out, MAX_CALLS + MAX_WORDS) if rows.with_tools else 0
    scored = steps.held_out * (evaluations + policies) + answers * policies
    scored += steps.training_rows * setting.memory.scoring_passes(steps.epochs)
    return work(steps.epochs * steps.training_rows, trained=True) + work(scored, trained=False)
