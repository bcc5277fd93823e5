"""Offline PPO: learn from recorded outputs and their rewards, with a LoRA on a frozen base.

    for each epoch
        log pi_old, V_old  <-  policy and values now             (first epoch: the start policy's log-probs, and zero)
        for each optimizer step, over the output tokens t of its rows
            ratio  =  pi(t) / pi_old(t)            A  =  R - V_old(t)
            loss   =  sum over t of [ L_clip(ratio, A) + c_v L_value(V, V_old, R) + c_kl k3(pi, pi_start) ] / tokens
            AdamW on adapter and value head
        now and then: exact KL(pi || pi_start) on held-out rows; above the target, go back to within it and stop

The formulas and their sources are in `ppo_math`; docs/ppo.md is the definition in words. Shapes: N output tokens of a
micro-batch, one after another over its rows; flat arrays over all training rows' output tokens have no suffix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_tuning.modes.ppo import PPO
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers import ppo_math
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.evaluate import Measured
from llm_tuning.trainers.fine_tune import fine_tune
from llm_tuning.trainers.kl_target import KlTarget, rows_to_measure
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.output_tokens import TokenLayout, mean_kl, score_rows
from llm_tuning.trainers.recipe import Recipe, Task
from llm_tuning.trainers.reference_cache import logprobs_of_start, reference_of_start, states_of_start
from llm_tuning.trainers.transfer import to_device


def train(run: TrainRun) -> None:
    """Train `run` to a complete stage; see `fine_tune`."""
    fine_tune(run, Ppo)


class Ppo(Recipe):
    """The recorded outputs' log-probs under the start policy and under that of the epoch's start, and the loss of both.

    No random state of its own: dropout is off, since a ratio of probabilities must not measure two dropout masks.
    """

    terms = ("loss", "policy_loss", "value_loss", "kl_penalty", "clip_fraction", "ratio_mean")
    with_values = True
    passes_between_epochs = True
    if_diverged = "set a lower one, or a higher ppo.klCoef"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        run, rows, steps = task.run, task.rows, task.steps
        rewards = torch.full((len(rows),), math.nan, dtype=torch.float64)
        rewards[steps.rows] = ppo_math.standardise_rewards(torch.from_numpy(rows.numbers[steps.rows]))
        self.rewards = rewards.float()
        self.settings = PPO.settings_of(run.config)
        self.layout = TokenLayout(rows, steps.visited(0, task.total_steps))
        measured = task.held_out if len(task.held_out) else steps.rows
        kl_layout = TokenLayout(rows, rows_to_measure(rows, measured, run.config.training.seed))
        scored = logprobs_of_start(task.policy, task.batches, self.layout)
        measured_states = states_of_start(task.policy, task.batches, kl_layout)
        self.reference_logprobs, start_states = reference_of_start(run, task.policy, (scored, measured_states))
        self.old_logprobs = self.old_values = torch.empty(0)
        self.kl_target = KlTarget(
            task.policy.adapter(),
            lambda: mean_kl(task.policy, task.batches, kl_layout, start_states),
            self.settings.target_kl,
        )

    def begin_epoch(self, epoch: int, step: int) -> None:
        """Compute pi_old and V_old: in the first epoch the start policy, whose value head gives zero."""
        if epoch == 0:
            self.old_logprobs, self.old_values = self.reference_logprobs, torch.zeros(self.layout.size)
            return
        task = self.task
        task.run.reporter.stage("scoring the epoch's start")
        visited = task.steps.visited(step, task.total_steps - step)
        self.old_logprobs, self.old_values = score_rows(
            task.policy, task.batches, self.layout, visited, "between two epochs"
        )

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute `ppo_loss` of the micro-batch's output tokens."""
        logprobs_N, values_N = self.task.policy.logprobs_and_values(batch)
        ppo = self.settings
        return ppo_loss(
            logprobs_N,
            values_N,
            **self._recorded(batch.rows, logprobs_N.device),
            clip_range=ppo.clip_range,
            value_clip_range=ppo.value_clip_range,
            value_loss_coef=ppo.value_loss_coef,
            kl_coef=ppo.kl_coef,
        )

    def _recorded(self, rows: Indices, device: torch.device) -> dict[str, Tensor]:
        """Return what is known of the output tokens of these rows, row after row, as arguments of `ppo_loss`."""
        where_N = self.layout.positions(rows)
        counts = torch.from_numpy(self.task.rows.learned_counts[rows].astype(np.int64))
        known = {
            "rewards_N": self.rewards[torch.from_numpy(rows)].repeat_interleave(counts),
            "reference_logprobs_N": self.reference_logprobs[where_N],
            "old_logprobs_N": self.old_logprobs[where_N],
            "old_values_N": self.old_values[where_N],
        }
        return dict(zip(known, to_device(device, *known.values()), strict=True))

    def is_due(self, step: int) -> bool:
        """Return whether to measure the KL; at the end too, for it is a promise about what is published."""
        return step % self.task.eval_steps == 0 or step == self.task.total_steps

    def evaluate(self, step: int) -> None:
        """Hold the run to ppo.targetKl."""
        self.task.run.reporter.stage("measuring the KL")
        self.kl_target.hold(step)
        self.stopped_early = self.kl_target.stopped_early
        self.task.run.reporter.metrics(step, {"eval/kl": self.kl_target.kl})

    def scores(self, measured: Measured) -> Mapping[str, float]:
        """Compute the reward-weighted log-likelihood of held-out rows."""
        rewards = torch.from_numpy(measured.rows.numbers[measured.indices].copy())
        return {"reward_weighted_loglik": reward_weighted(measured.loglik / measured.tokens, rewards)}

    def state(self) -> dict[str, Any]:
        """Return value head, KL and the epoch's old log-probs and values, which moved weights cannot compute again."""
        assert self.task.policy.value_head is not None
        return {
            "value_head": self.task.policy.value_head.state_dict(),
            "old_logprobs": self.old_logprobs,
            "old_values": self.old_values,
            "within_target": self.kl_target.within,
            "kl": self.kl_target.kl,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        assert self.task.policy.value_head is not None
        self.task.policy.value_head.load_state_dict(state["value_head"])
        self.old_logprobs, self.old_values = state["old_logprobs"], state["old_values"]
        self.kl_target.within, self.kl_target.kl = state["within_target"], state["kl"]

    def summary(self) -> dict[str, Any]:
        """Return why training ended, how far it is from the start policy, and on which rows that was measured."""
        measured_on = "held_out" if len(self.task.held_out) else "training"
        return {"stopped_early": self.stopped_early, "kl": self.kl_target.kl, "kl_rows": measured_on}


def reward_weighted(mean_loglik_R: Tensor, rewards_R: Tensor) -> float:
    """Compute the mean over rows of z_i times the row's mean log-probability a token, z_i its standardised reward.

    It rises when good rows gain likelihood against bad ones.
    """
    spread = rewards_R.std(correction=0)
    z_R = (rewards_R - rewards_R.mean()) / spread if spread > 0 else torch.zeros_like(rewards_R)
    return float((z_R * mean_loglik_R).mean())


def ppo_loss(
    logprobs_N: Tensor,
    values_N: Tensor,
    *,
    rewards_N: Tensor,
    reference_logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    old_values_N: Tensor,
    clip_range: float,
    value_clip_range: float,
    value_loss_coef: float,
    kl_coef: float,
) -> tuple[Tensor, Tensor]:
    """Compute the loss summed over the N tokens ([PPO] eq. 9 without its entropy bonus, plus the k3 penalty).

    Returns (loss, sums of `Ppo.terms` in float64, without gradients).
    """
    ratio_N = ppo_math.probability_ratio(logprobs_N, old_logprobs_N)
    advantages_N = ppo_math.advantages(rewards_N, old_values_N)
    policy_N = ppo_math.policy_loss(ratio_N, advantages_N, clip_range=clip_range)
    value_N = ppo_math.value_loss(values_N, old_values_N, rewards_N, clip_range=value_clip_range)
    penalty_N = ppo_math.k3_penalty(logprobs_N, reference_logprobs_N)
    loss_N = policy_N + value_loss_coef * value_N + kl_coef * penalty_N
    clipped_N = ppo_math.is_clipped(ratio_N, advantages_N, clip_range=clip_range)
    terms = torch.stack([loss_N, policy_N, value_N, penalty_N, clipped_N.float(), ratio_N])
    return loss_N.sum(), terms.detach().double().sum(1)
