"""The SFT recipe as a whole on a tiny base: what it learns, how it stops and resumes, what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from llm_tuning.core import stopping
from llm_tuning.data.check import check_dataset
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.modes.sft import SFT
from llm_tuning.run.checkpoints import latest_checkpoint
from llm_tuning.trainers import sft
from llm_tuning.trainers.batching import StepBatches
from llm_tuning.trainers.model import load_base_model
from tests.support.rows import write_rows
from tests.support.train_run import KeepingReporter, StopsAt, make_run

LENGTHS = [5, 9, 14, 20, 33, 47, 60, 8, 11, 26, 39, 52, 7, 18, 29, 41, 12, 22, 31, 64]  # 20 rows: one is held out
TRAINING: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.01, "epochs": 2, "save_steps": 3, "seed": 5}
"""19 training rows: 5 steps an epoch, the last with 3 rows."""
NO_DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.0}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.3}
REPO = Path(__file__).parents[3]
ROLES = ("user", "assistant")


def tune(
    work: Path,
    base: Path,
    *,
    lora: dict[str, Any] = NO_DROPOUT,
    reporter: Any = None,
    start: Path | None = None,
    **training: Any,
) -> KeepingReporter:
    """A whole run in `work`, made with the rows of LENGTHS unless some are there."""
    if not (work / "rows").exists():
        write_rows(work / "rows", LENGTHS)
    run = make_run(work, base, training=TRAINING | training, lora=lora, reporter=reporter, start_adapter=start)
    sft.train(run)
    return run.reporter


def adapter_hash(work: Path) -> str:
    return hashlib.sha256((work / "stage" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _nobody_asked_to_stop() -> Any:
    yield
    stopping._requested.clear()


# What it learns


def test_the_loss_falls_and_evaluation_sees_it_too(tiny_base: Path, tmp_path: Path) -> None:
    reporter = tune(tmp_path, tiny_base, epochs=8)
    assert reporter.started == (40, 0)
    assert reporter.losses[-1] < reporter.losses[0] - 0.5
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"] - 0.3
    assert sorted(reporter.evaluations) == list(range(4, 40, 4)), "ten times a run; the tenth is the final one"
    assert reporter.evaluations[36]["eval/loss"] < reporter.evaluations[4]["eval/loss"]
    training, _ = TokenRows.open(tmp_path / "rows").hold_out(0.05, 5)
    assert reporter.tokens == 8 * sum(length for i, length in enumerate(LENGTHS) if i in training)


def test_every_file_of_the_contract_is_in_the_stage(tiny_base: Path, tmp_path: Path) -> None:
    tune(tmp_path, tiny_base, max_steps=2)
    assert {path.name for path in (tmp_path / "stage").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "parity.json",
    }
    assert (tmp_path / "stage/chat_template.jinja").read_text() == (tiny_base / "chat_template.jinja").read_text()
    assert latest_checkpoint(tmp_path / "checkpoints") == (2, tmp_path / "checkpoints/checkpoint-2")


def test_the_same_run_twice_gives_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tune(tmp_path / name, tiny_base, lora=DROPOUT)
    for file in (tmp_path / "one/stage").iterdir():
        assert file.read_bytes() == (tmp_path / "two/stage" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 1, "gradient_accumulation_steps": 4},
        {"max_tokens_per_pass": 64},
        {"gradient_checkpointing": True},
    ],
    ids=["1x4", "small passes", "checkpointing"],
)
def test_what_only_changes_memory_does_not_change_the_curve(
    tiny_base: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = tune(tmp_path / "plain", tiny_base)
    changed = tune(tmp_path / "changed", tiny_base, **change)
    assert changed.losses == pytest.approx(plain.losses, rel=1e-5)


def test_dropout_is_on_in_every_step(tiny_base: Path, tmp_path: Path) -> None:
    without = tune(tmp_path / "without", tiny_base, max_steps=2)
    with_it = tune(tmp_path / "with", tiny_base, lora=DROPOUT, max_steps=2)
    assert with_it.losses[0] == without.losses[0], "a fresh LoRA adds nothing, dropped out or not"
    assert with_it.steps[1]["train/grad_norm"] != without.steps[1]["train/grad_norm"]
    assert with_it.losses[1] != without.losses[1]


def test_the_learning_rate_warms_up_and_falls_as_configured(tiny_base: Path, tmp_path: Path) -> None:
    reporter = tune(tmp_path, tiny_base, max_steps=10, warmup_ratio=0.2, lr_scheduler_type="linear")
    rates = [reporter.steps[step]["train/learning_rate"] for step in range(1, 11)]
    want = [0.01 * (s / 2 if s < 2 else (10 - s) / 8) for s in range(10)]
    assert rates == pytest.approx(want)


def test_bf16_learns_too(tiny_base: Path, tmp_path: Path) -> None:
    reporter = tune(tmp_path, tiny_base, precision="bf16", epochs=4)
    assert reporter.losses[-1] < reporter.losses[0] - 0.2
    assert {w.dtype for w in load_file(tmp_path / "stage/adapter_model.safetensors").values()} == {torch.float32}


def test_training_goes_on_from_a_start_adapter(tiny_base: Path, tmp_path: Path) -> None:
    first = tune(tmp_path / "first", tiny_base, epochs=6)
    second = tune(tmp_path / "second", tiny_base, epochs=1, start=tmp_path / "first/stage")
    assert second.losses[0] < first.losses[0] - 0.3
    evaluation = json.loads((tmp_path / "second/evaluation.json").read_text())
    before = json.loads((tmp_path / "first/evaluation.json").read_text())
    assert evaluation["start"]["loss"] == pytest.approx(before["tuned"]["loss"])


def test_it_trains_what_trl_alone_trains(tiny_base: Path, tmp_path: Path) -> None:
    """The same steps given to TRL's SFTTrainer row by row, padded and masked its own way: the same weights."""
    rows = write_rows(tmp_path / "rows", LENGTHS)
    tune(tmp_path, tiny_base, epochs=1, warmup_ratio=0.3, weight_decay=0.1, max_grad_norm=0.5)
    ours = load_file(tmp_path / "stage/adapter_model.safetensors")
    theirs = _train_with_trl(tiny_base, rows, tmp_path / "trl")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-5)


def _train_with_trl(base: Path, rows: TokenRows, output: Path) -> dict[str, torch.Tensor]:
    training, _ = rows.hold_out(0.05, 5)
    steps = StepBatches(training, batch_size=4, grad_accum=1, seed=5).epoch(0)
    chosen = [rows[int(i)] for step in steps for i in step]
    records = [
        {
            "input_ids": row.input_ids.tolist(),
            "labels": [int(t) if on else -100 for t, on in zip(row.input_ids, row.learned, strict=True)],
        }
        for row in chosen
    ]
    trainer = SFTTrainer(
        model=load_base_model(base, device="cpu", dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(output),
            num_train_epochs=1,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            lr_scheduler_type="cosine",
            warmup_steps=round(0.3 * len(steps)),
            weight_decay=0.1,
            max_grad_norm=0.5,
            seed=5,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(records),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(output))
    return load_file(output / "adapter_model.safetensors")


def test_nothing_is_written_to_the_terminal(tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    tune(tmp_path, tiny_base, max_steps=2)
    assert capfd.readouterr() == ("", "")


# Stopping, resuming, failing


def test_a_stopped_run_resumes_to_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    whole = tune(tmp_path / "whole", tiny_base, lora=DROPOUT)
    stops = StopsAt(4)
    with pytest.raises(TryAgain, match="stopped after step 4 of 10") as stopped:
        tune(tmp_path / "stopped", tiny_base, lora=DROPOUT, reporter=stops)
    assert stopped.value.reason == "Stopped"
    assert not (tmp_path / "stopped/stage").exists()
    stopping._requested.clear()
    resumed = tune(tmp_path / "stopped", tiny_base, lora=DROPOUT)
    assert resumed.started == (10, 4)
    assert stops.losses + resumed.losses == whole.losses
    assert adapter_hash(tmp_path / "stopped") == adapter_hash(tmp_path / "whole")


def test_a_checkpoint_of_version_0_1_is_gone_on_from(tiny_base: Path, tmp_path: Path) -> None:
    """It had the files of today but for two."""
    whole = tune(tmp_path / "whole", tiny_base, lora=DROPOUT)
    with pytest.raises(TryAgain):
        tune(tmp_path / "stopped", tiny_base, lora=DROPOUT, reporter=StopsAt(4))
    stopping._requested.clear()
    for name in ("recipe.pt", "files.json"):
        (tmp_path / "stopped/checkpoints/checkpoint-4" / name).unlink()
    resumed = tune(tmp_path / "stopped", tiny_base, lora=DROPOUT)
    assert resumed.losses == whole.losses[4:]
    assert adapter_hash(tmp_path / "stopped") == adapter_hash(tmp_path / "whole")


def test_stopped_in_an_evaluation_between_steps_it_loses_no_step(tiny_base: Path, tmp_path: Path) -> None:
    class StopsInEvaluation(KeepingReporter):
        def stage(self, name: str) -> None:
            super().stage(name)
            if name == "evaluating":
                stopping._requested.set()

    with pytest.raises(TryAgain):
        tune(tmp_path, tiny_base, reporter=StopsInEvaluation(), eval_steps=5, save_steps=100)
    stopping._requested.clear()
    assert tune(tmp_path, tiny_base, eval_steps=5, save_steps=100).started == (10, 5)


def test_asked_to_stop_before_the_first_step_it_saves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    stopping._requested.set()
    with pytest.raises(TryAgain, match="before the first step"):
        tune(tmp_path, tiny_base)
    assert latest_checkpoint(tmp_path / "checkpoints") is None


def test_after_the_last_step_nothing_is_trained_again(tiny_base: Path, tmp_path: Path) -> None:
    tune(tmp_path, tiny_base)
    want = {path: path.read_bytes() for path in (tmp_path / "stage").iterdir()}
    for path in want:
        path.unlink()
    again = tune(tmp_path, tiny_base)
    assert again.started == (10, 10)
    assert again.losses == []
    assert {path: path.read_bytes() for path in (tmp_path / "stage").iterdir()} == want


def test_a_loss_that_is_not_a_number_ends_the_run_and_nothing_of_it_is_saved(tiny_base: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][:] = math.inf
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.path: gives numbers that are not finite in float32 .*at step 1"):
        tune(tmp_path / "run", broken)
    assert latest_checkpoint(tmp_path / "run/checkpoints") is None
    assert not (tmp_path / "run/stage").exists()


# Two processes

RANK = """
import json, sys
from pathlib import Path
from llm_tuning.core import stopping
from llm_tuning.core.console import quiet_libraries
from llm_tuning.errors import TryAgain
quiet_libraries()
from llm_tuning.trainers import fine_tune, sft
from llm_tuning.trainers.parallel import gather_objects, process_group, world_size
from tests.support.train_run import KeepingReporter, make_run

settings = json.loads(sys.argv[1])
rank = int(sys.argv[2])
outcome = {"tuned": {}, "stopped": {}, "ranks at the probes": []}
write_parity = fine_tune.write_parity

def noted(*given, **named):
    outcome["ranks at the probes"].append(world_size())
    write_parity(*given, **named)

fine_tune.write_parity = noted

class Stops(KeepingReporter):
    def step(self, step, *rest):
        super().step(step, *rest)
        if rank == 1 and step == settings["stop_rank_1_at"]:
            stopping._requested.set()

def run(name, rendezvous):
    reporter = Stops() if name == "stopped" else KeepingReporter()
    run = make_run(Path(settings[name]), Path(settings["base"]), training=settings["training"], lora=settings["lora"],
                   reporter=reporter, rank=rank, world=2)
    with process_group(Path(settings["tuned"]) / rendezvous, rank=rank, world=2, device="cpu"):
        try:
            sft.train(run)
        except TryAgain as error:
            outcome[name]["stopped"] = str(error)
            stopping._requested.clear()
            gather_objects(None)  # the next start finds the checkpoint that rank 0 writes, as after a real end
    outcome[name]["losses"] = reporter.losses

run("tuned", "first")
run("stopped", "second")
first = dict(outcome["stopped"])
settings["stop_rank_1_at"] = 0
run("stopped", "third")
outcome["stopped"] = {"first": first, "second": outcome["stopped"]["losses"]}
print(json.dumps(outcome))
"""


@pytest.fixture(scope="module")
def two_ranks(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two gloo processes report of a run, and of one in which the second alone is asked to stop, then resumed.

    One pair of processes for both: they cost their imports.
    """
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("tuned", "stopped"):
        write_rows(folder / name / "rows", LENGTHS[:17])
    settings = {
        "base": str(tiny_base),
        "tuned": str(folder / "tuned"),
        "stopped": str(folder / "stopped"),
        "training": TRAINING | {"batch_size": 2},
        "lora": NO_DROPOUT,
        "stop_rank_1_at": 4,
    }
    environment = os.environ | {"PYTHONPATH": str(REPO), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, json.dumps(settings), str(rank)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=480) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [errors[-3000:] for _, errors in ended]
    return {"folder": folder, "ranks": [json.loads(output.splitlines()[-1]) for output, _ in ended]}


def test_no_rank_waits_for_the_probes_in_the_process_group(two_ranks: dict[str, Any]) -> None:
    """After a run on 4 bits they take as long as loading the base: longer than a collective may."""
    assert [rank["ranks at the probes"] for rank in two_ranks["ranks"]] == [[1, 1], []]


def test_two_processes_follow_the_curve_of_one_with_the_double_batch(
    two_ranks: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    """17 rows, 4 a step: the second rank's share of each epoch's last step is empty."""
    write_rows(tmp_path / "rows", LENGTHS[:17])
    one = tune(tmp_path, tiny_base)
    assert len(one.losses) == 10
    first, second = (rank["tuned"]["losses"] for rank in two_ranks["ranks"])
    assert first == second, "every rank reports the loss of all"
    assert first == pytest.approx(one.losses, rel=1e-5)
    ours = load_file(two_ranks["folder"] / "tuned/stage/adapter_model.safetensors")
    for name, weight in load_file(tmp_path / "stage/adapter_model.safetensors").items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5)


def test_a_stop_of_one_rank_stops_all_at_the_same_step_and_the_resume_goes_on_there(
    two_ranks: dict[str, Any],
) -> None:
    for rank in two_ranks["ranks"]:
        assert (
            rank["stopped"]["first"]["stopped"]
            == "stopped after step 4 of 10 on request; it is saved, and the same command resumes"
        )
        assert rank["stopped"]["first"]["losses"] + rank["stopped"]["second"] == rank["tuned"]["losses"]
    folder = two_ranks["folder"]
    assert adapter_hash(folder / "stopped") == adapter_hash(folder / "tuned")


def test_a_run_of_one_step_learns_in_it(tiny_base: Path, tmp_path: Path) -> None:
    """Warm-up begins at a rate of zero: rounded up, it would be all of such a run."""
    reporter = tune(tmp_path, tiny_base, max_steps=1)
    assert reporter.steps[1]["train/learning_rate"] == pytest.approx(0.01)


REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_chat_whose_template_rewrites_turns_trains_as_its_sequences(tiny_base: Path, tmp_path: Path) -> None:
    """However they are cut into passes; its probes are what a server is asked for."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "chat_template.jinja").write_text(REWRITES)
    chats = []
    for number in range(20):
        texts = [f"{word} {number}.{turn}" for turn in range(1 + number % 3) for word in ("Question", "Answer")]
        chats.append({"messages": [{"role": ROLES[at % 2], "content": text} for at, text in enumerate(texts)]})
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    losses = []
    for tokens in (64, 4096):
        work = tmp_path / str(tokens)
        form, out = SFT.rows, work / "rows"
        check_dataset(tmp_path / "chats.json", form=form, tokenizer_dir=base, max_length=512, out=out)
        losses.append(tune(work, base, epochs=1, max_tokens_per_pass=tokens).losses)
        rows = TokenRows.open(work / "rows")
        assert [len(row.sequences) for row in rows] == [1 + number % 3 for number in range(20)]
        for probe in json.loads((work / "stage/parity.json").read_text())["probes"]:
            ids, prompt = probe["token_ids"], probe["prompt_tokens"]
            assert probe["learned"][prompt] == 1
            assert sum(probe["learned"][:prompt]) == 0
            assert probe["messages"][-1]["content"].startswith("Answer")
            assert len(probe["tuned_logprobs"]) == len(ids) - 1
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
