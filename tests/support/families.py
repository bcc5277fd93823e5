"""Tiny random models of many families: one of each way from tokens to logits that the trainer has to know.

Sizes are the tests' own. Initial weights are wide, so that logits are not flat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_tuning.trainers.model import attach_lora

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FULL_AND_SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


@dataclass(frozen=True)
class Family:
    """A model type of transformers, and what is known of the trainer's way through it."""

    kind: str
    differing: dict[str, Any] = field(default_factory=dict)
    """From `SIZES`."""
    flat: bool | None = True
    """Whether rows may lie end to end. None: on some processors products round with the number of rows."""
    layer_norm: bool = False
    """CUDA's autocast computes LayerNorm in fp32, so the last hidden states are fp32 in a bf16 run."""


FAMILIES: dict[str, Family] = {
    "llama": Family("llama"),
    "qwen2": Family("qwen2"),
    "tied-qwen3": Family("qwen3", {"tie_word_embeddings": True}),
    "sliding-mistral": Family("mistral", {"sliding_window": 16}),
    "sliding-gemma3": Family("gemma3_text", FULL_AND_SLIDING),
    "capped-gemma2": Family("gemma2", FULL_AND_SLIDING, flat=False),
    "scaled-cohere": Family("cohere", {"logit_scale": 0.25}),
    "scaled-granite": Family("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "phi3": Family("phi3"),
    "olmo": Family("olmo"),
    "olmo2": Family("olmo2"),
    "glm4": Family("glm4"),
    "smollm3": Family("smollm3"),
    "biased-phi": Family("phi", layer_norm=True),
    "gpt-neox": Family("gpt_neox", layer_norm=True),
    "starcoder2": Family("starcoder2", layer_norm=True),
    "stablelm": Family("stablelm", flat=False, layer_norm=True),
    "learned-positions-gpt2": Family("gpt2", GPT2_SIZES | NO_DROPOUT, layer_norm=True),
    "gpt-j": Family("gptj", GPT2_SIZES | NO_DROPOUT | {"rotary_dim": 8}, layer_norm=True),
    "opt": Family("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}, layer_norm=True),
    "bloom": Family("bloom", {"n_layer": 2, "n_head": 4}, flat=False, layer_norm=True),
    "falcon": Family("falcon", {"head_dim": None}, flat=False, layer_norm=True),
    "convolution-lfm2": Family("lfm2", {"layer_types": ["conv", "full_attention"]}, flat=False),
    "sinks-gpt-oss": Family("gpt_oss", {"num_local_experts": 4, **FULL_AND_SLIDING}, flat=False),
    "experts-mixtral": Family("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, flat=None),
}


def make_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build the family's model with random weights, the same ones every time."""
    family = FAMILIES[name]
    set_seed(0)
    sizes = SIZES | family.differing
    config = CONFIG_MAPPING[family.kind](**{key: value for key, value in sizes.items() if value is not None})
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def make_adapted_model(name: str, dtype: torch.dtype = torch.float32, *, dropout: float = 0.0) -> PeftModel:
    """Build the family's model, frozen, with a LoRA that already does something."""
    model = make_model(name, dtype)
    model.requires_grad_(False)
    targets = ["c_attn"] if FAMILIES[name].kind == "gpt2" else "all-linear"
    adapted = attach_lora(model, rank=4, alpha=8, dropout=dropout, target_modules=targets, seed=1)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.1)
    return adapted
