"""The training loop of all modes, on transformers' and TRL's Trainer.

Theirs are the optimizer, the learning-rate schedule, the order of a step, the trainer state and its resume. The base
class is that of TRL's trainers and not SFTTrainer, which prepares a data set and a tokenizer, changes the dtype of
weights and computes entropy and accuracy of every position: all of it would be undone here. What is ours, and why:

- One item of the data loader is one optimizer step of this rank: micro-batches under a token budget, rows end to end or
  padded to similar lengths. Padding to the longest row of a batch wastes half of a step on skewed lengths.
- The loss is the sum over the step's micro-batches and ranks, divided by the weight of the whole step (its tokens in
  the loss), so that a token counts the same however rows are cut into micro-batches, batches and ranks.
- Gradients of the ranks are summed by one all-reduce a step. A LoRA's are small, and this way a rank whose share of the
  last step is empty needs no special case. Accelerate sees a single process.
- After a step come, in this order: the report, the checkpoint, the stop, the evaluation. An evaluation may be long and
  ends at once when asked to stop: what came before it is saved, and a resume makes it again.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl.trainer.base_trainer import _BaseTrainer

from llm_tuning.core.room import require_room
from llm_tuning.core.stopping import stop_requested
from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.models.layout import ADAPTER_WEIGHTS
from llm_tuning.models.metrics_file import STEP_OPERATIONS
from llm_tuning.run.checkpoints import latest_checkpoint, save_checkpoint
from llm_tuning.run.context import TrainRun
from llm_tuning.run.slow_ranks import SlowRanks
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.memory import Stage, gpu_errors_explained
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.model import TRAINED, adapter_weights, bare_base
from llm_tuning.trainers.parallel import OwnTime, all_reduce_sum, any_rank, gather_objects, sum_gradients
from llm_tuning.trainers.recipe import Recipe, Task

RNG_STATE = "rng_state.pth"
"""One entry a rank, unlike Trainer's file of this name."""
RECIPE_STATE = "recipe.pt"
"""Rows of a step and the recipe's own state. Checkpoints of 0.1 in Trainer's form lack it and are complete without."""
OLD_PPO_STATE = "ppo_state.pt"
"""What checkpoints of PPO consisted of in 0.1."""

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""What makes accelerate take over the process group."""


def fit(task: Task, recipe: Recipe) -> None:
    """Do the optimizer steps that no checkpoint has yet; then the policy is trained, and a last checkpoint is there.

    Raises TryAgain when asked to stop, with a checkpoint saved unless no step was done.
    """
    run, total = task.run, task.total_steps
    # As rank 0 finds it, which may still be writing when another rank looks.
    done, checkpoint = gather_objects(latest_checkpoint(run.checkpoints))[0] or (0, None)
    if checkpoint is not None:
        load_checkpoint(checkpoint, task, recipe)
    elif run.is_main:  # one that resumes has been asked this before its base was loaded
        require_room(run.checkpoints.parent, _checkpoint_bytes(task), "a checkpoint of this run")
    run.reporter.start(total, done)
    if done < total and any_rank(stop_requested(), run.device):
        raise TryAgain("Stopped", f"stopped before step {done + 1} on request; the same command resumes")
    if done > 0 and recipe.is_due(done):  # a checkpoint is of the moment before its evaluation
        with gpu_errors_explained(run, Stage.EVALUATION):
            recipe.evaluate(done)
    if done < total and not recipe.stopped_early:
        Loop(task, recipe).train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _checkpoint_bytes(task: Task) -> int:
    """Return what a checkpoint takes: what is trained, and AdamW's two moments of it."""
    return sum(3 * tensor.nbytes for group in task.policy.gradient_groups() for tensor in group)


@dataclass(frozen=True)
class Step:
    """One optimizer step as this rank sees it."""

    micro_batches: list[MicroBatch]
    rows: Indices
    """Of all ranks."""
    weight: int
    """What the summed loss is divided by, of all ranks."""
    tokens: int
    """Real ones, of all ranks."""
    tokens_of_ranks: list[int]
    operations: float | None
    """Floating point operations, of all ranks."""


class Steps(Dataset[dict[str, Step]]):
    """All optimizer steps of a run, epoch after epoch; step s is made when it is asked for.

    An item is a dict with one entry, since Trainer looks for keys in what its loader gives.
    """

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.task, self.recipe, self._epoch = task, recipe, -1

    def __len__(self) -> int:
        return self.task.total_steps

    def __getitem__(self, step: int) -> dict[str, Step]:
        task = self.task
        epoch, at = divmod(step, len(task.steps))
        if epoch != self._epoch:
            self._epoch, self._whole, self._share = epoch, task.steps.whole(epoch), task.steps.epoch(epoch)
        share, whole = self._share[at], self._whole[at]
        cut = task.batches.cut(share, whole_rows=self.recipe.whole_rows)
        micro_batches = [task.batches.lay(sequences) for sequences in cut]
        ranks = range(task.steps.world)
        tokens = [int(task.rows.lengths[task.steps.share(whole, rank)].sum()) for rank in ranks]
        weight, operations = self.recipe.weight(whole), task.operations_of(whole)
        return {"step": Step(micro_batches, whole, weight, sum(tokens), tokens, operations)}


class Loop(_BaseTrainer):
    """Trains the policy of `task` by `recipe`; `train()` returns after the last step, or raises TryAgain."""

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.task, self.recipe, self.run = task, recipe, task.run
        self.groups = task.policy.gradient_groups()
        self._step: Step | None = None
        self._means = self._norms = self._own_seconds = torch.empty(0)
        self._own = OwnTime(self.run.device, sharded=task.policy.sharded)
        self._slow = SlowRanks(self.run.name_of)
        self._before: Step | None = None
        with _one_process():
            super().__init__(
                model=task.policy,
                args=_arguments(task.run, total=task.total_steps),
                data_collator=_the_step,
                train_dataset=Steps(task, recipe),
            )
        assert self.accelerator.num_processes == 1, "gradients would be summed twice"
        self.accelerator.device_placement = False  # the model is on its device; "cuda" might be another one
        self.remove_callback(PrinterCallback)
        torch.manual_seed(self.run.config.training.seed + self.run.rank)  # dropout differs between the ranks

    def _send_telemetry(self) -> None:
        """Send nothing: nothing about a run leaves the machine."""

    def get_train_dataloader(self) -> DataLoader[dict[str, Step]]:
        """Return the steps in order: to Trainer a run is one epoch, a batch a step, so a resume skips indices only.

        Its own loader would shuffle them, and accelerate's make the next step while this one runs.
        """
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_the_step)

    def training_step(self, model: Any, inputs: dict[str, Step], num_items_in_batch: object = None) -> Tensor:
        """Run forward and backward of one optimizer step; returns its loss, one for all ranks."""
        recipe, step, done = self.recipe, inputs["step"], self.state.global_step
        epoch, at = divmod(done, len(self.task.steps))
        if at == 0:
            recipe.begin_epoch(epoch, done)
        recipe.begin_step(step.rows, done)
        terms_and_times = len(recipe.terms) + self.run.world
        sums = torch.zeros(terms_and_times, dtype=torch.float64, device=self.run.device)
        mine = len(recipe.terms) + self.run.rank
        sums[mine : mine + 1].fill_(self._own.seconds)  # of the step before: a GPU has not done this one
        empty = self.task.policy.passes_to_join(len(step.micro_batches))
        self._own.begin()
        for batch in step.micro_batches:
            loss, terms = recipe.loss(batch)
            (loss / step.weight).backward()
            sums[: len(terms)] += terms
        for _ in range(empty):
            self.task.policy.empty_pass(backward=True)
        self._own.end()
        all_reduce_sum(sums)
        sum_gradients([parameter for group in self.groups for parameter in group])
        self._step, self._means = step, sums[: len(recipe.terms)] / step.weight
        self._own_seconds = sums[len(recipe.terms) :]
        return self._means[0].float()

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip each group by itself (see `Policy.gradient_groups`); returns the norm of the adapter's."""
        limit = self.args.max_grad_norm
        self._norms = torch.stack([self.accelerator.clip_grad_norm_(group, limit) for group in self.groups])
        return self._norms[0]

    def _numbers(self, step: Step) -> dict[str, float]:
        """Return the terms and gradient norm of `step`; raises InputError where it has left the finite numbers.

        All are read at once, when the optimizer's step is on its way: each reading stops a GPU. Weights that a
        diverged step has spoilt are never saved.
        """
        read = torch.cat([self._means, self._norms.double(), self._own_seconds]).tolist()
        terms = dict(zip(self.recipe.terms, read, strict=False))
        norms, own_seconds = read[len(terms) : -self.run.world], read[-self.run.world :]
        if self._before is not None and self._slow.step(own_seconds, self._before.tokens_of_ranks):
            self.run.reporter.slow_rank(self._slow.told)
        self._before = step
        if not math.isfinite(read[0]):
            raise self._diverged("the loss", read[0], step)
        for norm in norms:
            if not math.isfinite(norm):
                raise self._diverged("the gradient norm", norm, step)
        figures = self.recipe.figures(terms)
        return {f"train/{name}": value for name, value in figures.items()} | {"train/grad_norm": norms[0]}

    def _diverged(self, what: str, value: float, step: Step) -> InputError:
        """Say whose fault it is: the base's own numbers, the precision's, or else the learning rate's."""
        at = f"at step {self.state.global_step}"
        if any_rank(not self._base_is_finite(step), self.run.device):
            dtype = str(self.task.policy.dtype).removeprefix("torch.")
            rule = f"gives numbers that are not finite in {dtype} for rows of the data set, without any adapter ({at})"
            fix = "copy the base again; if it is whole, set {field:training.precision} to fp32"
            return InputError(Problem("model.path", rule, fix if dtype != "float32" else "copy the base again"))
        if self.state.global_step == 1:  # before any update: no learning rate has had a part in it
            rule = f"is {self.run.config.training.precision}, in which {what} became {value} {at}, before any update"
            return InputError(Problem("training.precision", rule, "set it to fp32, or repair the base"))
        rate = self.run.config.training.resolved_learning_rate(self.run.config.mode)
        return InputError(
            Problem(
                "training.learningRate",
                f"is {rate:g}, with which {what} became {value} {at}",
                self.recipe.if_diverged,
            )
        )

    def _base_is_finite(self, step: Step) -> bool:
        """Return whether the bare base gives finite numbers on this rank's rows of the step."""
        policy, finite = self.task.policy, True
        empty = policy.passes_to_join(len(step.micro_batches))
        with bare_base(policy.model):
            for batch in step.micro_batches:
                finite &= bool(policy.score(batch)[0].isfinite().all())
            for _ in range(empty):
                policy.empty_pass()
        return finite

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Tensor, *args: Any, **kwargs: Any) -> None:
        """Do what follows an optimizer step (Trainer calls it once more at the end of its one epoch)."""
        tr_loss.zero_()
        if self._step is None:
            return
        taken, self._step = self._step, None
        step, steps = self.state.global_step, self.task.steps
        metrics = {**self._numbers(taken), "train/learning_rate": kwargs["learning_rate"]}
        if taken.operations is not None:
            metrics[STEP_OPERATIONS] = taken.operations
        self.run.reporter.step(step, step / len(steps), metrics, taken.tokens)
        stop, last = any_rank(stop_requested(), self.run.device), step == self.task.total_steps
        evaluate = self.recipe.is_due(step)
        epoch_ends = self.recipe.passes_between_epochs and step % len(steps) == 0
        if stop or last or evaluate or epoch_ends or step % self.run.config.training.save_steps == 0:
            self.save()
        if stop:
            raise TryAgain(
                "Stopped",
                f"stopped after step {step} of {self.task.total_steps} on request; it is saved, and the same command "
                "resumes",
            )
        if evaluate:
            with gpu_errors_explained(self.run, Stage.EVALUATION):
                self.recipe.evaluate(step)
            self.control.should_training_stop |= self.recipe.stopped_early is not None

    # Checkpoints: all that decides the rest of the run, under the names that Trainer's own resume reads.

    def save(self) -> None:
        """Save a checkpoint of this moment; all ranks call it, rank 0 writes."""
        states = gather_objects(_random_state(self.run.device))
        if self.run.is_main:
            save_checkpoint(self.run.checkpoints, self.state.global_step, lambda folder: self._write(folder, states))

    def _write(self, folder: Path, random_states: list[Any]) -> None:
        save_file(adapter_weights(self.task.policy.model), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        _save(self.optimizer.state_dict(), folder / "optimizer.pt")
        _save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
        _save(random_states, folder / RNG_STATE)
        own = {"rows_per_step": self.task.steps.rows_per_step, "state": self.recipe.state()}
        _save(own, folder / RECIPE_STATE)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load nothing: `fit` loads the weights, for an evaluation may come in between, and may change them."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = torch.load(Path(checkpoint) / RNG_STATE, weights_only=True)
            if self.run.rank < len(states):  # a rank that is new begins with its own seed
                _set_random_state(states[self.run.rank], self.run.device)


def _save(state: Any, path: Path) -> None:
    """Save to an opened file: of one that torch opens itself, the system's error (a used up quota) is lost."""
    with path.open("wb") as file:
        torch.save(state, file)


def load_checkpoint(checkpoint: Path, task: Task, recipe: Recipe) -> None:
    """Put adapter and recipe back where `checkpoint` has them.

    Raises InputError for one that this version cannot resume, and where a step took another number of rows then:
    the place in the epoch would be another.
    """
    if (checkpoint / OLD_PPO_STATE).exists():
        rule = (
            f"has checkpoints of an earlier version of PPO ({checkpoint / OLD_PPO_STATE}), which this one cannot read"
        )
        raise InputError(Problem("model_id", rule, "finish it with that version, or start under another model_id"))
    path = checkpoint / RECIPE_STATE
    if path.exists():
        own = torch.load(path, map_location="cpu", weights_only=True)
        if own["rows_per_step"] != task.steps.rows_per_step:
            rule = f"give {task.steps.rows_per_step} rows a step, but this run was started with {own['rows_per_step']}"
            raise InputError(
                Problem("devices", rule, "start it on as many as before, or under another {field:model_id}")
            )
        recipe.load_state(own["state"])
    set_peft_model_state_dict(task.policy.model, load_file(checkpoint / ADAPTER_WEIGHTS), adapter_name=TRAINED)


def _arguments(run: TrainRun, *, total: int) -> TrainingArguments:
    spec = run.config.training
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=total,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=spec.resolved_learning_rate(run.config.mode),
        lr_scheduler_type=spec.lr_scheduler_type,
        warmup_steps=round(spec.warmup_ratio * total),  # not up: a run of few steps would spend one on a rate of zero
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        bf16=False,  # autocast is Policy's; accelerate's would copy every output to fp32
        use_cpu=True,  # else it takes the first GPU, opening a context there, and all visible ones for nn.DataParallel
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # which reads the loss once more
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
    arguments.__dict__["_setup_devices"] = torch.device(run.device)
    return arguments


@contextmanager
def _one_process() -> Iterator[None]:
    """Hide the launcher from accelerate, which would wrap the model and shard our steps once more."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHER_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _the_step(items: list[dict[str, Step]]) -> dict[str, Step]:
    (step,) = items
    return step


def _random_state(device: str) -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    plain = (name, np.asarray(keys).tolist(), *rest)  # so that nothing has to be unpickled when it is loaded
    state: dict[str, Any] = {"python": random.getstate(), "numpy": plain, "torch": torch.get_rng_state()}
    if device.startswith("cuda"):
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: str) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
