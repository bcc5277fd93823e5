"""4 bits (NF4) end to end: what is learned, by which numbers, and in how much memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file

from llm_tuning.trainers import ppo, sft
from llm_tuning.trainers.model import load_base_model
from tests.gpu.findings import Finding, Place, below, not_here, same
from tests.gpu.models import most_apart
from tests.support.ppo_rows import examples, write_ppo_rows
from tests.support.tiny_base import make_base
from tests.support.train_run import make_run

STEPS = 6
LORA = {"rank": 8, "alpha": 16, "dropout": 0.0}


def four_bits(place: Place) -> Iterator[Finding]:
    """Train a few steps with and without checkpointing, against bitsandbytes' CPU backend."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield not_here("4 bits", "bitsandbytes is not installed")
        return
    layers = place.choose(cuda=4, cpu=2)
    base = make_base(place.scratch / "4bit-base", hidden_size=256, layers=layers)
    chosen = examples(held_out=False)[:60]
    rewards = [1.0 if example.good else 0.0 for example in chosen]

    def run(name: str, recipe: Any, **options: Any) -> Any:
        work = place.scratch / name
        write_ppo_rows(work / "rows", base, chosen, rewards)
        training = {"batch_size": 8, "learning_rate": 5e-3, "max_steps": STEPS, "precision": "bf16"}
        training |= options.pop("training", {})
        made = make_run(work, base, training=training, lora=LORA, quantization="4bit", **options)
        recipe.train(made)
        return made

    model = load_base_model(base, device=place.device, dtype=torch.bfloat16, quantization="4bit")
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    yield same("layers are quantised", kinds, {"Linear4bit"})
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.model.layers.parameters())
    count = layers * (4 * 256**2 + 3 * 256 * 512)
    yield below("bytes of a number in the layers", size / count, 0.6)

    on_cpu = run("4bit-cpu", sft, device="cpu").reporter.losses
    yield below("loss falls: last of first", on_cpu[-1] / on_cpu[0], 0.95)
    plain = run("4bit", sft, device=place.device)
    yield below("losses against the CPU: off", most_apart(plain.reporter.losses, on_cpu), 2e-2)
    checkpointed = run("4bit-checkpointed", sft, device=place.device, training={"gradient_checkpointing": True})
    apart = most_apart(checkpointed.reporter.losses, plain.reporter.losses)
    yield below("checkpointed against not: off", apart, 1e-3)
    weights = load_file(plain.stage / "adapter_model.safetensors")
    yield same("adapter is saved in", {str(weight.dtype) for weight in weights.values()}, {"torch.float32"})
    scored = run("4bit-ppo", ppo, device=place.device, mode="ppo", training={"max_steps": 1, "learning_rate": 1e-5})
    yield below("ppo: mean ratio of the first step off", abs(scored.reporter.steps[1]["train/ratio_mean"] - 1), 2e-3)
