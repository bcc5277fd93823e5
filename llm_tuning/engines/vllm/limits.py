"""What vLLM cannot run of a base, by config.json alone: said before a start, in which vLLM would end.

| Limit | Where |
| --- | --- |
| classes without LoRA (GPT-2) | everywhere |
| head sizes without a kernel | CPU build |
| delta nets (Qwen3.5, Qwen3-Next) in another dtype than bfloat16, or with other head sizes | CPU build |
| LoRA on a mixture of experts | CPU build |

The numbers are those of vLLM 0.32; tests/engine holds them to the one that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_tuning.models.families import WITHOUT_LORA
from llm_tuning.models.rope import text_config

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
CPU_DELTA_SIZES = (64, 128)
DELTA_DTYPE = "bfloat16"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SENSES = ("vision_config", "audio_config", "video_config")
DTYPE_FLAG = "--dtype"


def why_no_lora(config: Mapping[str, Any], *, on_cpu: bool) -> str | None:
    """Say why vLLM serves no adapter on this base; None where it does."""
    architecture = architecture_of(config)
    if architecture in WITHOUT_LORA:
        return f"is {architecture}, a class on which vLLM serves no LoRA"
    if on_cpu and has_experts(config):
        return "is a mixture of experts, and vLLM's CPU build computes those only without LoRA (its kernel is Triton's)"
    return None


def why_not_on_cpu(config: Mapping[str, Any]) -> str | None:
    """Say why vLLM's CPU build cannot run this base in any dtype; None where it can."""
    text = text_config(config)
    size = _head_size(text)
    if size is not None and size not in CPU_HEAD_SIZES:
        return f"has attention heads of {size}, and vLLM's CPU kernels take {_listed(CPU_HEAD_SIZES)}"
    delta = [text[name] for name in ("linear_key_head_dim", "linear_value_head_dim") if text.get(name)]
    if any(size not in CPU_DELTA_SIZES for size in delta) or len(set(delta)) > 1:
        return (
            f"has delta-net heads of {_listed(delta)} (keys, values), and vLLM's CPU kernel takes "
            f"{_listed(CPU_DELTA_SIZES)}, the same for both"
        )
    return None


def has_delta_net(config: Mapping[str, Any]) -> bool:
    """Return whether layers are gated delta nets, as those of Qwen3.5 and Qwen3-Next."""
    return bool(text_config(config).get("linear_key_head_dim"))


def wrong_on_cpu(config: Mapping[str, Any], dtype: str) -> str | None:
    """Say why vLLM's CPU build cannot compute this base in `dtype`, as its flag has it; None where it can."""
    found = saved_dtype(config) if dtype == "auto" else dtype
    if has_delta_net(config) and found != DELTA_DTYPE:
        return f"{found} is asked for, and vLLM's CPU kernel of delta nets computes in {DELTA_DTYPE} only"
    return None


def has_experts(config: Mapping[str, Any]) -> bool:
    """Return whether the language model is a mixture of experts."""
    text = text_config(config)
    return any(isinstance(text.get(name), int) and text[name] > 1 for name in _EXPERTS)


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Return whether the base also sees or hears."""
    return any(isinstance(config.get(name), Mapping) for name in _SENSES)


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the class that config.json names; empty where it names none."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def saved_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype that a base was saved in, by its config.json."""
    for part in (config, text_config(config)):
        if dtype := part.get("dtype") or part.get("torch_dtype"):
            return str(dtype)
    return None


def value_of_flag(arguments: Sequence[str], flag: str) -> str | None:
    """Return the last value of a flag among vLLM's arguments, given as `--flag value` or `--flag=value`."""
    found = None
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else next(iter(arguments[number + 1 :]), None)
    return found


def _head_size(text: Mapping[str, Any]) -> int | None:
    """Return the size of an attention head; None where attention is latent (MLA), or there is none."""
    if text.get("kv_lora_rank"):
        return None
    heads, hidden, size = (text.get(name) for name in ("num_attention_heads", "hidden_size", "head_dim"))
    if isinstance(size, int):
        return size
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
