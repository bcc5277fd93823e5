"""What a mode gives to the training loop, and what the loop gives to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import InputError
from llm_tuning.models.operations import Operations
from llm_tuning.models.shape import read_shape
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices, StepBatches
from llm_tuning.trainers.evaluate import Measured, evaluate_policy
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.policy import Policy


@dataclass(frozen=True)
class Task:
    """A run with its model loaded and its rows divided: which rows train in which step, and which are held out."""

    run: TrainRun
    policy: Policy
    batches: MicroBatches
    steps: StepBatches
    held_out: Indices
    operations: Operations | None = None
    """What a token costs; None for a base whose sizes are not known, and for a mixture of experts."""

    @classmethod
    def of(cls, run: TrainRun, policy: Policy, rows: TokenRows, training_rows: Indices, held_out: Indices) -> Task:
        training = run.config.training
        steps = StepBatches(
            training_rows,
            batch_size=training.batch_size,
            grad_accum=training.gradient_accumulation_steps,
            seed=training.seed,
            rank=run.rank,
            world=run.world,
            lengths=rows.lengths,
        )
        idle = policy.empty_pass if policy.sharded else None
        batches = MicroBatches(rows, run.tokens_per_pass, policy.flat_rows, run.device, run.rank, run.world, idle)
        return cls(run, policy, batches, steps, held_out, _operations(run))

    @property
    def rows(self) -> TokenRows:
        return self.batches.rows

    def operations_of(self, rows: Indices) -> float | None:
        """Count the floating point operations of a step with these rows, of all ranks; padding has none."""
        if self.operations is None:
            return None
        return self.operations.training(
            tokens=int(self.rows.lengths[rows].sum()),
            squares=self.rows.squared_lengths(rows),
            learned=int(self.rows.learned_counts[rows].sum()),
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        training = self.run.config.training
        return self.steps.total_steps(training.epochs, training.max_steps)

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations: as configured, or ten times a run."""
        return self.run.config.training.eval_steps or max(1, self.total_steps // 10)


def _operations(run: TrainRun) -> Operations | None:
    try:
        shape = read_shape(run.base)
        targets = shape.targets(run.config.lora)
    except InputError:
        return None
    return None if shape.experts else Operations.of(shape, targets, run.config.lora.rank)


class Recipe(ABC):
    """One mode's part in training: the loss of a micro-batch, and what happens around the steps.

    A subclass must have `loss`; all else has a meaning that fits a loss over the tokens of the loss mask.
    """

    terms: ClassVar[tuple[str, ...]] = ("loss",)
    """What `loss` sums up besides its gradient, reported as `train/<term>`; the first is the loss itself."""
    with_values: ClassVar[bool] = False
    """Whether the policy gets a value head."""
    whole_rows: ClassVar[bool] = True
    """Whether the sequences of a row are in one micro-batch; a loss that sums over sequences does not need it."""
    passes_between_epochs: ClassVar[bool] = False
    """Whether `begin_epoch` goes through many rows: a checkpoint is saved before it then."""
    if_diverged: ClassVar[str] = "set a lower one"
    """What to do about a learning rate with which the loss is no number any more."""

    stopped_early: str | None = None
    """Why training ended before its last step; set by `evaluate`."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute (loss summed over the micro-batch, differentiable; sums of `terms` without gradient).

        By one pass of the policy: with a sharded base ranks with fewer micro-batches make as many empty ones.
        """

    def weight(self, rows: Indices) -> int:
        """Return the divisor of the summed loss of the step with these rows, of all ranks: their tokens in the loss."""
        return max(1, int(self.task.rows.learned_counts[rows].sum()))

    def begin_epoch(self, epoch: int, step: int) -> None:  # noqa: B027 - a mode may have nothing to prepare
        """Prepare an epoch, before its first step; `step` steps are done."""

    def begin_step(self, rows: Indices, step: int) -> None:  # noqa: B027 - most losses need no pass of their own before
        """Prepare the step with these rows, of all ranks and in one order on each; `step` steps are done."""

    def figures(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Return what is reported of the means of `terms` over a step, the loss among it."""
        return means

    def is_due(self, step: int) -> bool:
        """Return whether to evaluate once `step` steps are done. The final evaluation follows the last one anyway."""
        return len(self.task.held_out) > 0 and step % self.task.eval_steps == 0 and step < self.task.total_steps

    def evaluate(self, step: int) -> None:
        """Report loss, perplexity and token accuracy on the held-out rows; a checkpoint of this moment is there."""
        reporter = self.task.run.reporter
        reporter.stage("evaluating")
        scores = evaluate_policy(self.task.policy, self.task.batches, self.task.held_out)
        figures = {"loss": scores.loss, "perplexity": scores.perplexity, "token_accuracy": scores.token_accuracy}
        reporter.metrics(step, {f"eval/{name}": value for name, value in figures.items()})

    def scores(self, measured: Measured) -> Mapping[str, float]:
        """Compute scores of held-out rows that only this mode has, by the names that its Mode gives them.

        All ranks call it, with the policy that was measured still in place.
        """
        return {}

    def warning(self, scores: Mapping[str, float]) -> str | None:
        """Return what the tuned model's scores, as `evaluation.json` has them, warn of; None for nothing."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides adapter, optimizer and random numbers: tensors and plain data."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - a mode may have no state
        """Continue from what `state` returned."""

    def summary(self) -> dict[str, Any] | None:
        """Return what the manifest says of how training ended (`training.json`), None for nothing."""
        return None
