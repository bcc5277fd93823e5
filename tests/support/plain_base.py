"""A base and its adapter as files written by hand: for tests that look at models and load none, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from llm_tuning.models.base import inspect_base, weight_hash

STAND_IN = Path(__file__).resolve().parent / "images" / "stand_in"
MODULES = [("self_attn", name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
MODULES += [("mlp", name) for name in ("gate_proj", "up_proj", "down_proj")]


def make_plain_base(path: Path) -> Path:
    """Write what tiny_base.make_base writes: tokenizer, configuration and random weights of a two-layer Llama."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STAND_IN))
        run_path(str(STAND_IN / "fill_volume.py"))["make_base"](path)
    return path


def make_plain_adapter(folder: Path, base: Path, *, rank: int, chat_template: str) -> Path:
    """Write a LoRA on `base` with its manifest, chat template and an empty parity.json."""
    write_safetensors = run_path(str(STAND_IN / "tensors.py"))["write_safetensors"]
    folder.mkdir(parents=True)
    modules = [name for _, name in MODULES]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.0"
    weights = {
        f"{prefix}.{part}.{name}.lora_{letter}.weight": np.ones(shape, np.float32)
        for part, name in MODULES
        for letter, shape in (("A", (rank, 64)), ("B", (64, rank)))
    }
    write_safetensors(folder / "adapter_model.safetensors", weights)
    (folder / "chat_template.jinja").write_text(chat_template)
    base_hash = weight_hash(inspect_base(base), folder.parent / f"{folder.name}.base_hashes.json")
    (folder / "model.json").write_text(json.dumps({"model_id": folder.name, "base": {"weight_hash": base_hash}}))
    parity = {"version": 1, "model_id": folder.name, "base_weight_hash": base_hash, "template_hash": ""}
    (folder / "parity.json").write_text(json.dumps(parity | {"dtype": "float32", "source": "held_out", "probes": []}))
    return folder
