"""How a run goes through its model, from its configuration, the sizes of the base and the counted rows; torch-free.

The plan asks before a run, and the run itself as it starts: both get the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_tuning.api import TuningConfig
from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.data.report import Report
from llm_tuning.data.splitting import MIN_ROWS_TO_SPLIT
from llm_tuning.models.shape import ModelShape
from llm_tuning.modes import MODES, Memory
from llm_tuning.run.devices import tokens_per_pass


@dataclass(frozen=True)
class Setting:
    """How a run goes through the model."""

    memory: Memory
    """What the mode holds."""
    rank: int
    dropout: bool
    tokens: int
    """Of the largest micro-batch."""
    learned: int
    """Those in the loss among them, at most."""
    number_bytes: int
    """2 in bf16, 4 in fp32."""
    four_bits: bool
    checkpointing: bool
    cuda: bool
    processes: int
    """One for each GPU of a pod."""
    start_adapter: bool
    scored: int = 0
    """Tokens of the largest micro-batch of an evaluation or a scoring pass; 0 where there is none."""
    longest: int = 0
    """Tokens of the longest row, which no micro-batch can be smaller than."""
    shards: int = 1
    """Ranks that share a copy of the base, a part for each; 1: each of them has all of it."""
    nodes: int = 1
    """Pods, each with as many processes."""

    @property
    def ranks(self) -> int:
        """All processes that train."""
        return self.processes * self.nodes


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


def count_steps_of(config: TuningConfig, report: Report, *, processes: int) -> Steps:
    """Count the steps of `config` on rows that have gone through their check."""
    evaluated = None if config.dataset.evaluation is None else 0  # 0: the file is not on this machine
    if report.evaluation is not None:
        evaluated = report.evaluation.evaluated
    return count_steps(report.examples, config.training, processes=processes, evaluation=evaluated)


def setting_of(
    config: TuningConfig,
    shape: ModelShape,
    *,
    cuda: bool,
    number_bytes: int,
    processes: int,
    nodes: int,
    rows: Rows | None,
    steps: Steps | None,
) -> Setting:
    """Return how the run of `config` goes through a base that each of its ranks has whole; `rows` where they are known.

    `processes` are those of each of the `nodes`.
    """
    training, mode = config.training, MODES[config.mode]
    budget = tokens_per_pass(training, "cuda:0" if cuda else "cpu", shape.parameters)
    longest = rows.longest if rows is not None else training.max_length
    longest *= mode.memory.sequences  # a row alone may be longer than a micro-batch
    in_a_step = longest * training.batch_size * training.gradient_accumulation_steps
    tokens = max(longest, min(budget, in_a_step))
    learned = rows.learned / rows.tokens if rows is not None else 1.0
    scored = budget
    if rows is not None and steps is not None:
        at_once = steps.training_rows if mode.memory.scoring_passes(steps.epochs) else steps.held_out
        scored = min(budget, int(at_once * rows.mean))
    elif training.eval_fraction == 0 and not mode.memory.scoring_passes(training.epochs):
        scored = 0
    return Setting(
        memory=mode.memory,
        rank=config.lora.rank,
        dropout=mode.uses_dropout and config.lora.dropout > 0,
        tokens=tokens,
        learned=min(tokens, int(tokens * min(1.0, 1.5 * learned))),  # a micro-batch may have more of them than the mean
        number_bytes=number_bytes,
        four_bits=config.model.quantization == "4bit",
        checkpointing=training.gradient_checkpointing,
        cuda=cuda,
        processes=processes,
        start_adapter=config.model.adapter is not None,
        scored=max(longest, scored) if scored else 0,
        longest=longest,
        nodes=nodes,
    )
