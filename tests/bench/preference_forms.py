"""One measurement of dpo or kto in a process of its own: `python -m tests.bench.preference_forms MODE FORM FOLDER`.

FORM is `recipe`, or `trl-N`: TRL's trainer at its best switches (reference precomputed, no checkpointing, no metrics
reported) with N rows a pass. FOLDER holds `base` and `rows`. Prints one JSON object: seconds of the steps alone, of
wall and of CPU time, losses, and how far the resident memory rose above what it was with the model loaded.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from llm_tuning.data.token_rows import TokenRows
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers import dpo, kto
from llm_tuning.trainers.batching import StepBatches
from llm_tuning.trainers.fine_tune import load_policy
from llm_tuning.trainers.loop import fit
from llm_tuning.trainers.model import load_base_model
from llm_tuning.trainers.precision import precision_of_run
from llm_tuning.trainers.recipe import Task
from tests.support.train_run import KeepingReporter, make_run

BATCH, EPOCHS = 8, 2
TRAINING = {
    "learning_rate": 1e-3,
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "eval_fraction": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
}
LORA = {"rank": 16, "alpha": 32}
RECIPES = {"dpo": dpo.Dpo, "kto": kto.Kto}


class Times(TrainerCallback):
    """The moments at which steps began and ended, and the losses."""

    def __init__(self) -> None:
        self.began = self.ended = (0.0, 0.0)
        self.losses: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = _now()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = _now()

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main(mode: str, form: str, folder: Path) -> None:
    run = make_run(folder, folder / "base", mode=mode, training=TRAINING, lora=LORA, cache=folder / "cache")
    rows = TokenRows.open(run.rows)
    measure = _recipe if form == "recipe" else _trl
    result = measure(mode, run, rows, rows_a_pass=int(form.partition("-")[2] or 0))
    print(json.dumps(result | {"tokens": EPOCHS * int(rows.lengths.sum())}))


def _recipe(mode: str, run: TrainRun, rows: TokenRows, *, rows_a_pass: int) -> dict[str, Any]:
    recipe_type: Any = RECIPES[mode]
    policy = load_policy(run, recipe_type, precision_of_run(run))
    task = Task.of(run, policy, rows, *rows.hold_out(0.0, run.config.training.seed))
    loaded = _reset_peak()
    recipe = recipe_type(task)
    scored = _now()
    fit(task, recipe)
    ended = _now()
    reporter = run.reporter
    assert isinstance(reporter, KeepingReporter)
    return _seconds(scored, ended) | {
        "memory_mib": _memory_mib("VmHWM") - loaded,
        "losses": reporter.losses,
        "reference_forwards": reporter.evaluations[0]["train/reference_forwards"],
    }


def _trl(mode: str, run: TrainRun, rows: TokenRows, *, rows_a_pass: int) -> dict[str, Any]:
    kind, config = (DPOTrainer, DPOConfig) if mode == "dpo" else (KTOTrainer, KTOConfig)

    class Trainer(kind):  # type: ignore[misc, valid-type]
        """With token ids as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    order = _order(run, rows)
    times = Times()
    model = load_base_model(run.base, device="cpu", dtype=torch.float32)
    loaded = _reset_peak()
    trainer = Trainer(
        model=model,
        args=config(
            output_dir=str(run.work / "trl"),
            use_cpu=True,
            bf16=False,
            max_steps=len(order) // BATCH,
            per_device_train_batch_size=rows_a_pass,
            gradient_accumulation_steps=BATCH // rows_a_pass,
            learning_rate=TRAINING["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=run.config.training.weight_decay,
            max_grad_norm=run.config.training.max_grad_norm,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            max_length=None,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list(_records(mode, rows, order, rows_a_pass)),
        processing_class=AutoTokenizer.from_pretrained(run.base),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[times],
    )
    trainer.train()
    return _seconds(times.began, times.ended) | {
        "memory_mib": _memory_mib("VmHWM") - loaded,
        "losses": times.losses,
    }


def _order(run: TrainRun, rows: TokenRows) -> np.ndarray:
    steps = StepBatches(len(rows), batch_size=BATCH, grad_accum=1, seed=run.config.training.seed)
    return np.concatenate([step for epoch in range(EPOCHS) for step in steps.whole(epoch)])


def _records(mode: str, rows: TokenRows, order: np.ndarray, rows_a_pass: int) -> list[dict[str, Any]]:
    records = []
    for index in order:
        parts = []
        for sequence in rows[int(index)].sequences:
            begin = int(np.argmax(sequence.learned))
            parts.append((sequence.input_ids[:begin].tolist(), sequence.input_ids[begin:].tolist()))
        record: dict[str, Any] = {"prompt_ids": parts[0][0]}
        if mode == "dpo":
            record |= {"chosen_ids": parts[0][1], "rejected_ids": parts[1][1]}
        else:
            record |= {"completion_ids": parts[0][1], "label": bool(rows.numbers[index])}
        records.append(record)
    if mode == "kto":
        for start in range(0, len(records), rows_a_pass):
            batch = records[start : start + rows_a_pass]
            for record, before in zip(batch, [batch[-1], *batch[:-1]], strict=True):
                record["KL_completion_ids"] = before["completion_ids"]
    return records


def _now() -> tuple[float, float]:
    """Seconds of wall time and of CPU time."""
    return time.perf_counter(), time.process_time()


def _seconds(began: tuple[float, float], ended: tuple[float, float]) -> dict[str, Any]:
    return {"seconds": ended[0] - began[0], "cpu_seconds": ended[1] - began[1]}


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    return _memory_mib("VmRSS")


def _memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
