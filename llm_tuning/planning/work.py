"""The floating point operations of a run.

What a token costs stands in `models.operations`; checkpointing repeats the forward pass of the decoder. Evaluation is
forward only: base, start adapter and tuned model on the held-out rows, and about ten times a run on the way. A mode may
score all training rows besides (`Memory.scoring_passes`).
"""

from __future__ import annotations

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.data.call_sample import MAX_CALLS, MAX_WORDS
from llm_tuning.models.operations import Operations
from llm_tuning.run.setting import Rows, Setting, Steps

EVALUATIONS = 10
"""Of a run, by default of training.evalSteps."""


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
