"""Offline PPO: learn from recorded outputs and their rewards, with a LoRA on a frozen base.

    for each epoch
        log pi_old, V_old  <-  policy and values now             (first epoch: the start policy's log-probs, and zero)
        for each optimizer step, over the output tokens t of its rows
            ratio  =  pi(t) / pi_old(t)            A  =  R - V_old(t)
            loss   =  sum over t of [ L_clip(ratio, A) + c_v L_value(V, V_old, R) + c_kl k3(pi, pi_start) ] / tokens
            AdamW on adapter and value head
        now and then: exact KL(pi || pi_start) on held-out rows; above the target, go back to within it and stop

The formulas and their sources are in `ppo_math`; docs/ppo.md is the definition in words. Shapes: N output tokens of a
pass, one after another over its rows; flat arrays over all training rows' output tokens have no suffix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import get_scheduler

from llm_tuning.core.files import write_json
from llm_tuning.core.stopping import raise_if_stopped, stop_requested
from llm_tuning.data.chat import load_chat_template
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.models.layout import TRAINING
from llm_tuning.modes.ppo import PPO
from llm_tuning.run.context import TrainRun
from llm_tuning.run.devices import tokens_per_pass
from llm_tuning.trainers import ppo_math
from llm_tuning.trainers.actor_critic import ActorCritic
from llm_tuning.trainers.batching import Indices, StepBatches
from llm_tuning.trainers.evaluate import evaluate_run
from llm_tuning.trainers.kl_target import hold_to_target, rows_to_measure
from llm_tuning.trainers.memory import out_of_memory_explained
from llm_tuning.trainers.parallel import all_reduce_sum, any_rank
from llm_tuning.trainers.policy import attach_lora, load_base_model, resolve_dtype, save_adapter
from llm_tuning.trainers.ppo_state import Checkpoints, PpoState, copy_of
from llm_tuning.trainers.probes import write_parity
from llm_tuning.trainers.reference_cache import reference_of_start
from llm_tuning.trainers.row_passes import RowPasses, TokenLayout, mean_kl, score_rows, stop_together

TERMS = ("loss", "policy_loss", "value_loss", "kl_penalty", "clip_fraction", "ratio_mean")
"""What `ppo_loss` sums up over the tokens, in this order."""


def train(run: TrainRun) -> None:
    """Train `run` from its newest checkpoint (or its beginning) to a complete `run.stage`.

    Raises TryAgain when asked to stop, with a checkpoint saved unless no step was done, and InputError where the
    configuration does not fit the model, the rows or the device.
    """
    config, training = run.config, run.config.training
    dtype = resolve_dtype(training.precision, run.device)
    max_tokens = tokens_per_pass(training, run.device)
    raise_if_stopped("before the first step")

    rows = TokenRows.open(run.rows)
    training_rows, held_out = rows.hold_out(training.eval_fraction, training.seed)
    rewards = torch.full((len(rows),), math.nan, dtype=torch.float64)
    rewards[training_rows] = ppo_math.standardise_rewards(torch.from_numpy(rows.numbers[training_rows]))

    with out_of_memory_explained(training, run.device):
        base = load_base_model(run.base, device=run.device, dtype=dtype, quantization=config.model.quantization)
        model = attach_lora(
            base,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            dropout=0.0,
            target_modules=config.lora.module_names(),
            start_adapter=run.start_adapter,
            seed=training.seed,
        )
        policy = ActorCritic.of(
            model, device=run.device, dtype=dtype, gradient_checkpointing=training.gradient_checkpointing
        )
        passes = RowPasses(rows, max_tokens, run.device, run.rank, run.world)

        with disable_input_dtype_casting(model):  # autocast casts; PEFT would cast every bf16 input to fp32 and back
            state = learn(run, policy, passes, rewards.float(), training_rows=training_rows, held_out=held_out)

        run.reporter.stage("evaluating")
        evaluate_run(run, model, rows, held_out, max_tokens=max_tokens, dtype=dtype)
        stop_together("after the evaluation", run.device)
        if run.is_main:
            run.reporter.stage("saving")
            template = load_chat_template(run.base).text
            save_adapter(model, run.base, run.stage, base_name=str(run.base), chat_template=template)
            write_parity(run, model, rows, held_out=held_out, training=training_rows, dtype=dtype)
            measured_on = "held_out" if len(held_out) else "training"
            ended = {"stopped_early": state.stopped_early, "kl": state.kl, "kl_rows": measured_on}
            write_json(run.work / TRAINING, ended)


def learn(
    run: TrainRun,
    policy: ActorCritic,
    passes: RowPasses,
    rewards: Tensor,
    *,
    training_rows: Indices,
    held_out: Indices,
) -> PpoState:
    """Do the optimizer steps that no checkpoint has yet; then `policy` is trained and a checkpoint of the end is there.

    `rewards` (rows of the data set,) are the standardised ones.
    """
    training, ppo = run.config.training, PPO.settings_of(run.config)
    rows = passes.rows
    batches = StepBatches(
        training_rows,
        batch_size=training.batch_size,
        grad_accum=training.gradient_accumulation_steps,
        seed=training.seed,
        rank=run.rank,
        world=run.world,
        lengths=rows.lengths,
    )
    total = batches.total_steps(training.epochs, training.max_steps)
    eval_steps = training.eval_steps or max(1, total // 10)

    adapter = policy.trained()
    parameters = [*adapter, *policy.value_head.parameters()]
    learning_rate = training.resolved_learning_rate(PPO.name)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=training.weight_decay)
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=math.ceil(training.warmup_ratio * total),
        num_training_steps=total,
    )
    checkpoints = Checkpoints(
        run.checkpoints, parameters, rows_per_step=batches.rows_per_step, optimizer=optimizer, scheduler=scheduler
    )
    state = checkpoints.load() or PpoState(within_target=copy_of(adapter))

    layout = TokenLayout(rows, _rows_visited(batches, 0, total))
    kl_layout = TokenLayout(rows, rows_to_measure(rows, held_out if len(held_out) else training_rows, training.seed))
    reference = reference_of_start(run, policy, passes, layout, kl_layout)
    measure_kl = partial(mean_kl, policy, passes, kl_layout, reference.kl_states)
    loss_of = partial(
        ppo_loss,
        clip_range=ppo.clip_range,
        value_clip_range=ppo.value_clip_range,
        value_loss_coef=ppo.value_loss_coef,
        kl_coef=ppo.kl_coef,
    )

    def measure_if_due() -> None:
        if state.step == total or (state.step > 0 and state.step % eval_steps == 0):
            hold_to_target(adapter, state, measure_kl, target_kl=ppo.target_kl)
            run.reporter.metrics(state.step, {"eval/kl": state.kl})

    run.reporter.start(total, state.step)
    measure_if_due()  # a checkpoint is of the moment before its measurement
    for epoch, begins, step_rows in _steps_left(batches, state.step, total):
        if state.stopped_early:
            break
        if begins and epoch == 0:  # the policy still is the start policy, and the value head gives zero
            state.old_logprobs, state.old_values = reference.logprobs, torch.zeros(layout.size)
        elif begins:
            visited = _rows_visited(batches, state.step, total - state.step)
            state.old_logprobs, state.old_values = score_rows(policy, passes, layout, visited, "between two epochs")
        recorded = Recorded(layout, rows, rewards, reference.logprobs, state.old_logprobs, state.old_values)

        metrics, tokens = accumulate_gradients(policy, passes, step_rows, recorded, loss_of)
        metrics |= optimizer_step(policy, optimizer, scheduler, max_grad_norm=training.max_grad_norm)
        state.step += 1
        run.reporter.step(state.step, state.step / len(batches), metrics, tokens)

        # Also before every pass over many rows, so that a stop there loses no step.
        stop, last = any_rank(stop_requested(), run.device), state.step == total
        due = any(state.step % every == 0 for every in (training.save_steps, eval_steps, len(batches)))
        if run.is_main and (stop or last or due):
            checkpoints.save(state)
        if stop:
            raise TryAgain(
                "Stopped",
                f"stopped after step {state.step} of {total} on request; it is saved, and the same command goes on",
            )
        measure_if_due()
    return state


def _steps_left(batches: StepBatches, step: int, total: int) -> Iterator[tuple[int, bool, Indices]]:
    """(epoch, whether the epoch begins, this rank's rows) of each optimizer step from `step` on."""
    while step < total:
        epoch, done = divmod(step, len(batches))
        for at, step_rows in enumerate(batches.epoch(epoch)[done : done + total - step], start=done):
            yield epoch, at == 0, step_rows
            step += 1


@dataclass(frozen=True)
class Recorded:
    """What is known of every output token before a step: flat arrays in the order of `layout`, on the CPU."""

    layout: TokenLayout
    rows: TokenRows
    rewards: Tensor
    reference_logprobs: Tensor
    old_logprobs: Tensor
    old_values: Tensor

    def at(self, indices: Indices, device: str) -> dict[str, Tensor]:
        """The arguments of `ppo_loss` for the output tokens of these rows, row after row."""
        where_N = self.layout.positions(indices)
        counts = torch.from_numpy(self.rows.learned_counts[indices].astype(np.int64))
        known = {
            "rewards_N": self.rewards[torch.from_numpy(indices)].repeat_interleave(counts),
            "reference_logprobs_N": self.reference_logprobs[where_N],
            "old_logprobs_N": self.old_logprobs[where_N],
            "old_values_N": self.old_values[where_N],
        }
        return {name: values_N.to(device) for name, values_N in known.items()}


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
    """(loss, sums): the loss summed over the N tokens ([PPO] eq. 9 without its entropy bonus, plus the k3 penalty), and
    the sums of `TERMS` in float64, without gradients."""
    ratio_N = ppo_math.probability_ratio(logprobs_N, old_logprobs_N)
    advantages_N = ppo_math.advantages(rewards_N, old_values_N)
    policy_N = ppo_math.policy_loss(ratio_N, advantages_N, clip_range=clip_range)
    value_N = ppo_math.value_loss(values_N, old_values_N, rewards_N, clip_range=value_clip_range)
    penalty_N = ppo_math.k3_penalty(logprobs_N, reference_logprobs_N)
    loss_N = policy_N + value_loss_coef * value_N + kl_coef * penalty_N
    clipped_N = ppo_math.is_clipped(ratio_N, advantages_N, clip_range=clip_range)
    terms = torch.stack([loss_N, policy_N, value_N, penalty_N, clipped_N.float(), ratio_N])
    return loss_N.sum(), terms.detach().double().sum(1)


def accumulate_gradients(
    policy: ActorCritic,
    passes: RowPasses,
    step_rows: Indices,
    recorded: Recorded,
    loss_of: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[dict[str, float], int]:
    """Gradients of the step's mean loss over all ranks' output tokens, whatever passes and ranks the rows went through.

    `step_rows` are this rank's rows. Returns the means of `TERMS`, and the real tokens of the step.
    """
    parameters = [*policy.trained(), *policy.value_head.parameters()]
    sums = torch.zeros(len(TERMS) + 2, dtype=torch.float64, device=policy.device)
    sums[-2] = int(passes.rows.learned_counts[step_rows].sum())
    sums[-1] = int(passes.rows.lengths[step_rows].sum())
    for at in passes.batches(step_rows):
        logprobs_N, values_N = policy(passes.padded(at))
        loss, terms = loss_of(logprobs_N, values_N, **recorded.at(at, policy.device))
        loss.backward()
        sums[:-2] += terms
    all_reduce_sum(sums)
    *totals, output_tokens, tokens = sums.tolist()
    _mean_gradients(parameters, output_tokens)
    return {f"train/{name}": total / output_tokens for name, total in zip(TERMS, totals, strict=True)}, int(tokens)


def _mean_gradients(parameters: list[nn.Parameter], output_tokens: float) -> None:
    """Sum the gradients over the ranks in one message and divide by the step's tokens; an empty share is zero."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = all_reduce_sum(torch.cat([grad.reshape(-1) for grad in grads])) / output_tokens
    for parameter, grad in zip(parameters, flat.split([grad.numel() for grad in grads]), strict=True):
        parameter.grad = grad.view_as(parameter)


def optimizer_step(
    policy: ActorCritic,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    max_grad_norm: float,
) -> dict[str, float]:
    """Move along the gradients and return what the step was like. Raises InputError where they are not finite.

    The adapter's and the value head's gradients are clipped apart: hidden states are long vectors, and the value head's
    gradient would otherwise shrink the policy's.
    """
    learning_rate = float(scheduler.get_last_lr()[0])
    norm = float(nn.utils.clip_grad_norm_(policy.trained(), max_grad_norm))
    value_norm = float(nn.utils.clip_grad_norm_(policy.value_head.parameters(), max_grad_norm))
    if not math.isfinite(norm + value_norm):
        rule = f"is {learning_rate:g} at this step, where the gradient norm became {norm + value_norm}"
        raise InputError(Problem("training.learningRate", rule, "set a lower one, or a higher ppo.klCoef"))
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return {"train/grad_norm": norm, "train/learning_rate": learning_rate}


def _rows_visited(batches: StepBatches, first_step: int, steps: int) -> Indices:
    """The rows of all ranks in at most one epoch of `steps` from `first_step` on, in rising order, each once."""
    epoch, done = divmod(first_step, len(batches))
    if steps >= len(batches):
        return np.sort(batches.rows)
    return np.sort(np.concatenate(batches.whole(epoch)[done : done + steps]))
