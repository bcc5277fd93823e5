"""Kahneman-Tversky optimisation: learn from answers marked as good or bad, with a LoRA on a frozen base.

    log pi_start of every answer  <-  the start policy, once, kept over runs
    for each optimizer step, over its rows (prompt x, answer y, good or bad)
        z     =  max(0, mean over the rows of d(y' | x)),   y' the answer of another row of the step; no gradient
        v     =  w_good sigmoid(beta (d(y) - z))  of a good answer,  w_bad sigmoid(beta (z - d(y)))  of a bad one
        loss  =  sum over rows of [ w - v ] / rows
        AdamW on the adapter

with d(y) = sum over the tokens t of y of [ log pi(t) - log pi_start(t) ].

Source: [KTO] Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306, eq. 7
and 8. As in TRL the mismatched y' are the answers of the same rows, each moved on by one; here of the whole optimizer
step over all ranks, where TRL takes those of a micro-batch: 8 x 1 and 1 x 8 have one z.

Shapes: N tokens in the loss of a micro-batch, one after another over its rows; R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from llm_tuning.data.token_rows import TokenSequence
from llm_tuning.modes.kto import KTO
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.collapse import collapse
from llm_tuning.trainers.evaluate import Measured
from llm_tuning.trainers.fine_tune import fine_tune
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.mismatched import mismatched, score_sequences
from llm_tuning.trainers.output_tokens import TokenLayout, sums_of
from llm_tuning.trainers.recipe import Recipe, Task
from llm_tuning.trainers.reference_cache import DOING, Part, logprobs_of_start, reference_of_start
from llm_tuning.trainers.transfer import to_device


def train(run: TrainRun) -> None:
    """Train `run` to a complete stage; see `fine_tune`."""
    fine_tune(run, Kto)


class Kto(Recipe):
    """The start policy's log-probs of all answers and of the mismatched ones of each step, and the loss against them.

    Dropout is off, as TRL has it by default: d compares a policy with one that has none.
    """

    terms = ("loss", "good", "good_change", "bad_change")
    if_diverged = "set a lower one, or a higher kto.beta"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings = KTO.settings_of(task.run.config)
        self.labels = torch.from_numpy(task.rows.numbers == 1.0)
        self.layout = TokenLayout(task.rows, np.union1d(task.steps.visited(0, task.total_steps), task.held_out))
        answers = logprobs_of_start(task.policy, task.batches, self.layout)
        sizes, forwards = self._sizes()
        part = Part("logprobs", self._all_mismatched, sum(sizes), forwards, self._score_mismatched)
        self.reference_logprobs, flat = reference_of_start(task.run, task.policy, [answers, part])
        self.reference_mismatched = flat.split(sizes)
        self.kl = 0.0
        """z of the present step, in nats an answer."""

    def weight(self, rows: Indices) -> int:
        """Return the number of rows."""
        return len(rows)

    def begin_step(self, rows: Indices, step: int) -> None:
        """Estimate z of the step by one pass over its mismatched answers."""
        self.kl = self._estimate(rows, self.reference_mismatched[step])

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute `kto_loss` of the micro-batch's rows."""
        logprobs_N = self.task.policy.logprobs(batch)
        device, kto = logprobs_N.device, self.settings
        where_N = self.layout.positions(batch.rows)
        reference_N, good_R = to_device(
            device, self.reference_logprobs[where_N], self.labels[torch.from_numpy(batch.rows)]
        )
        changes_R = sums_of(logprobs_N - reference_N, self.task.rows.learned_counts[batch.rows])
        loss_R = kto_loss(
            changes_R,
            good_R,
            kl=self.kl,
            beta=kto.beta,
            desirable_weight=kto.desirable_weight,
            undesirable_weight=kto.undesirable_weight,
        )
        good, changes = good_R.to(changes_R.dtype), changes_R.detach()
        terms = torch.stack([loss_R.detach(), good, good * changes, (1 - good) * changes])
        return loss_R.sum(), terms.double().sum(1)

    def figures(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Return the loss, z and the mean rewards of good and of bad answers, where the step has such."""
        good, beta = means["good"], self.settings.beta
        figures = {"loss": means["loss"], "kl": self.kl}
        if good > 0:
            figures["desirable_reward"] = beta * means["good_change"] / good
        if good < 1:
            figures["undesirable_reward"] = beta * means["bad_change"] / (1 - good)
        return figures

    def scores(self, measured: Measured) -> Mapping[str, float]:
        """Compute what the held-out rows are to this policy against the start policy."""
        counts = measured.rows.learned_counts[measured.indices]
        reference_N = self.reference_logprobs[self.layout.positions(measured.indices)].double()
        changes_R = measured.loglik - sums_of(reference_N, counts)
        kl = self._estimate(measured.indices, self.reference_mismatched[-1])
        return label_scores(changes_R, self.labels[torch.from_numpy(measured.indices)], kl=kl, beta=self.settings.beta)

    def warning(self, scores: Mapping[str, float]) -> str | None:
        """Say so where the held-out answers have one label, or the good ones have become much less likely."""
        if "reward_margin" in scores:
            change, tokens = scores["desirable_reward"] / self.settings.beta, scores["tokens"] / scores["rows"]
            return collapse("good", change, tokens, "a higher kto.beta, or begin with an sft on the good answers")
        kind, other = ("good", "bad") if "desirable_reward" in scores else ("bad", "good")
        return (
            f"the held-out answers are all {kind}, so nothing shows whether the model tells them from {other} ones: "
            "raise training.evalFraction, or give more answers of both kinds"
        )

    def _estimate(self, order: Indices, reference_N: Tensor) -> float:
        task = self.task
        logprobs_N = score_sequences(task.policy, task.batches, self._mismatched(order))
        return max(0.0, float((logprobs_N - reference_N).double().sum()) / len(order))

    def _sizes(self) -> tuple[list[int], int]:
        """Count the mismatched answers' tokens of each of the orders, and the passes over all of them."""
        sizes, forwards = [], 0
        for order in self._orders():
            sequences = self._mismatched(order)
            sizes.append(sum(int(sequence.learned.sum()) for sequence in sequences))
            forwards += len(self.task.batches.cut_lengths([len(sequence.input_ids) for sequence in sequences]))
        return sizes, forwards

    def _all_mismatched(self) -> Iterator[TokenSequence]:
        return (sequence for order in self._orders() for sequence in self._mismatched(order))

    def _score_mismatched(self) -> Tensor:
        """Score an order at a time, in the passes of its step: there the start policy gets these very numbers."""
        policy, batches = self.task.policy, self.task.batches
        return torch.cat([score_sequences(policy, batches, self._mismatched(order), DOING) for order in self._orders()])

    def _orders(self) -> Iterator[Indices]:
        """Yield the rows of every step, of all ranks, and last the held-out rows if there are any."""
        task = self.task
        for step in range(task.total_steps):
            epoch, at = divmod(step, len(task.steps))
            if at == 0:
                whole = task.steps.whole(epoch)
            yield whole[at]
        if len(task.held_out):
            yield task.held_out

    def _mismatched(self, order: Indices) -> list[TokenSequence]:
        task = self.task
        before = np.searchsorted(task.steps.rows, order[0]) - 1  # of the first one: the last
        return mismatched(
            task.rows, order, max_length=task.run.config.training.max_length, spare=int(task.steps.rows[before])
        )


def kto_loss(
    changes_R: Tensor, good_R: Tensor, *, kl: float, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """Compute the loss of each row, (R,), from the change of log-likelihood of its answer, [KTO] eq. 7 and 8.

    w (1 - sigmoid(beta (d - z))) of a good answer and w (1 - sigmoid(beta (z - d))) of a bad one, z the `kl`.
    """
    signs_R = torch.where(good_R, 1.0, -1.0)
    weights_R = torch.where(good_R, desirable_weight, undesirable_weight)
    return weights_R * (1 - torch.sigmoid(beta * signs_R * (changes_R - kl)))


def label_scores(changes_R: Tensor, good_R: Tensor, *, kl: float, beta: float) -> dict[str, float]:
    """Compute the scores of rows from the changes of log-likelihood of their answers.

    A row is right where a good answer has gained more than `kl`, and a bad one less; one that is exactly there counts
    half, as all do for the start policy. What a file with one label cannot say is left out.
    """
    right_R = (torch.where(good_R, 1.0, -1.0) * (changes_R - kl).sign() + 1) / 2
    scores = {"label_accuracy": float(right_R.mean())}
    for name, of in (("desirable_reward", good_R), ("undesirable_reward", ~good_R)):
        if bool(of.any()):
            scores[name] = beta * float(changes_R[of].mean())
    if len(scores) == 3:
        scores["reward_margin"] = scores["desirable_reward"] - scores["undesirable_reward"]
    return scores
