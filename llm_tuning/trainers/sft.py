"""Supervised fine-tuning: learn the outputs of the rows, completion tokens only, with a LoRA on a frozen base."""

from __future__ import annotations

import warnings

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting

from llm_tuning.core.stopping import raise_if_stopped, stop_requested
from llm_tuning.data.chat import load_chat_template
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import TryAgain
from llm_tuning.run.checkpoints import latest_checkpoint
from llm_tuning.run.context import TrainRun
from llm_tuning.run.devices import tokens_per_pass
from llm_tuning.trainers.batching import Indices, StepBatches
from llm_tuning.trainers.evaluate import evaluate_policy, evaluate_run
from llm_tuning.trainers.memory import out_of_memory_explained
from llm_tuning.trainers.parallel import any_rank
from llm_tuning.trainers.policy import attach_lora, load_base_model, resolve_dtype, save_adapter
from llm_tuning.trainers.probes import write_parity
from llm_tuning.trainers.sft_trainer import Steps, StepTrainer, load_weights
from llm_tuning.trainers.token_loss import TokenLoss


def train(run: TrainRun) -> None:
    """Train `run` from its newest checkpoint (or its beginning) to a complete `run.stage`.

    Raises TryAgain when asked to stop, with a checkpoint saved unless no step was done, and InputError where the
    configuration does not fit the model or the device.
    """
    config, training = run.config, run.config.training
    dtype = resolve_dtype(training.precision, run.device)
    max_tokens = tokens_per_pass(training, run.device)
    raise_if_stopped("before the first step")

    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)  # what peft and trl still call
    with quiet, out_of_memory_explained(training, run.device):
        base = load_base_model(run.base, device=run.device, dtype=dtype, quantization=config.model.quantization)
        policy = attach_lora(
            base,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            target_modules=config.lora.module_names(),
            start_adapter=run.start_adapter,
            seed=training.seed,
        )
        rows = TokenRows.open(run.rows)
        training_rows, held_out = rows.hold_out(training.eval_fraction, training.seed)

        fit(run, policy, rows, training_rows, held_out, dtype=dtype, max_tokens=max_tokens)

        run.reporter.stage("evaluating")
        evaluate_run(run, policy, rows, held_out, max_tokens=max_tokens, dtype=dtype)
        if any_rank(stop_requested(), run.device):
            raise TryAgain(
                "Stopped",
                "stopped after the evaluation on request; the training is saved, and the same command goes on",
            )
        if run.is_main:
            run.reporter.stage("saving")
            template = load_chat_template(run.base).text
            save_adapter(policy, run.base, run.stage, base_name=str(run.base), chat_template=template)
            write_parity(run, policy, rows, held_out=held_out, training=training_rows, dtype=dtype)


def fit(
    run: TrainRun,
    policy: PeftModel,
    rows: TokenRows,
    training_rows: Indices,
    held_out: Indices,
    *,
    dtype: torch.dtype,
    max_tokens: int,
) -> None:
    """Do the optimizer steps that no checkpoint has yet; then `policy` is trained, and a last checkpoint is there."""
    training = run.config.training
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
    done, checkpoint = latest_checkpoint(run.checkpoints) or (0, None)
    run.reporter.start(total, done)
    if checkpoint is not None and done >= total:
        load_weights(policy, checkpoint)
        return

    def evaluate_now(step: int) -> None:
        run.reporter.stage("evaluating")
        scores = evaluate_policy(
            policy, rows, held_out, max_tokens=max_tokens, device=run.device, dtype=dtype, rank=run.rank
        )
        run.reporter.metrics(
            step,
            {
                "eval/loss": scores.loss,
                "eval/perplexity": scores.perplexity,
                "eval/token_accuracy": scores.token_accuracy,
            },
        )

    token_loss = TokenLoss(policy, device=run.device, dtype=dtype)
    trainer = StepTrainer(
        run,
        policy,
        Steps(rows, batches, total=total, max_tokens=max_tokens, flat_rows=token_loss.flat_rows),
        token_loss,
        evaluate_now=evaluate_now,
        eval_steps=(training.eval_steps or max(1, total // 10)) if len(held_out) else 0,
    )
    if any_rank(stop_requested(), run.device):
        raise TryAgain("Stopped", f"stopped before step {done + 1} on request; the same command goes on")
    with disable_input_dtype_casting(policy):  # autocast casts; PEFT would cast every bf16 input to fp32 and back
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
