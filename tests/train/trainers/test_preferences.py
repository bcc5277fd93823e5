"""The recipes of dpo and of kto as a whole, on a tiny base: what they leave, what does not change them, stopping."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm_tuning.core.stopping import stop_on_signals
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import TryAgain
from llm_tuning.modes import MODES
from llm_tuning.run.context import TrainRun
from tests.support.ppo_rows import examples
from tests.support.preference_rows import pairs, write_labels, write_pairs
from tests.support.recipe_runs import SignallingReporter, in_processes, train, with_reporter
from tests.support.train_run import KeepingReporter, make_run

TRAINING = {"learning_rate": 3e-3, "epochs": 2, "batch_size": 8, "eval_fraction": 0.12, "eval_steps": 4}
LORA = {"rank": 4, "alpha": 8}
ROWS = {"dpo": 25, "kto": 45}
"""22 and 40 of them train: the last step of dpo has 6 rows."""
STEPS = {"dpo": 6, "kto": 10}

Start = Callable[..., TrainRun]


@pytest.fixture(scope="module")
def rows_folder(mode: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(mode) / "rows"
    if mode == "dpo":
        write_pairs(folder, tiny_base, pairs(held_out=False)[: ROWS[mode]])
    else:
        chosen = examples(held_out=False)[: ROWS[mode]]
        write_labels(folder, tiny_base, chosen, [example.good for example in chosen])
    return folder


@pytest.fixture(scope="module", params=["dpo", "kto"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(mode: str, tiny_base: Path, rows_folder: Path, tmp_path: Path) -> Start:
    """`start(name, **training)` makes a run in a folder of that name; the cache is shared."""

    def make(name: str, **training: Any) -> TrainRun:
        options = {key: training.pop(key) for key in ("start_adapter", "cache", "rank", "world") if key in training}
        work = tmp_path / name
        if not work.exists():
            shutil.copytree(rows_folder, work / "rows")
        return make_run(work, tiny_base, mode=mode, training=TRAINING | training, lora=LORA, **options)

    return make


@pytest.fixture(scope="module")
def whole(mode: str, tiny_base: Path, rows_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    """A run of the settings above that nothing disturbed, for the others to be compared with."""
    work = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(rows_folder, work / "rows")
    run = make_run(work, tiny_base, mode=mode, training=TRAINING, lora=LORA)
    train(run)
    return run


def reporter_of(run: TrainRun) -> KeepingReporter:
    assert isinstance(run.reporter, KeepingReporter)
    return run.reporter


def adapter_bytes(run: TrainRun) -> bytes:
    return (run.stage / "adapter_model.safetensors").read_bytes()


def evaluation_of(run: TrainRun) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.work / "evaluation.json").read_text())
    return found


def test_a_run_leaves_a_whole_stage_and_the_scores_of_its_mode(whole: TrainRun, mode: str) -> None:
    assert {"adapter_model.safetensors", "adapter_config.json", "parity.json"} <= {
        path.name for path in whole.stage.iterdir()
    }
    config = json.loads((whole.stage / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    evaluation = evaluation_of(whole)
    named = {score.name for score in MODES[mode].scores}
    of_mode = evaluation["tuned"].keys() - {"loss", "perplexity", "token_accuracy", "tokens", "rows"}
    assert of_mode <= named, "each has a title"
    assert {"reward_margin"} < of_mode
    assert evaluation["tuned"]["reward_margin"] > 0.1
    assert evaluation["base"]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert "warnings" not in evaluation
    accuracy = "reward_accuracy" if mode == "dpo" else "label_accuracy"
    assert evaluation["tuned"][accuracy] == 1.0
    assert reporter_of(whole).started == (STEPS[mode], 0)
    steps = reporter_of(whole).steps
    lines = {line.name for panel in MODES[mode].panels for line in panel.lines if line.name.startswith("train/")}
    assert lines <= set().union(*steps.values()), "every curve has its numbers"
    assert steps[1]["train/loss"] == pytest.approx(np.log(2) if mode == "dpo" else 0.5, abs=1e-6)
    assert steps[STEPS[mode]]["train/loss"] < steps[1]["train/loss"] * 0.9


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 1, "gradient_accumulation_steps": 8},
        {"max_tokens_per_pass": 60},
        {"gradient_checkpointing": True},
    ],
    ids=["1x8", "small passes", "checkpointing"],
)
def test_what_only_changes_memory_does_not_change_the_steps(
    start: Start, whole: TrainRun, tmp_path: Path, change: dict[str, Any]
) -> None:
    got = start("got", **change)
    train(got)
    np.testing.assert_allclose(reporter_of(got).losses, reporter_of(whole).losses, atol=1e-5)


def test_two_processes_of_batch_4_are_one_of_batch_8(start: Start, mode: str, tmp_path: Path) -> None:
    """Without a split the last step of kto has 5 rows, and that of dpo one pair: one rank has none then."""
    one = start("one", eval_fraction=0.0, epochs=1)
    train(one)
    runs = [
        start("two", eval_fraction=0.0, epochs=1, batch_size=4, rank=rank, world=2, cache=tmp_path / "two")
        for rank in (0, 1)
    ]
    assert in_processes(runs) == [0, 0]
    curves = [json.loads((runs[0].work / f"losses-{rank}.json").read_text()) for rank in (0, 1)]
    assert curves[0] == curves[1], "both ranks report the same"
    np.testing.assert_allclose(curves[0], reporter_of(one).losses, atol=1e-5)
    tensors = [load_file(run.stage / "adapter_model.safetensors") for run in (one, runs[0])]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("at", [3, 4, "scoring the start policy", "evaluating"])
def test_a_stopped_run_goes_on_to_the_same_bits(start: Start, whole: TrainRun, at: int | str) -> None:
    stopped = with_reporter(start("stopped"), SignallingReporter(at))
    with stop_on_signals(), pytest.raises(TryAgain, match="on request"):
        train(stopped)
    assert not stopped.stage.exists(), "nothing half-trained is left to publish"
    resumed = start("stopped")
    train(resumed)
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert reporter_of(stopped).steps | reporter_of(resumed).steps == reporter_of(whole).steps
    assert not set(reporter_of(stopped).steps) & set(reporter_of(resumed).steps), "no step was taken twice"


def test_the_second_run_makes_no_pass_of_the_start_policy(
    start: Start, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = start("first"), start("second"), start("other", learning_rate=1e-3)
    train(first)
    assert reporter_of(first).evaluations[0]["train/reference_forwards"] > 0

    def no_pass(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pass of the start policy")

    monkeypatch.setattr("llm_tuning.trainers.reference_cache.start_policy", no_pass)
    train(second)
    assert adapter_bytes(second) == adapter_bytes(first)
    train(other)
    assert {reporter_of(run).evaluations[0]["train/reference_forwards"] for run in (second, other)} == {0}
    if mode == "dpo":
        train(start("third", batch_size=4))
    else:
        with pytest.raises(AssertionError, match="a pass"):
            train(start("third", batch_size=4))  # the mismatched answers are those of the rows of a step


def test_a_start_adapter_is_what_it_is_measured_against(start: Start, tiny_base: Path, mode: str) -> None:
    """Not the base, from which this one is far away."""
    first = start("first", learning_rate=2e-2)
    train(first)
    run = start("run", start_adapter=first.stage, epochs=1)
    train(run)
    assert reporter_of(run).steps[1]["train/loss"] == pytest.approx(np.log(2) if mode == "dpo" else 0.5, abs=1e-5)
    evaluation = evaluation_of(run)
    assert evaluation["start"]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert abs(evaluation["base"]["reward_margin"]) > 0.5
    rows = TokenRows.open(run.rows)
    _, held_out = rows.hold_out(0.12, 42)
    tuned, begun = (logliks(tiny_base, adapter, rows, held_out) for adapter in (run.stage, first.stage))
    if mode == "dpo":
        change = (tuned - begun).reshape(-1, 2).mean(0)
        assert evaluation["tuned"]["chosen_change"] == pytest.approx(change[0], abs=1e-3)
        assert evaluation["tuned"]["rejected_change"] == pytest.approx(change[1], abs=1e-3)
    else:
        good = rows.numbers[held_out] == 1.0
        assert evaluation["tuned"]["desirable_reward"] == pytest.approx(0.1 * (tuned - begun)[good].mean(), abs=1e-4)


def logliks(base: Path, adapter: Path, rows: TokenRows, indices: np.ndarray) -> np.ndarray:
    """Log-likelihoods of the answers of all sequences of the rows, one by one by the model itself."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    found = []
    with torch.no_grad():
        for sequence in (sequence for index in indices for sequence in rows[int(index)].sequences):
            ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            found.append(float(logprobs[torch.from_numpy(sequence.learned[1:].copy())].sum()))
    return np.array(found)
