"""The ppo recipe as a whole, on a tiny base: what it leaves, what does not change it, stopping and going on."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
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
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.run.checkpoints import save_checkpoint
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers import fine_tune, kl_target, loop, ppo
from llm_tuning.trainers.model import attach_lora, checkpoint_gradients, load_base_model, silence_dropout
from llm_tuning.trainers.output_tokens import TokenLayout
from tests.support.plain_ppo import plain_ppo
from tests.support.ppo_rows import examples, write_ppo_rows
from tests.support.recipe_runs import SignallingReporter, in_processes, with_reporter
from tests.support.train_run import KeepingReporter, make_run

TRAINING = {"learning_rate": 3e-3, "epochs": 2, "batch_size": 8, "eval_fraction": 0.12, "eval_steps": 4}
LORA = {"rank": 4, "alpha": 8}
ROWS = 45


@pytest.fixture(scope="module")
def rows_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 rows with rewards around +1 and -1; 40 of them train, so that the last step is as full as the others."""
    folder = tmp_path_factory.mktemp("rows") / "rows"
    chosen = examples(held_out=False)[:ROWS]
    random = np.random.default_rng(0)
    write_ppo_rows(folder, tiny_base, chosen, [(1 if e.good else -1) + 0.3 * random.normal() for e in chosen])
    return folder


Start = Callable[..., TrainRun]


@pytest.fixture
def start(tiny_base: Path, rows_folder: Path, tmp_path: Path) -> Start:
    """`start(name, **training)` makes a run in a folder of that name; the cache is shared."""

    def make(
        name: str,
        *,
        ppo: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        rows: Path = rows_folder,
        **training: Any,
    ) -> TrainRun:
        options = {key: training.pop(key) for key in ("start_adapter", "cache", "rank", "world") if key in training}
        work = tmp_path / name
        if not work.exists():
            shutil.copytree(rows, work / "rows")
        return make_run(
            work,
            tiny_base,
            mode="ppo",
            training=TRAINING | training,
            lora=lora or LORA,
            ppo=ppo or {"target_kl": 5.0},
            **options,
        )

    return make


@pytest.fixture(scope="module")
def whole(tiny_base: Path, rows_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    """A run of the settings above that nothing disturbed, for the others to be compared with."""
    work = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(rows_folder, work / "rows")
    run = make_run(work, tiny_base, mode="ppo", training=TRAINING, lora=LORA, ppo={"target_kl": 5.0})
    ppo.train(run)
    return run


def finish(run: TrainRun) -> bytes:
    """Train to the end; returns the adapter's bytes."""
    ppo.train(run)
    return adapter_bytes(run)


def adapter_bytes(run: TrainRun) -> bytes:
    return (run.stage / "adapter_model.safetensors").read_bytes()


def reporter_of(run: TrainRun) -> KeepingReporter:
    assert isinstance(run.reporter, KeepingReporter)
    return run.reporter


def test_a_run_leaves_a_whole_stage_an_evaluation_and_a_summary(whole: TrainRun):
    run = whole
    left = {path.name for path in run.stage.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "parity.json",
    } <= left
    names = set(load_file(run.stage / "adapter_model.safetensors"))
    assert names
    assert all("lora_" in name for name in names), "the value head is not published"
    config = json.loads((run.stage / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    evaluation = json.loads((run.work / "evaluation.json").read_text())
    assert evaluation["source"] == "held_out"
    assert evaluation["tuned"]["reward_weighted_loglik"] > evaluation["base"]["reward_weighted_loglik"]
    summary = json.loads((run.work / "training.json").read_text())
    rows = TokenRows.open(run.rows)
    training_rows, held_out = rows.hold_out(0.12, 42)
    assert rows.prompts is not None
    assert not set(rows.prompts[training_rows]) & set(rows.prompts[held_out])
    assert (evaluation["held_out_rows"], evaluation["held_out_prompts"]) == (5, 3)
    tokens = int(rows.lengths[training_rows].sum())
    assert reporter_of(run).tokens == 2 * tokens
    assert summary == {"stopped_early": None, "kl": reporter_of(run).evaluations[10]["eval/kl"], "kl_rows": "held_out"}
    assert reporter_of(run).started == (10, 0)
    assert {4, 8, 10} == {step for step, values in reporter_of(run).evaluations.items() if "eval/kl" in values}


def test_the_losses_are_those_of_the_plain_form(start: Start, tiny_base: Path):
    run = start("run", epochs=3, learning_rate=0.02, warmup_ratio=0.1)
    ppo.train(run)
    rows = TokenRows.open(run.rows)
    training_rows, _ = rows.hold_out(0.12, 42)
    model = attach_lora(
        load_base_model(tiny_base, device="cpu", dtype=torch.float32),
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules="all-linear",
        seed=42,
    ).eval()
    plain = plain_ppo(model, rows, training_rows, run.config, rows_per_pass=8)
    assert len(plain) == 15
    np.testing.assert_allclose(reporter_of(run).losses, plain, rtol=1e-4, atol=1e-5)
    steps = reporter_of(run).steps.values()
    assert max(step["train/clip_fraction"] for step in steps) > 0.05, "the clip was in play"
    assert max(step["train/kl_penalty"] for step in steps) > 0.01, "and the penalty"


def test_what_is_no_step_is_another_stage_and_so_no_part_of_a_step_s_time(whole: TrainRun):
    stages = reporter_of(whole).stages
    assert stages.count("scoring the epoch's start") == 1, "of two epochs; the first begins at the start policy"
    assert stages.count("measuring the KL") == 3


def test_batch_8_x_1_and_1_x_8_give_the_same_adapter(start: Start, whole: TrainRun):
    assert whole.config.training.batch_size == 8
    other = start("other", batch_size=1, gradient_accumulation_steps=8)
    assert finish(other) == adapter_bytes(whole)
    assert reporter_of(other).steps == reporter_of(whole).steps


@pytest.mark.parametrize("max_tokens", [60, 100_000])
def test_how_rows_are_cut_into_passes_does_not_change_the_steps(start: Start, whole: TrainRun, max_tokens: int):
    got = start("got", max_tokens_per_pass=max_tokens)
    ppo.train(got)
    np.testing.assert_allclose(reporter_of(got).losses, reporter_of(whole).losses, atol=1e-5)


def test_gradient_checkpointing_does_not_change_the_steps(start: Start, whole: TrainRun):
    got = start("got", gradient_checkpointing=True)
    ppo.train(got)
    np.testing.assert_allclose(reporter_of(got).losses, reporter_of(whole).losses, atol=1e-5)


def test_no_dropout_is_left_also_where_gradients_are_checkpointed():
    from transformers import GPT2Config, OPTConfig

    for config in (
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5),
        OPTConfig(
            vocab_size=50,
            hidden_size=32,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            dropout=0.5,
            attention_dropout=0.5,
            word_embed_proj_dim=32,
            pad_token_id=0,
        ),
    ):
        model = AutoModelForCausalLM.from_config(config)
        ids = torch.arange(1, 21)[None]
        checkpoint_gradients(model.train())
        silence_dropout(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert model.training, "transformers checkpoints in training mode only"


def test_two_processes_of_batch_4_are_one_of_batch_8(start: Start, tmp_path: Path):
    """45 rows and no split: the last step has 5, so one rank has 3 and the other 2 of them."""
    one = start("one", eval_fraction=0.0, batch_size=8)
    ppo.train(one)
    runs = [
        start("two", eval_fraction=0.0, batch_size=4, rank=rank, world=2, cache=tmp_path / "two") for rank in (0, 1)
    ]
    assert in_processes(runs) == [0, 0]
    curves = [json.loads((runs[0].work / f"losses-{rank}.json").read_text()) for rank in (0, 1)]
    assert curves[0] == curves[1], "both ranks report the same"
    assert len(curves[0]) == 12
    np.testing.assert_allclose(curves[0], reporter_of(one).losses, atol=1e-5)
    tensors = [load_file(run.stage / "adapter_model.safetensors") for run in (one, runs[0])]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name], rtol=1e-3, atol=1e-4)
    evaluations = [json.loads((run.work / "evaluation.json").read_text()) for run in (one, runs[0])]
    assert evaluations[0]["source"] == evaluations[1]["source"] == "none"


def test_a_rank_without_rows_in_the_last_step_takes_part(start: Start, tmp_path: Path):
    """45 rows, 4 a step: the twelfth step has one row, which rank 0 takes."""
    one = start("one", eval_fraction=0.0, batch_size=4, epochs=1)
    ppo.train(one)
    runs = [
        start("two", eval_fraction=0.0, batch_size=2, epochs=1, rank=rank, world=2, cache=tmp_path / "two")
        for rank in (0, 1)
    ]
    assert in_processes(runs) == [0, 0]
    curve = json.loads((runs[0].work / "losses-1.json").read_text())
    np.testing.assert_allclose(curve, reporter_of(one).losses, atol=1e-5)


def test_a_signal_to_one_of_two_processes_stops_both_and_the_next_start_goes_on(start: Start):
    def runs() -> list[TrainRun]:
        return [start("two", batch_size=4, rank=rank, world=2) for rank in (0, 1)]

    whole = [start("whole", batch_size=4, rank=rank, world=2) for rank in (0, 1)]
    assert in_processes(whole) == [0, 0]
    assert in_processes(runs(), signal_last_rank_at=3) == [75, 75]
    assert not (runs()[0].stage / "adapter_model.safetensors").exists()
    assert in_processes(runs()) == [0, 0]
    assert adapter_bytes(runs()[0]) == adapter_bytes(whole[0])


# Steps 1 to 10, five an epoch, measured after 4, 8 and 10.
@pytest.mark.parametrize("at", [4, 5, 7, 10, "scoring the start policy", "evaluating"])
def test_a_stopped_run_goes_on_to_the_same_bits(start: Start, whole: TrainRun, at: int | str):
    stopped = with_reporter(start("stopped"), SignallingReporter(at))
    with stop_on_signals(), pytest.raises(TryAgain, match="on request"):
        ppo.train(stopped)
    assert not stopped.stage.exists(), "nothing half-trained is left to publish"

    resumed = start("stopped")
    assert finish(resumed) == adapter_bytes(whole)
    steps = reporter_of(stopped).steps | reporter_of(resumed).steps
    assert steps == reporter_of(whole).steps
    assert not set(reporter_of(stopped).steps) & set(reporter_of(resumed).steps), "no step was taken twice"
    if isinstance(at, int):
        assert reporter_of(resumed).started == (10, at)


@pytest.mark.parametrize(
    ("where", "call"),
    [((ppo, "score_rows"), 1), ((ppo, "mean_kl"), 2), ((kl_target.KlTarget, "hold"), 3)],
    ids=["between two epochs", "while measuring the KL", "before the last measurement"],
)
def test_a_stop_between_two_steps_loses_none(
    start: Start, whole: TrainRun, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], call: int
):
    stopped = start("stopped")
    original, calls = getattr(*where), 0

    def signalled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, stop_on_signals():
        patch.setattr(*where, signalled)
        with pytest.raises(TryAgain):
            ppo.train(stopped)
    assert calls == call
    resumed = start("stopped")
    assert finish(resumed) == adapter_bytes(whole)
    assert not set(reporter_of(stopped).steps) & set(reporter_of(resumed).steps)


def test_a_kill_after_the_last_step_repeats_no_step(start: Start, whole: TrainRun, monkeypatch: pytest.MonkeyPatch):
    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    run = start("run")
    with monkeypatch.context() as patch:
        patch.setattr(fine_tune, "evaluate_run", killed)
        with pytest.raises(Killed):
            ppo.train(run)
    resumed = start("run")
    assert finish(resumed) == adapter_bytes(whole)
    assert reporter_of(resumed).steps == {}


def test_other_devices_than_before_are_refused_on_a_resume(start: Start):
    stopped = with_reporter(start("run"), SignallingReporter(2))
    with stop_on_signals(), pytest.raises(TryAgain):
        ppo.train(stopped)
    with pytest.raises(InputError, match="give 4 rows a step, but this run was started with 8"):
        ppo.train(start("run", batch_size=4))


def test_a_checkpoint_of_version_0_1_is_refused_in_a_sentence(start: Start):
    run = start("run")
    save_checkpoint(run.checkpoints, 3, lambda folder: torch.save({"state": {}}, folder / "ppo_state.pt"))
    with pytest.raises(InputError, match="model_id: has checkpoints of an earlier version of PPO"):
        ppo.train(run)


def test_the_second_run_makes_no_pass_of_the_start_policy(start: Start, monkeypatch: pytest.MonkeyPatch):
    first, second, other = start("first"), start("second"), start("other", learning_rate=1e-3, epochs=1)
    want = finish(first)
    assert reporter_of(first).evaluations[0]["train/reference_forwards"] > 0

    def no_pass(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pass of the start policy")

    monkeypatch.setattr("llm_tuning.trainers.reference_cache.start_policy", no_pass)
    assert finish(second) == want
    assert reporter_of(second).evaluations[0] == {"train/reference_forwards": 0}
    ppo.train(other)
    assert reporter_of(other).evaluations[0] == {"train/reference_forwards": 0}


def test_a_short_run_scores_only_the_rows_that_it_visits(start: Start, tmp_path: Path):
    run = start("run", max_steps=1, max_tokens_per_pass=8, cache=tmp_path / "a")
    ppo.train(run)
    held_out_rows = 5
    assert reporter_of(run).evaluations[0]["train/reference_forwards"] == 8 + held_out_rows
    assert reporter_of(run).steps[1]["train/learning_rate"] > 0, "a run of one step learns in it"


def test_a_start_adapter_is_where_training_begins_and_what_it_is_measured_against(start: Start, tiny_base: Path):
    first = start("first")
    ppo.train(first)
    run = start("run", start_adapter=first.stage, epochs=1, eval_steps=1)
    ppo.train(run)
    step = reporter_of(run).steps[1]
    assert step["train/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert step["train/kl_penalty"] == pytest.approx(0, abs=1e-6)
    assert reporter_of(run).evaluations[0]["train/reference_forwards"] > 0, "another start policy, another reference"
    evaluation = json.loads((run.work / "evaluation.json").read_text())
    assert evaluation["start"]["loss"] != pytest.approx(evaluation["base"]["loss"], abs=1e-3)
    kl_from_start = _exact_kl(tiny_base, run, first.stage)
    assert reporter_of(run).evaluations[5]["eval/kl"] == pytest.approx(kl_from_start, rel=1e-4)
    assert abs(_exact_kl(tiny_base, run, None) - kl_from_start) > 1e-3, "measured against the adapter, not the base"


def test_above_the_target_the_run_stops_and_goes_back_to_within(start: Start, tiny_base: Path):
    run = start("run", learning_rate=0.02, epochs=4, ppo={"target_kl": 0.01})
    want = finish(run)
    summary = json.loads((run.work / "training.json").read_text())
    assert summary["stopped_early"] == "TargetKl"
    assert len(reporter_of(run).steps) < 20
    assert 0 < summary["kl"] <= 0.01
    assert summary["kl_rows"] == "held_out"
    assert _exact_kl(tiny_base, run, None) == pytest.approx(summary["kl"], rel=1e-4)

    again = start("run", learning_rate=0.02, epochs=4, ppo={"target_kl": 0.01})
    assert finish(again) == want, "a kill after the stop ends in the same weights"
    assert reporter_of(again).steps == {}


def test_without_held_out_rows_the_kl_is_measured_on_training_rows_and_marked_so(start: Start):
    run = start("run", eval_fraction=0.0, epochs=1)
    ppo.train(run)
    assert json.loads((run.work / "training.json").read_text())["kl_rows"] == "training"
    assert json.loads((run.work / "evaluation.json").read_text())["source"] == "none"
    assert json.loads((run.stage / "parity.json").read_text())["source"] == "training"


def _exact_kl(base: Path, run: TrainRun, start_adapter: Path | None) -> float:
    """Mean KL on the run's held-out rows by torch.distributions, between the saved adapter and where it began."""
    rows = TokenRows.open(run.rows)
    _, held_out = rows.hold_out(run.config.training.eval_fraction, run.config.training.seed)

    def model_of(adapter: Path | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return model if adapter is None else PeftModel.from_pretrained(model, adapter)

    tuned, begun = model_of(run.stage), model_of(start_adapter)
    kls = []
    with torch.no_grad():
        for i in held_out:
            ids = torch.from_numpy(rows[int(i)].input_ids.astype(np.int64))[None]
            p, q = (torch.distributions.Categorical(logits=m(input_ids=ids).logits[0, :-1]) for m in (tuned, begun))
            kls.append(torch.distributions.kl_divergence(p, q)[torch.from_numpy(rows[int(i)].learned[1:].copy())])
    return float(torch.cat(kls).mean())


def test_bf16_trains_close_to_fp32(start: Start, whole: TrainRun):
    got = start("got", precision="bf16")
    ppo.train(got)
    np.testing.assert_allclose(reporter_of(got).losses, reporter_of(whole).losses, atol=0.03)
    tensors = load_file(got.stage / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert json.loads((got.stage / "parity.json").read_text())["dtype"] == "bfloat16"


def test_a_constant_reward_among_the_training_rows_is_refused(start: Start, tiny_base: Path, tmp_path: Path):
    write_ppo_rows(tmp_path / "constant", tiny_base, examples(held_out=False)[:10], [0.5] * 10)
    with pytest.raises(InputError, match=r"reward: is 0\.5 in every training row"):
        ppo.train(start("run", rows=tmp_path / "constant"))


def test_a_base_that_gives_no_numbers_is_refused(start: Start, tiny_base: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    damaged = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    damaged.model.norm.weight.data[0] = math.nan
    damaged.save_pretrained(broken)
    run = start("run")
    model = run.config.model.model_copy(update={"path": str(broken)})
    config = run.config.model_copy(update={"model": model})
    spec = run.spec.model_copy(update={"config": config, "base_weight_hash": "broken"})

    with pytest.raises(InputError, match=r"model\.path: gives log-probabilities that are not finite in float32"):
        ppo.train(replace(run, spec=spec))


@pytest.mark.parametrize(
    ("step", "blamed"), [(3, r"learningRate: is 0\.003, with which"), (1, r"training\.precision: is fp32, in which")]
)
def test_a_run_that_diverges_says_so_and_what_is_to_blame(
    start: Start, monkeypatch: pytest.MonkeyPatch, step: int, blamed: str
):
    """At which rate it does depends on how a processor rounds, so a step's gradients are made infinite.

    Before the first update no learning rate has had a part in it.
    """
    real, calls = loop.sum_gradients, 0

    def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
        nonlocal calls
        real(parameters)
        calls += 1
        if calls == step:
            parameters[0].grad = torch.full_like(parameters[0], math.inf)

    monkeypatch.setattr(loop, "sum_gradients", sum_gradients)
    with pytest.raises(InputError, match=rf"{blamed} the gradient norm became .* at step {step}"):
        ppo.train(start("run"))
    assert calls == step


def test_every_token_belongs_to_its_row(tiny_base: Path, rows_folder: Path):
    rows = TokenRows.open(rows_folder)
    layout = TokenLayout(rows, np.array([7, 3, 11]))
    assert layout.size == rows.learned_counts[[7, 3, 11]].sum()
    counts = rows.learned_counts.astype(int)
    want = [*range(counts[7], counts[7] + counts[3]), *range(counts[7])]
    assert layout.positions(np.array([3, 7])).tolist() == want
