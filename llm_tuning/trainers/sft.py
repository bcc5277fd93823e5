"""Supervised fine-tuning: learn the outputs of the rows, completion tokens only, with a LoRA on a frozen base."""

from __future__ import annotations

from torch import Tensor

from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.fine_tune import fine_tune
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.recipe import Recipe


def train(run: TrainRun) -> None:
    """Train `run` to a complete stage; see `fine_tune`."""
    fine_tune(run, Sft)


class Sft(Recipe):
    """loss = - sum over the tokens t in the loss of log pi(t), divided by their number in the step.

    A conversation whose answers are sequences of their own has the weight of its tokens, as one sequence would.
    """

    whole_rows = False

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute the loss: nats summed over the tokens in the loss mask."""
        loss = -self.task.policy.logprobs(batch).sum()
        return loss, loss.detach()[None]
