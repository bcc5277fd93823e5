"""A run from its base to a complete stage, the same for every mode but for the recipe."""

from __future__ import annotations

import logging
import warnings

import torch
from peft.helpers import disable_input_dtype_casting

from llm_tuning.core.files import write_json
from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.data.chat import load_chat_template
from llm_tuning.data.labels import LabelField
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.models.base import read_config
from llm_tuning.models.families import family_of
from llm_tuning.models.layout import HARDWARE, TRAINING
from llm_tuning.modes import MODES
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.division import divided
from llm_tuning.trainers.evaluate import evaluate_run
from llm_tuning.trainers.flat_rows import agreed
from llm_tuning.trainers.hardware import hardware_of
from llm_tuning.trainers.loop import fit
from llm_tuning.trainers.memory import Stage, gpu_errors_explained
from llm_tuning.trainers.model import (
    attach_lora,
    checkpoint_gradients,
    linear_targets,
    load_base_model,
    silence_dropout,
)
from llm_tuning.trainers.parallel import gather_objects, leave_process_group, stop_together
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.precision import precision_of_run
from llm_tuning.trainers.probes import score_probes, write_parity
from llm_tuning.trainers.recipe import Recipe, Task
from llm_tuning.trainers.save import save_adapter
from llm_tuning.trainers.sharding import refuse_unless_it_runs

log = logging.getLogger(__name__)


def fine_tune(run: TrainRun, mode: type[Recipe]) -> None:
    """Train `run` from its newest checkpoint (or its beginning) to a complete `run.stage`, which rank 0 saves alone.

    Raises TryAgain when asked to stop, with a checkpoint saved unless no step was done, and InputError where the
    configuration does not fit the model, the rows or the device.
    """
    training, mode_of_run = run.config.training, MODES[run.config.mode]
    raise_if_stopped("before the first step")
    with gpu_errors_explained(run, Stage.LOADING):
        dtype = precision_of_run(run)
        run = divided(run, dtype)
    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)  # what peft and trl still call
    with quiet, gpu_errors_explained(run, Stage.TRAINING):
        with gpu_errors_explained(run, Stage.LOADING):
            policy = load_policy(run, mode, dtype)
        rows = TokenRows.open(run.rows)
        training_rows, held_out = rows.hold_out(
            training.eval_fraction, training.seed, labelled=isinstance(mode_of_run.rows.number, LabelField)
        )
        task = Task.of(run, policy, rows, training_rows, held_out)

        with disable_input_dtype_casting(policy.model):  # autocast casts; PEFT would, to fp32 and back
            recipe = mode(task)
            fit(task, recipe)

            run.reporter.stage("evaluating")
            with gpu_errors_explained(run, Stage.EVALUATION):
                evaluate_run(run, policy, task.batches, held_out, of_mode=recipe.scores, warning_of=recipe.warning)
            stop_together("after the evaluation", run.device)
            hardware = hardware_of(run, policy)
            probes = None
            if policy.sharded:  # no rank has a model of its own to score them with afterwards
                probes = score_probes(policy, rows, held_out=held_out, training=training_rows)
            leave_process_group()
            if run.is_main:
                run.reporter.stage("saving")
                template = load_chat_template(run.base).text
                base_name = str(run.base.absolute())  # else no PEFT finds the base from another folder
                save_adapter(policy.model, run.base, run.stage, base_name=base_name, chat_template=template)
                with gpu_errors_explained(run, Stage.PROBES):
                    write_parity(run, policy, rows, held_out=held_out, training=training_rows, scores=probes)
                write_json(run.work / HARDWARE, hardware)
                summary = recipe.summary()
                if summary is not None:
                    write_json(run.work / TRAINING, summary)


def load_policy(run: TrainRun, mode: type[Recipe], dtype: torch.dtype) -> Policy:
    """Load the base with the run's adapter on it, ready for what `mode` computes."""
    config, dropout = run.config, MODES[run.config.mode].uses_dropout
    if config.model.quantization == "4bit" and run.device == "cpu" and run.is_main:
        log.warning("model.quantization is 4bit on a CPU: slower than without it, and meant for trying a run out")
    base = load_base_model(
        run.base,
        device=run.device,
        dtype=dtype,
        quantization=config.model.quantization,
        sharded=run.is_sharded,
        copies=run.world // run.shards,
    )
    if run.is_sharded:
        refuse_unless_it_runs(base, device=run.device, dtype=dtype)
    family, start = family_of(read_config(run.base)), run.spec.start_adapter
    model = attach_lora(
        base,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout if dropout else 0.0,
        target_modules=linear_targets(base, family, config.lora.target_modules) if start is None else (),
        start_adapter=start,
        family=family,
        seed=config.training.seed,
    )
    policy = Policy(model, device=run.device, dtype=dtype, with_values=mode.with_values)
    policy.row_layout = agreed(gather_objects(policy.row_layout))
    if run.is_main:
        log.info("%s", policy.row_layout)
    if config.training.gradient_checkpointing:
        checkpoint_gradients(model)
    if not dropout:
        silence_dropout(model)
    return policy.train(dropout or config.training.gradient_checkpointing)
