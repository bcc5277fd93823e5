"""What vLLM cannot run of a base is known from its config.json, and what it can is not refused."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.engines.vllm import limits

LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 2, "dtype": "float32"}
DELTA = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 256}
QWEN35 = {"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": DELTA, "vision_config": {}}
QWEN_NEXT = {"architectures": ["Qwen3NextForCausalLM"], "num_experts": 512, **DELTA}
MOE = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "head_dim": 128}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "n_head": 12, "n_embd": 768}
MLA = {"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 64, "head_dim": 24, "n_routed_experts": 4}


@pytest.mark.parametrize(
    ("config", "on_cpu", "words"),
    [
        (LLAMA, True, ""),
        (QWEN35, True, ""),
        (MOE, False, ""),
        ({**MOE, "num_experts": 0}, True, ""),
        (MOE, True, "mixture of experts"),
        (QWEN_NEXT, True, "mixture of experts"),
        (MLA, True, "mixture of experts"),
        ({"text_config": {"num_local_experts": 16}}, True, "mixture of experts"),
        (GPT2, True, "is GPT2LMHeadModel, a class on which vLLM serves no LoRA"),
        (GPT2, False, "is GPT2LMHeadModel"),
        ({}, True, ""),
    ],
)
def test_where_no_adapter_is_served(config: dict[str, Any], words: str, *, on_cpu: bool) -> None:
    found = limits.why_no_lora(config, on_cpu=on_cpu)
    assert words in (found or "")
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LLAMA, ""),
        (QWEN35, ""),
        (GPT2, ""),
        (MLA, ""),
        ({}, ""),
        (LLAMA | {"head_dim": 16}, "attention heads of 16"),
        (LLAMA | {"hidden_size": 96}, "attention heads of 48"),
        ({"text_config": DELTA | {"linear_value_head_dim": 32}}, "delta-net heads of 128, 32 (keys, values)"),
        ({"text_config": DELTA | {"linear_key_head_dim": 256}}, "delta-net heads of 256, 128"),
        ({"text_config": DELTA | {"linear_value_head_dim": 64}}, "the same for both"),
    ],
)
def test_what_the_cpu_build_cannot_run(config: dict[str, Any], words: str) -> None:
    found = limits.why_not_on_cpu(config)
    assert words in (found or "")
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("config", "dtype", "refused"),
    [
        (LLAMA, "float32", False),
        (LLAMA, "auto", False),
        (QWEN35, "bfloat16", False),
        (QWEN35, "float32", True),
        (QWEN35, "float16", True),
        (QWEN35 | {"torch_dtype": "bfloat16"}, "auto", False),
        (QWEN35 | {"dtype": "float32"}, "auto", True),
        (QWEN_NEXT, "float32", True),
    ],
)
def test_dtypes_of_the_cpu_build(config: dict[str, Any], dtype: str, *, refused: bool) -> None:
    found = limits.wrong_on_cpu(config, dtype)
    assert bool(found) == refused
    assert not found or "bfloat16 only" in found


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--dtype", "float32"], "float32"),
        (["--dtype=auto", "--dtype", "bfloat16"], "bfloat16"),
        (["--dtype"], None),
        (["--dtypes", "x"], None),
    ],
)
def test_the_last_value_of_a_flag_counts(arguments: list[str], value: str | None) -> None:
    assert limits.value_of_flag(arguments, "--dtype") == value


def test_flags_may_be_written_with_underscores() -> None:
    assert limits.value_of_flag(["--max_model_len=64"], "--max-model-len") == "64"
