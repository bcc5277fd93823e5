"""An adapter to start from: what is in it that no server takes is refused by name, whatever else was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import LoraSpec
from llm_tuning.errors import InputError
from llm_tuning.models.base import BaseModel, inspect_base
from llm_tuning.run.start_adapter import StartAdapter, lora_of
from tests.support.models import make_light_base, make_manifest

LAYER = "base_model.model.model.layers.0"
PLAIN = [f"{LAYER}.self_attn.{name}.lora_{letter}.weight" for name in ("q_proj", "v_proj") for letter in "AB"]


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    make_light_base(tmp_path / "base")
    return inspect_base(tmp_path / "base")


def start(folder: Path, names: list[str], **config: Any) -> StartAdapter:
    folder.mkdir()
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(names)))
    given = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return StartAdapter(folder, make_manifest(folder.name))


def of_class(base: BaseModel, architecture: str) -> BaseModel:
    (base.path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return inspect_base(base.path)


def test_a_plain_lora_is_continued_as_it_is(base: BaseModel, tmp_path: Path) -> None:
    lora = lora_of(start(tmp_path / "faq", PLAIN, target_modules=".*(q|v)_proj"), LoraSpec(), base)
    assert (lora.rank, lora.alpha, lora.target_modules) == (4, 8, "q_proj,v_proj")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "faq has use_dora, which vLLM does not serve"),
        ({"bias": "all"}, "faq has bias, which"),
        ({"modules_to_save": ["lm_head"]}, "faq has modules_to_save, which"),
        ({"init_lora_weights": "pissa_niter_4"}, "faq has init_lora_weights pissa_niter_4, which"),
        ({"trainable_token_indices": [1]}, "faq has trainable_token_indices, which"),
        ({"peft_type": "IA3"}, "faq has peft_type IA3, which"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_by_name(
    base: BaseModel, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=f"model.adapter.modelId: {said}.*start from an adapter without it"):
        lora_of(start(tmp_path / "faq", PLAIN, **config), LoraSpec(), base)


@pytest.mark.parametrize(
    ("architecture", "names", "said"),
    [
        ("Qwen3MoeForCausalLM", [f"{LAYER}.mlp.gate.lora_A.weight"], "faq trains gate, whose LoRA vLLM does not serve"),
        ("Qwen3MoeForCausalLM", [f"{LAYER}.mlp.experts.base_layer.lora_A.weight"], "faq trains experts, whose"),
        (
            "Gemma3ForConditionalGeneration",
            ["base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight"],
            "faq trains model.vision_tower.encoder.layers.0.self_attn.q_proj, whose",
        ),
    ],
)
def test_routers_experts_and_towers_of_an_older_adapter_are_refused_as_what_they_are(
    base: BaseModel, tmp_path: Path, architecture: str, names: list[str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        lora_of(start(tmp_path / "faq", [*PLAIN, *names]), LoraSpec(), of_class(base, architecture))


def test_experts_are_continued_where_the_server_takes_pefts_form_and_without_dropout(
    base: BaseModel, tmp_path: Path
) -> None:
    names = [f"{LAYER}.mlp.experts.base_layer.lora_A.weight", f"{LAYER}.mlp.experts.lora_A.weight"]
    found, base = start(tmp_path / "faq", [*PLAIN, *names]), of_class(base, "GptOssForCausalLM")
    with pytest.raises(
        InputError, match=r"lora.dropout: is 0.05, but faq trains experts, on which PEFT has no dropout"
    ):
        lora_of(found, LoraSpec(), base)
    assert lora_of(found, LoraSpec(dropout=0), base).target_modules == "experts,q_proj,v_proj"


def test_other_modules_than_the_start_adapters_are_refused(base: BaseModel, tmp_path: Path) -> None:
    found = start(tmp_path / "faq", PLAIN)
    assert lora_of(found, LoraSpec(target_modules="v_proj,q_proj"), base).target_modules == "q_proj,v_proj"
    with pytest.raises(InputError, match="is q_proj but the start adapter faq has q_proj,v_proj; leave it out"):
        lora_of(found, LoraSpec(target_modules="q_proj"), base)
