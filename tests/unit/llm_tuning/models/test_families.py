"""Which bases are refused by config.json alone, which layers are trained, and how tensors are named for the server."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.models.families import (
    FAMILIES,
    WITHOUT_LORA,
    Refusal,
    Servable,
    describe,
    in_layer,
    left_out,
    published_name,
    servable,
    trained_name,
)


def config(architecture: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **more}


def family(architecture: str) -> Servable:
    found = servable(config(architecture))
    assert isinstance(found, Servable)
    return found


@pytest.mark.parametrize(
    ("given", "rule", "fix"),
    [
        (config("GPT2LMHeadModel"), "is GPT2LMHeadModel, and vLLM serves no LoRA on that class", "docs/families.md"),
        (config("Zamba2ForCausalLM"), "is Zamba2ForCausalLM, and vLLM serves no LoRA", "docs/families.md"),
        (config("Qwen2_5_VLForConditionalGeneration"), "is Qwen2_5_VLForConditionalGeneration, whose lang", "Qwen2.5"),
        (config("Mistral3ForConditionalGeneration"), "is Mistral3ForConditionalGeneration, whose lang", "(Mistral)"),
        (config("T5ForConditionalGeneration"), "is T5ForConditionalGeneration, which is none", "docs/families.md"),
        ({}, "config.json names no architecture", "save_pretrained()"),
        ({"architectures": []}, "config.json names no architecture", "save_pretrained()"),
        ({"architectures": "LlamaForCausalLM"}, "config.json names no architecture", "save_pretrained()"),
    ],
)
def test_what_cannot_be_served_is_refused_with_what_would_work(given: dict[str, Any], rule: str, fix: str) -> None:
    found = servable(given)
    assert isinstance(found, Refusal)
    problem = found.problem("model base")
    assert problem.where == "model base"
    assert problem.rule.startswith(rule)
    assert fix in problem.fix


def test_no_class_is_both_served_and_refused() -> None:
    assert not WITHOUT_LORA & set(FAMILIES)


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_no_family_trains_routers_experts_embeddings_or_the_output_layer(architecture: str) -> None:
    never = {"gate", "router", "experts", "shared_expert_gate", "lm_head", "embed_tokens", "conv1d", "kv_b_proj"}
    found = family(architecture)
    assert found.modules
    assert not never & set(found.modules)
    assert not set(found.left_out) & set(found.modules)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj", (3, "self_attn.q_proj")),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (0, "mlp.up_proj.lora_A.weight")),
        ("model.language_model.layers.1.linear_attn.in_proj_qkv", (1, "linear_attn.in_proj_qkv")),
        ("language_model.model.layers.2.mlp.gate_proj.weight", (2, "mlp.gate_proj.weight")),
        ("gpt_neox.layers.11.attention.dense.weight", (11, "attention.dense.weight")),
        ("model.decoder.layers.0.fc1.weight", (0, "fc1.weight")),
        ("backbone.layers.0.mixer.in_proj.weight", (0, "mixer.in_proj.weight")),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", None),
        ("model.vision_tower.encoder.layers.0.mlp.fc1", None),
        ("model.visual.blocks.0.attn.qkv.weight", None),
        ("model.audio_tower.layers.0.self_attn.q_proj.weight", None),
        ("mtp.layers.0.mlp.up_proj.weight", None),
        ("model.multi_modal_projector.linear.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_layers_of_the_language_model_are_told_from_towers(name: str, place: tuple[int, str] | None) -> None:
    assert in_layer(name) == place


TEXT = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("architecture", "published"),
    [
        ("Qwen3_5ForConditionalGeneration", TEXT.replace("model.layers", "model.language_model.layers")),
        ("Llama4ForConditionalGeneration", TEXT.replace("model.model.layers", "model.language_model.model.layers")),
        ("Qwen3_5ForCausalLM", TEXT),
        ("LlamaForCausalLM", TEXT),
    ],
)
def test_tensors_are_published_under_the_names_that_the_server_looks_up(architecture: str, published: str) -> None:
    found = family(architecture)
    assert published_name(TEXT, found) == published
    assert published_name(published, found) == published
    assert trained_name(published, found) == trained_name(TEXT, found) == TEXT


def test_names_of_a_base_that_trains_under_the_servers_names_stay() -> None:
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_B.weight"
    found = family("Gemma3ForConditionalGeneration")
    assert published_name(name, found) == trained_name(name, found) == name


def test_what_is_left_out_is_said_with_its_reason() -> None:
    found = family("Qwen3MoeForCausalLM")
    omitted = left_out(["q_proj", "gate", "experts", "q_norm", "input_layernorm"], found)
    assert set(omitted) == {"gate", "experts"}
    line = describe(["q_proj", "k_proj"], omitted)
    assert line.startswith("LoRA on q_proj, k_proj; left out: ")
    assert "gate (the router" in line
    assert describe(["q_proj"], {}) == "LoRA on q_proj"
