"""Direct preference optimisation: learn which of two answers is better, with a LoRA on a frozen base.

    log pi_start of every answer  <-  the start policy, once, kept over runs
    for each optimizer step, over its pairs (chosen c, rejected r)
        d(y)  =  sum over the tokens t of y of [ log pi(t) - log pi_start(t) ]
        h     =  d(c) - d(r)                      (ipo, sigmoid_norm: each d divided by the tokens of its answer)
        loss  =  sum over pairs of [ (1 - s) l(h) + s l(-h) ] / pairs
        AdamW on the adapter

Sources: [DPO] Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv 2305.18290. [IPO] Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
Preferences", arXiv 2310.12036. [cDPO] Mitchell 2023, "A note on DPO with noisy preferences", ericmitchell.ai/cdpo.pdf.
`sigmoid_norm` is TRL's; the means of [IPO] over tokens are what its authors told TRL that they used.

Shapes: N tokens in the loss of a micro-batch, one after another over its sequences; P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llm_tuning.modes.dpo import DPO, LossType
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.collapse import collapse
from llm_tuning.trainers.evaluate import Measured
from llm_tuning.trainers.fine_tune import fine_tune
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.output_tokens import TokenLayout, sums_of
from llm_tuning.trainers.recipe import Recipe, Task
from llm_tuning.trainers.reference_cache import logprobs_of_start, reference_of_start
from llm_tuning.trainers.transfer import to_device

LEAST_SPREAD = 1e-3
"""Nats; margins that differ by less are those of the start policy itself, up to rounding."""
FEWEST_SHORT = 5
"""Held-out pairs with a shorter chosen answer from which on their accuracy is worth a warning."""


def train(run: TrainRun) -> None:
    """Train `run` to a complete stage; see `fine_tune`."""
    fine_tune(run, Dpo)


class Dpo(Recipe):
    """The start policy's log-probs of all answers, and the loss of pairs against them.

    Dropout is off, as TRL has it by default: h compares a policy with one that has none, and a mask would move both
    answers of a pair by more than a step does.
    """

    terms = ("loss", "reward_accuracy", "reward_margin", "chosen_change", "rejected_change")
    if_diverged = "set a lower one, or a higher dpo.beta"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings = DPO.settings_of(task.run.config)
        scored = np.union1d(task.steps.visited(0, task.total_steps), task.held_out)
        self.layout = TokenLayout(task.rows, scored)
        part = logprobs_of_start(task.policy, task.batches, self.layout)
        (self.reference_logprobs,) = reference_of_start(task.run, task.policy, [part])

    def weight(self, rows: Indices) -> int:
        """Return the number of pairs."""
        return len(rows)

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute `dpo_loss` of the micro-batch's pairs."""
        logprobs_N = self.task.policy.logprobs(batch)
        (reference_N,) = to_device(logprobs_N.device, self.reference_logprobs[self.layout.positions(batch.rows)])
        counts = self.task.rows.sequence_learned_counts[batch.sequences]
        (counts_P2,) = to_device(logprobs_N.device, torch.from_numpy(counts.astype(np.int64)).view(-1, 2))
        # Token by token: sums of hundreds of tokens are so long numbers that fp32 would round their difference.
        changes_P2 = sums_of(logprobs_N - reference_N, counts).view(-1, 2)
        dpo = self.settings
        loss_P = dpo_loss(
            changes_P2, counts_P2, loss_type=dpo.loss_type, beta=dpo.beta, label_smoothing=dpo.label_smoothing
        )
        changes = changes_P2.detach()
        margin_P = changes[:, 0] - changes[:, 1]
        terms = [loss_P.detach(), wins(margin_P), dpo.beta * margin_P, changes[:, 0], changes[:, 1]]
        return loss_P.sum(), torch.stack(terms).double().sum(1)

    def scores(self, measured: Measured) -> Mapping[str, float]:
        """Compute what the held-out pairs are to this policy against the start policy."""
        layout = TokenLayout(measured.rows, measured.indices)
        counts = measured.rows.sequence_learned_counts[measured.rows.sequences_of(measured.indices)]
        reference_N = self.reference_logprobs[self.layout.positions(layout.indices)].double()
        changes_P2 = (measured.loglik - sums_of(reference_N, counts)).view(-1, 2)
        return pair_scores(changes_P2, measured.tokens.view(-1, 2), beta=self.settings.beta)

    def warning(self, scores: Mapping[str, float]) -> str | None:
        """Say so where the model falls apart, or has learned to be longer and nothing else that shows."""
        tokens = scores["tokens"] / (2 * scores["rows"])
        remedy = "a higher dpo.beta, or begin with an sft on the chosen answers"
        if (fallen := collapse("chosen", scores["chosen_change"], tokens, remedy)) is not None:
            return fallen
        short = scores.get("short_accuracy")
        if short is None or scores["short_pairs"] < FEWEST_SHORT or short >= 0.5 or scores["reward_accuracy"] <= 0.5:
            return None
        return (
            f"of the held-out pairs whose shorter answer is chosen {short:.0%} are right, of all "
            f"{scores['reward_accuracy']:.0%}: the model has learned to be longer rather than better. Give more such "
            "pairs, or set dpo.lossType to sigmoid_norm"
        )


def dpo_loss(
    changes_P2: Tensor, counts_P2: Tensor, *, loss_type: LossType, beta: float, label_smoothing: float
) -> Tensor:
    """Compute the loss of each pair, (P,), from the changes of log-likelihood of its chosen and rejected answer.

    sigmoid: l(h) = -log sigmoid(beta h), [DPO] eq. 7. sigmoid_norm: the same, h of means over the `counts_P2` tokens of
    an answer. ipo: l(h) = (h - 1 / (2 beta))^2, [IPO] eq. 17, with such means. With label smoothing s, the share of
    pairs taken to be the wrong way round, the loss is (1 - s) l(h) + s l(-h), as in [cDPO].
    """
    if loss_type != "sigmoid":
        changes_P2 = changes_P2 / counts_P2.clamp(min=1)
    h_P = changes_P2[:, 0] - changes_P2[:, 1]

    def loss_of(h_P: Tensor) -> Tensor:
        return (h_P - 1 / (2 * beta)).square() if loss_type == "ipo" else -logsigmoid(beta * h_P)

    if not label_smoothing:
        return loss_of(h_P)
    return (1 - label_smoothing) * loss_of(h_P) + label_smoothing * loss_of(-h_P)


def wins(margin_P: Tensor) -> Tensor:
    """Return 1 for a margin above zero, 0 below it, and 1/2 at zero: the start policy itself wins half of its pairs."""
    return (margin_P.sign() + 1) / 2


def pair_scores(changes_P2: Tensor, tokens_P2: Tensor, *, beta: float) -> dict[str, float]:
    """Compute the scores of pairs from the changes of log-likelihood of their answers and their lengths.

    Those about length are left out where there are none such pairs, or where the policy is the start policy.
    """
    margin_P, longer_P = (values[:, 0] - values[:, 1] for values in (changes_P2, tokens_P2.double()))
    chosen, rejected = changes_P2.mean(0).tolist()
    scores = {
        "reward_accuracy": float(wins(margin_P).mean()),
        "reward_margin": beta * float(margin_P.mean()),
        "chosen_change": chosen,
        "rejected_change": rejected,
    }
    short_P = longer_P < 0
    if bool(short_P.any()):
        scores |= {"short_accuracy": float(wins(margin_P[short_P]).mean()), "short_pairs": float(short_P.sum())}
    if len(margin_P) > 1 and float(margin_P.std()) > LEAST_SPREAD and float(longer_P.std()) > 0:
        scores["length_correlation"] = float(torch.corrcoef(torch.stack([margin_P, longer_P]))[0, 1])
    return scores
