"""A base in 4 bits, on bitsandbytes' CPU backend: what the trainer computes with it, from first step to stage."""

from __future__ import annotations

import gc
import json
import logging
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from llm_tuning.core import stopping
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers import ppo, sft, unquantised
from llm_tuning.trainers.micro_batches import pad
from llm_tuning.trainers.model import attach_lora, load_base_model, start_policy
from llm_tuning.trainers.policy import Policy
from tests.support.ppo_rows import examples, write_ppo_rows
from tests.support.rows import write_rows
from tests.support.train_run import StopsAt, make_run

LENGTHS = [5, 9, 14, 20, 33, 47, 60, 8, 11, 26, 39, 52, 7, 18, 29, 41, 12, 22, 31, 64]
TRAINING: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.01, "epochs": 1, "save_steps": 3, "seed": 5}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.3}


@pytest.fixture(autouse=True)
def _nobody_asked_to_stop() -> Any:
    yield
    stopping._requested.clear()


def four_bits(base: Path, dtype: torch.dtype) -> Any:
    return load_base_model(base, device="cpu", dtype=dtype, quantization="4bit")


def whole_weights(base: Path, *, dtype: torch.dtype) -> Any:
    """The base in ordinary layers, whose weights are those that the 4 bits stand for."""
    plain = load_base_model(base, device="cpu", dtype=dtype)
    for name, layer in four_bits(base, dtype).named_modules():
        if isinstance(layer, Linear4bit):
            plain.get_submodule(name).weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    return plain


def pass_of(model: Any, dtype: torch.dtype, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of an evaluation and, after it, the adapter's gradients of a training pass with dropout."""
    model = attach_lora(model, rank=4, alpha=8, dropout=0.3, target_modules="all-linear", seed=0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    policy = Policy(model, device="cpu", dtype=dtype)
    batch = pad([rows[0], rows[1]])
    scores_N, _ = policy.eval().score(batch)
    torch.manual_seed(1)
    with disable_input_dtype_casting(model):
        policy.train().logprobs(batch).mean().backward()
    return scores_N, torch.cat([parameter.grad.flatten() for parameter in policy.adapter()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_is_that_of_the_weights_which_the_bits_stand_for(
    tiny_base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    rows = write_rows(tmp_path / "rows", [20, 33])
    want_scores, want_gradient = pass_of(whole_weights(tiny_base, dtype=dtype), dtype, rows)
    scores, gradient = pass_of(four_bits(tiny_base, dtype), dtype, rows)
    torch.testing.assert_close(scores, want_scores, rtol=1e-5, atol=1e-5)
    assert (gradient - want_gradient).norm() < 1e-5 * want_gradient.norm()


def test_the_decoder_is_in_4_bits_and_computes_in_the_dtype_of_the_run(tiny_base: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = four_bits(tiny_base, dtype)
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        assert {layer.compute_dtype for layer in layers if isinstance(layer, Linear4bit)} == {dtype}
        assert [type(layer) for layer in layers].count(nn.Linear) == 1, "the output layer stays whole"
        assert {model.lm_head.weight.dtype, model.model.norm.weight.dtype} == {dtype}
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_without_bitsandbytes_it_is_one_sentence(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"model\.quantization: 4bit needs bitsandbytes, .*llm-tuning\[qlora\]"):
        four_bits(tiny_base, torch.float32)


# Whole runs


def run_of(
    work: Path, base: Path, *, reporter: Any = None, start: Path | None = None, lora: Any = LORA, **training: Any
) -> TrainRun:
    if not (work / "rows").exists():
        write_rows(work / "rows", LENGTHS)
    return make_run(
        work,
        base,
        training=TRAINING | training,
        lora=lora,
        quantization="4bit",
        reporter=reporter,
        start_adapter=start,
    )


def trained(work: Path, base: Path, **options: Any) -> TrainRun:
    run = run_of(work, base, **options)
    sft.train(run)
    return run


def weights_of(run: TrainRun) -> bytes:
    return (run.stage / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_says_once_that_a_cpu_is_slow(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    run = trained(tmp_path / "run", tiny_base, precision=precision, epochs=4)
    assert run.reporter.losses[-1] < run.reporter.losses[0] - 0.4
    evaluation = json.loads((run.work / "evaluation.json").read_text())
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"] - 0.2
    assert {weight.dtype for weight in load_file(run.stage / "adapter_model.safetensors").values()} == {torch.float32}
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "model.quantization is 4bit on a CPU: slower than without it, and meant for trying a run out"
    ]


def test_a_run_says_nothing_else(tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    trained(tmp_path, tiny_base, max_steps=2)
    assert capfd.readouterr() == ("", "")


def test_checkpointing_does_not_change_the_curve(tiny_base: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", tiny_base)
    checkpointed = trained(tmp_path / "checkpointed", tiny_base, gradient_checkpointing=True)
    assert checkpointed.reporter.losses == pytest.approx(plain.reporter.losses, rel=1e-5)


def test_a_stopped_run_resumes_to_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", tiny_base)
    with pytest.raises(TryAgain, match="stopped after step 4 of 5"):
        trained(tmp_path / "stopped", tiny_base, reporter=StopsAt(4))
    stopping._requested.clear()
    resumed = trained(tmp_path / "stopped", tiny_base)
    assert resumed.reporter.started == (5, 4)
    assert weights_of(resumed) == weights_of(whole)
    checkpoint = tmp_path / "stopped/checkpoints/checkpoint-5"
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    adapter = len(weights_of(whole))
    assert size < 5 * adapter, "it holds the adapter and its optimizer, not the base"


def test_ppo_starts_at_an_adapter_and_resumes_to_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    first = trained(tmp_path / "first", tiny_base, epochs=3, lora={"rank": 4, "alpha": 8})
    chosen = examples(held_out=False)[:24]

    def ppo_run(name: str, reporter: Any = None) -> TrainRun:
        if not (tmp_path / name).exists():
            write_ppo_rows(tmp_path / name / "rows", tiny_base, chosen, [1.0 if e.good else -1.0 for e in chosen])
        return make_run(
            tmp_path / name,
            tiny_base,
            mode="ppo",
            training={"batch_size": 8, "learning_rate": 3e-3, "epochs": 2, "eval_fraction": 0.12, "save_steps": 1},
            lora={"rank": 4, "alpha": 8},
            ppo={"target_kl": 5.0},
            quantization="4bit",
            start_adapter=first.stage,
            reporter=reporter,
        )

    whole = ppo_run("whole")
    ppo.train(whole)
    at_first = whole.reporter.steps[1]
    assert at_first["train/ratio_mean"] == pytest.approx(1.0, abs=1e-5), "the policy begins as its start adapter"
    evaluation = json.loads((whole.work / "evaluation.json").read_text())
    assert evaluation["start"]["loss"] != evaluation["base"]["loss"]
    stopped = ppo_run("stopped", StopsAt(3))
    with pytest.raises(TryAgain, match="stopped after step 3"):
        ppo.train(stopped)
    stopping._requested.clear()
    resumed = ppo_run("stopped")
    ppo.train(resumed)
    assert weights_of(resumed) == weights_of(whole)


def test_the_start_is_the_adapter_given_and_the_base_beneath_it_is_in_4_bits(tiny_base: Path, tmp_path: Path) -> None:
    first = trained(tmp_path / "first", tiny_base, epochs=2, lora={"rank": 4, "alpha": 8})
    model = attach_lora(
        four_bits(tiny_base, torch.float32),
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules="all-linear",
        start_adapter=first.stage,
        seed=1,
    )
    policy = Policy(model.eval(), device="cpu", dtype=torch.float32)
    batch = pad([write_rows(tmp_path / "rows", [20])[0]])
    now, _ = policy.score(batch)
    with start_policy(model):
        start, _ = policy.score(batch)
    assert torch.equal(now, start)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert layers
    assert all(isinstance(layer.base_layer, Linear4bit) for layer in layers)


# The probes of the proof


def parity_of(run: TrainRun) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.stage / "parity.json").read_text())
    return found


@torch.no_grad()
def scored(model: Any, token_ids: list[int]) -> list[float]:
    ids_T = torch.tensor(token_ids)
    logits_TV = model.eval()(input_ids=ids_T[None]).logits[0, :-1]
    return logits_TV.log_softmax(-1).gather(1, ids_T[1:, None])[:, 0].tolist()


@pytest.mark.parametrize("served", ["as it is", "no room", "cannot be loaded"])
def test_the_probes_are_scored_on_the_base_that_is_served_where_it_can_be_loaded(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    served: str,
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 GiB.\nand more of it")

    if served == "no room":
        monkeypatch.setattr(unquantised, "free_bytes", lambda _device: 2**29)
    if served == "cannot be loaded":
        monkeypatch.setattr(unquantised, "load_base_model", full)
    with monkeypatch.context() as patch:
        patch.setattr("peft.peft_model.infer_device", lambda: pytest.fail("a run on the CPU may not look for GPUs"))
        run = trained(tmp_path / "run", tiny_base, max_steps=3, lora={"rank": 4, "alpha": 8})
    parity = parity_of(run)
    as_served = served == "as it is"
    assert (parity["quantization"], parity["scored_on"]) == ("4bit", "none" if as_served else "4bit")
    load = AutoModelForCausalLM.from_pretrained if as_served else whole_weights
    for probe in parity["probes"]:
        base = load(tiny_base, dtype=torch.float32)
        assert probe["base_logprobs"] == pytest.approx(scored(base, probe["token_ids"]), abs=1e-5)
        tuned = PeftModel.from_pretrained(base, run.stage)
        assert probe["tuned_logprobs"] == pytest.approx(scored(tuned, probe["token_ids"]), abs=1e-5)
    why = {
        "no room": "scored on 4 bits: the base without quantisation takes 1.0 GiB, 0.5 are free",
        "cannot be loaded": "loaded again: CUDA out of memory. Tried to allocate 13 GiB.",
    }
    said = [record.getMessage() for record in caplog.records if "probes" in record.getMessage()]
    assert len(said) == (not as_served)
    assert all(line.endswith(why[served]) for line in said)


def test_probes_of_a_run_in_full_precision_say_so(tiny_base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", LENGTHS)
    run = make_run(tmp_path, tiny_base, training=TRAINING | {"max_steps": 1}, lora=LORA)
    sft.train(run)
    assert (parity_of(run)["quantization"], parity_of(run)["scored_on"]) == ("none", "none")


def test_what_lies_in_cycles_counts_as_free_when_the_base_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an optimizer's states would, where a library's objects know each other: Python frees them at some time."""
    held = nn.Linear(1, 1)
    held.knows_itself = [held]
    alive = weakref.ref(held)
    seen: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(alive() is not None))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**34))
    gc.disable()
    try:
        del held
        assert unquantised.free_bytes("cuda:0") == 2**30
    finally:
        gc.enable()
    assert seen == [False]
