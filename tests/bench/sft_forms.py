"""One measured training run in a process of its own: `python -m tests.bench.sft_forms FORM FOLDER [DTYPE]`.

Forms: `recipe` and `trl` train on FOLDER/rows and print tokens a second of wall and of CPU time; both see the same
rows in every optimizer step, eight of them. `trl` is SFTTrainer as it comes (gradient checkpointing on), `trl-plain`
without checkpointing, `trl-rows` without it and a row at a time, which is its best on a CPU. `start-recipe` and
`start-trl` print the seconds since BENCH_STARTED at the end of their first step.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 2
ROWS_PER_STEP = 8
LORA = {"rank": 16, "alpha": 32, "dropout": 0.05}


def recipe(folder: Path, dtype: str) -> dict[str, float]:
    """The project's SFT recipe, its steps only."""
    from llm_tuning.core.console import quiet_libraries

    quiet_libraries()
    import torch
    from peft.helpers import disable_input_dtype_casting

    from llm_tuning.data.token_rows import TokenRows
    from llm_tuning.trainers.fine_tune import load_policy
    from llm_tuning.trainers.loop import fit
    from llm_tuning.trainers.precision import precision_of_run
    from llm_tuning.trainers.recipe import Task
    from llm_tuning.trainers.sft import Sft
    from tests.support.train_run import KeepingReporter, make_run

    class Clock(KeepingReporter):
        def __init__(self) -> None:
            super().__init__()
            self.ends: list[tuple[float, float]] = []

        def step(self, *args: Any) -> None:
            super().step(*args)
            self.ends.append(_now())

    rows = TokenRows.open(folder / "rows")
    everything = torch.arange(len(rows)).numpy()
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        training = {"precision": dtype, "batch_size": ROWS_PER_STEP, "save_steps": 10**6}
        run = make_run(Path(work), folder / "base", training=training, lora=LORA, reporter=clock)
        policy = load_policy(run, Sft, precision_of_run(run))
        task = Task.of(run, policy, rows, everything, everything[:0])
        with disable_input_dtype_casting(policy.model):
            fit(task, Sft(task))
    return _speed(clock.ends, _step_tokens(folder))


def trl(folder: Path, dtype: str, *, checkpointing: bool, batch_size: int = ROWS_PER_STEP) -> dict[str, float]:
    """TRL's SFTTrainer on the same steps, the rows of each accumulated from batches of `batch_size`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from llm_tuning.data.token_rows import TokenRows

    rows = TokenRows.open(folder / "rows")
    chosen = [rows[int(i)] for step in _steps(folder) for i in step]
    records = [
        {
            "input_ids": row.input_ids.tolist(),
            "labels": [int(t) if on else -100 for t, on in zip(row.input_ids, row.learned, strict=True)],
        }
        for row in chosen
    ]
    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            ends.append(_now())

    with tempfile.TemporaryDirectory(dir=folder) as output:
        trainer = SFTTrainer(
            model=str(folder / "base"),
            args=SFTConfig(
                output_dir=output,
                num_train_epochs=1,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=ROWS_PER_STEP // batch_size,
                bf16=dtype == "bf16",
                gradient_checkpointing=checkpointing,
                train_sampling_strategy="sequential",
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(records),
            processing_class=AutoTokenizer.from_pretrained(folder / "base"),
            peft_config=LoraConfig(
                r=LORA["rank"],
                lora_alpha=LORA["alpha"],
                lora_dropout=LORA["dropout"],
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock()],
        )
        torch.manual_seed(0)
        trainer.train()
    return _speed(ends, _step_tokens(folder))


def start_recipe(folder: Path) -> None:
    """The command a person types, up to the end of its first step."""
    from llm_tuning.codes import tune_llm
    from llm_tuning.run.reporter import RunReporter

    RunReporter.step = _leave  # type: ignore[method-assign]
    tune_llm.main(
        [
            *("--llm_path", str(folder / "base")),
            *("--dataset_path", str(folder / "rows.json")),
            *("--output_dir", str(folder / "models")),
            *("--tracking_uri", str(folder / "mlruns-recipe")),
            *("--devices", "cpu"),
        ]
    )


def start_trl(folder: Path) -> None:
    """A script as people write it: rows by datasets, LoRA by peft, SFTTrainer, a run in MLflow."""
    import mlflow
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Leave(TrainerCallback):
        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            _leave()

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow-trl.db")
    mlflow.set_experiment("llm_tuning")
    dataset = load_dataset(
        "json", data_files=str(folder / "rows.json"), split="train", cache_dir=tempfile.mkdtemp(dir=folder)
    ).rename_column("output", "completion")
    trainer = SFTTrainer(
        model=str(folder / "base"),
        args=SFTConfig(output_dir=str(folder / "trl"), use_cpu=True, report_to="mlflow"),
        train_dataset=dataset,
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Leave()],
    )
    trainer.train()


def _leave(*_args: Any, **_kwargs: Any) -> None:
    print(json.dumps({"seconds": time.time() - float(os.environ["BENCH_STARTED"])}), flush=True)
    os._exit(0)


def _steps(folder: Path) -> list[Any]:
    from llm_tuning.data.token_rows import TokenRows
    from llm_tuning.trainers.batching import StepBatches
    from tests.support.train_run import make_run

    seed = make_run(folder, folder / "base").config.training.seed
    rows = TokenRows.open(folder / "rows")
    return StepBatches(len(rows), batch_size=ROWS_PER_STEP, grad_accum=1, seed=seed).epoch(0)


def _step_tokens(folder: Path) -> list[int]:
    from llm_tuning.data.token_rows import TokenRows

    lengths = TokenRows.open(folder / "rows").lengths
    return [int(lengths[step].sum()) for step in _steps(folder)]


def _now() -> tuple[float, float]:
    """Seconds of wall time and of CPU time."""
    return time.perf_counter(), time.process_time()


def _speed(ends: list[tuple[float, float]], step_tokens: list[int]) -> dict[str, float]:
    assert len(ends) == len(step_tokens)
    tokens = sum(step_tokens[WARM_UP_STEPS:])
    wall, cpu = (last - first for last, first in zip(ends[-1], ends[WARM_UP_STEPS - 1], strict=True))
    return {"tokens": tokens, "tokens_per_second": tokens / wall, "tokens_per_cpu_second": tokens / cpu}


def main(form: str, folder: Path, dtype: str) -> None:
    match form:
        case "recipe":
            result = recipe(folder, dtype)
        case "trl" | "trl-plain":
            result = trl(folder, dtype, checkpointing=form == "trl")
        case "trl-rows":
            result = trl(folder, dtype, checkpointing=False, batch_size=1)
        case "start-recipe":
            start_recipe(folder)
            raise AssertionError("the run ended without a step")
        case _:
            start_trl(folder)
            raise AssertionError("the run ended without a step")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
