"""One measurement of ppo in a process of its own: `python -m tests.bench.ppo_forms plain|recipe FOLDER`.

FOLDER holds `base` and `rows`. Prints one JSON object: seconds an epoch, losses, and how far the resident memory rose
above what it was with the model loaded (the kernel's own peak, reset at that moment).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from llm_tuning.data.token_rows import TokenRows
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.loop import fit
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.ppo import Ppo
from llm_tuning.trainers.recipe import Task
from tests.support.plain_ppo import plain_ppo
from tests.support.train_run import KeepingReporter, make_run

EPOCHS = 2
TRAINING = {"learning_rate": 1e-3, "epochs": EPOCHS, "batch_size": 8, "eval_fraction": 0.05, "eval_steps": 1_000_000}


def main(form: str, folder: Path) -> None:
    run = make_run(
        folder, folder / "base", mode="ppo", training=TRAINING, ppo={"target_kl": 50.0}, cache=folder / "cache"
    )
    rows = TokenRows.open(run.rows)
    training_rows, held_out = rows.hold_out(run.config.training.eval_fraction, run.config.training.seed)
    model = attach_lora(
        load_base_model(run.base, device="cpu", dtype=torch.float32),
        rank=16,
        alpha=32,
        dropout=0.0,
        target_modules="all-linear",
        seed=42,
    ).eval()
    loaded = _memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    began = time.perf_counter()
    losses, forwards = _train(form, run, model, rows, training_rows=training_rows, held_out=held_out)
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "seconds_an_epoch": seconds / EPOCHS,
                "memory_mib": _memory_mib("VmHWM") - loaded,
                "loaded_mib": loaded,
                "losses": losses,
                "reference_forwards": forwards,
            }
        )
    )


def _train(
    form: str, run: TrainRun, model: PeftModel, rows: TokenRows, *, training_rows: np.ndarray, held_out: np.ndarray
) -> tuple[list[float], float]:
    if form == "plain":
        return plain_ppo(model, rows, training_rows, run.config, rows_per_pass=8), float("inf")
    policy = Policy(model, device="cpu", dtype=torch.float32, with_values=True)
    task = Task.of(run, policy, rows, training_rows, held_out)
    fit(task, Ppo(task))
    reporter = run.reporter
    assert isinstance(reporter, KeepingReporter)
    return reporter.losses, reporter.evaluations[0]["train/reference_forwards"]


def _memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
