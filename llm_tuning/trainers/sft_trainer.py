"""TRL's SFTTrainer, fed with whole optimizer steps.

What stays TRL's and transformers' own: optimizer, learning-rate schedule, clipping, the loop, the trainer state and its
resume. What is ours, and why:

- One item of the data loader is one optimizer step of this rank: a list of forward passes under a token budget, rows
  end to end in them (`flat_rows`) or padded to similar lengths. Padding to the longest row of a batch wastes half of
  a step on skewed lengths.
- The loss is the sum over the step's learned tokens on all ranks, divided by their number, so that a token
  counts the same however rows are cut into passes, batches and ranks. Only learned positions go through the output
  layer, a chunk at a time; TRL also computes entropy and top-1 accuracy of every position in every step.
- No attention mask: rows end to end are kept apart by their lengths, and padding is on the right, where causal
  attention never looks.
- Gradients of the ranks are summed by one all-reduce a step. A LoRA's are small, and this way a rank whose
  share of the last step is empty needs no special case. Accelerate sees a single process.
- Checkpoints go through `llm_tuning.run.checkpoints`; reports, evaluation and stop requests are looked after at the end
  of each step, in that order of urgency.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.core.stopping import stop_requested
from llm_tuning.data.token_rows import TokenRow, TokenRows
from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.models.layout import ADAPTER_WEIGHTS
from llm_tuning.run.checkpoints import save_checkpoint
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices, StepBatches, flatten, full_batches, pad, token_budget_batches
from llm_tuning.trainers.parallel import all_reduce_sum, any_rank, gather_objects
from llm_tuning.trainers.policy import TRAINED, adapter_weights
from llm_tuning.trainers.token_loss import TokenLoss

RNG_STATE = "rng_state.pth"
"""One entry a rank, unlike Trainer's file of this name."""

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""What makes accelerate take over the process group."""


class Steps(torch.utils.data.Dataset[dict[str, Any]]):
    """All optimizer steps of a run, epoch after epoch, as this rank sees them; step s is made when it is asked for."""

    def __init__(self, rows: TokenRows, batches: StepBatches, *, total: int, max_tokens: int, flat_rows: bool) -> None:
        """`flat_rows`: passes hold rows end to end (`batching.flatten`) instead of padded ones."""
        self.rows, self.batches, self.total, self.max_tokens = rows, batches, total, max_tokens
        self._cut: Callable[..., list[Indices]] = full_batches if flat_rows else token_budget_batches
        self._lay: Callable[..., dict[str, Any]] = flatten if flat_rows else _padded
        self._epoch = -1

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> dict[str, Any]:
        """`passes`: batches for `TokenLoss.sum`; `learned`, `tokens`: learned and all tokens of the step, all ranks."""
        epoch, at = divmod(step, len(self.batches))
        if epoch != self._epoch:
            self._epoch, self._whole, self._share = epoch, self.batches.whole(epoch), self.batches.epoch(epoch)
        share, whole = self._share[at], self._whole[at]
        passes = [share[batch] for batch in self._cut(self.rows.lengths[share], self.max_tokens)]
        return {
            "passes": [self._lay([self.rows[int(i)] for i in at]) for at in passes],
            "learned": int(self.rows.learned_counts[whole].sum()),
            "tokens": int(self.rows.lengths[whole].sum()),
        }


def _padded(rows: list[TokenRow]) -> dict[str, Any]:
    return pad(rows, pad_id=0)


class StepTrainer(SFTTrainer):
    """Trains `model` on `steps`; `train()` returns after the last step, or raises TryAgain when asked to stop.

    `evaluate_now(step)` is called after every `eval_steps` steps (never, if that is 0).
    """

    def __init__(
        self,
        run: TrainRun,
        model: PeftModel,
        steps: Steps,
        token_loss: TokenLoss,
        *,
        evaluate_now: Callable[[int], None],
        eval_steps: int,
    ) -> None:
        self.run, self.steps, self.token_loss = run, steps, token_loss
        self._evaluate_now, self._eval_steps = evaluate_now, eval_steps
        self._step: dict[str, Any] = {}
        self._loss = math.nan
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = [parameter.data for parameter in trainable]
        with _one_process():
            super().__init__(
                model=model,
                args=_arguments(run, total=len(steps)),
                data_collator=_the_step,
                train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # ours come from `steps`
                processing_class=_any_tokenizer(),
            )
        assert self.accelerator.num_processes == 1, "gradients would be summed twice"
        self.accelerator.device_placement = False  # the model is on its device; "cuda" might be another one
        for parameter, weight in zip(trainable, weights, strict=True):
            parameter.data = weight  # TRL turns LoRA weights on a 4-bit base into bf16
        self.trainable = trainable
        self.processing_class = None  # or train() would align the model's special tokens with it
        self.remove_callback(PrinterCallback)
        torch.manual_seed(run.config.training.seed + run.rank)  # dropout differs between the ranks

    def _send_telemetry(self) -> None:
        """Nothing about a run leaves the machine."""

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The steps in order: to Trainer a run is one epoch, a batch a step, so that a resume skips indices only."""
        return DataLoader(self.steps, batch_size=1, collate_fn=_the_step)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: object = None) -> Tensor:
        """Forward and backward of one optimizer step; returns its loss (nats a learned token), one for all ranks."""
        if not model.training:
            model.train()
        loss = torch.zeros((), device=self.run.device)
        for batch in inputs["passes"]:
            pass_loss = self.token_loss.sum(batch) / max(1, inputs["learned"])
            pass_loss.backward()
            loss += pass_loss.detach()
        if self.run.world > 1:
            loss = self._sum_over_ranks(loss)
        self._step, self._loss = inputs, float(loss)
        if not math.isfinite(self._loss):
            raise self._diverged("the loss", self._loss)
        return loss

    def _sum_over_ranks(self, loss: Tensor) -> Tensor:
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trainable]
        flat = torch.cat([loss.reshape(1), *(grad.reshape(-1) for grad in grads)])
        all_reduce_sum(flat)
        sizes = [1, *(grad.numel() for grad in grads)]
        total, *summed = flat.split(sizes)
        for parameter, grad in zip(self.trainable, summed, strict=True):
            parameter.grad = grad.view_as(parameter)
        return total[0]

    def _get_grad_norm(self, model: Any, grad_norm: Tensor | float | None = None) -> float:
        norm = float(super()._get_grad_norm(model, grad_norm))
        if not math.isfinite(norm):
            raise self._diverged("the gradient norm", norm)
        return norm

    def _diverged(self, what: str, value: float) -> InputError:
        rate = self.run.config.training.resolved_learning_rate(self.run.config.mode)
        return InputError(
            Problem(
                "training.learningRate",
                f"is {rate:g}, with which {what} became {value} at step {self.state.global_step + 1}",
                "set a lower one",
            )
        )

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: float | None, *args: Any, **kwargs: Any) -> None:
        """What follows an optimizer step (Trainer calls it once more at the end of its one epoch)."""
        step = self.state.global_step
        tr_loss.zero_()
        if not self._step:
            return
        metrics = {
            "train/loss": self._loss,
            "train/grad_norm": grad_norm or 0.0,
            "train/learning_rate": kwargs["learning_rate"],
        }
        self.run.reporter.step(step, step / len(self.steps.batches), metrics, self._step["tokens"])
        self._step = {}
        stop, last = any_rank(stop_requested(), self.run.device), step == len(self.steps)
        evaluate = bool(self._eval_steps) and not last and step % self._eval_steps == 0
        # An evaluation may be long and leaves at once when asked to stop: what came before it is saved.
        if stop or last or evaluate or step % self.run.config.training.save_steps == 0:
            self.save()
        if stop:
            raise TryAgain(
                "Stopped",
                f"stopped after step {step} of {len(self.steps)} on request; it is saved, and the same command goes on",
            )
        if evaluate:
            self._evaluate_now(step)

    # Checkpoints: all that decides the rest of the run, under the names that Trainer's own resume reads.

    def save(self) -> None:
        """Save a checkpoint of this moment; all ranks call it, rank 0 writes."""
        states = gather_objects(_random_state(self.run.device))
        if self.run.is_main:
            save_checkpoint(self.run.checkpoints, self.state.global_step, lambda folder: self._write(folder, states))

    def _write(self, folder: Path, random_states: list[Any]) -> None:
        save_file(adapter_weights(self.model), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
        torch.save(random_states, folder / RNG_STATE)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = torch.load(Path(checkpoint) / RNG_STATE, weights_only=True)
            _set_random_state(states[self.run.rank], self.run.device)


def load_weights(model: PeftModel, checkpoint: Path) -> None:
    """Put the adapter weights of a checkpoint into the trained adapter of `model`."""
    set_peft_model_state_dict(model, load_file(checkpoint / ADAPTER_WEIGHTS), adapter_name=TRAINED)


def _arguments(run: TrainRun, *, total: int) -> SFTConfig:
    spec: TrainingSpec = run.config.training
    arguments = SFTConfig(
        output_dir=str(run.checkpoints),
        max_steps=total,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=spec.resolved_learning_rate(run.config.mode),
        lr_scheduler_type=spec.lr_scheduler_type,
        warmup_steps=int(spec.warmup_ratio * total),  # down: a short run spends no step on a rate of zero
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        gradient_checkpointing=spec.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=False,  # autocast is TokenLoss's; accelerate's would copy every output to fp32
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=run.device == "cpu",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
    if run.device != "cpu":
        # TrainingArguments would take the first GPU, and all visible ones for nn.DataParallel.
        torch.cuda.set_device(run.device)
        arguments.__dict__["_setup_devices"] = torch.device(run.device)
        arguments._n_gpu = 1
    return arguments


@contextmanager
def _one_process() -> Iterator[None]:
    """Hide the launcher from accelerate, which would wrap the model and shard our steps once more."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHER_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _the_step(items: list[dict[str, Any]]) -> dict[str, Any]:
    (step,) = items
    return step


def _any_tokenizer() -> PreTrainedTokenizerFast:
    """TRL insists on a tokenizer and, with rows that are tokenised already, makes no use of it."""
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"": 0}, unk_token="")))


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
