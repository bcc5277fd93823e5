"""vLLM's command line, for all who start it, and what it is started with by default.

| Decision | Rule |
| --- | --- |
| dtype on a GPU | `auto`: what the base was saved in, as far as the card has it; the proof allows for the rounding |
| dtype on the CPU | bfloat16 for delta nets, whose kernel has no other; else that of the adapters' training: same \
digits as the trainer; without one float32 if the base was saved so, else `auto` |
| a base that also sees or hears | its language model alone, on which adapters are trained and proven: less memory, no \
image processor needed |
| compiling on the CPU | not: it takes minutes |
| chat template | the base's own, else the project's plain one |
| parsers of tool calls and of reasoning | those asked for, else those that read back what the template writes |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.core.files import read_json, read_text
from llm_tuning.engines.vllm.limits import DELTA_DTYPE, has_delta_net, saved_dtype, value_of_flag
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import BaseModel, read_config
from llm_tuning.models.layout import CHAT_TEMPLATE, TOKENIZER_CONFIG
from llm_tuning.models.rope import context_as_trained, length_dependent_ropes, served_otherwise

PLAIN_TEMPLATE = Path(__file__).resolve().parents[2] / "data" / "plain_chat.jinja"
"""By its path: a machine that starts vLLM need not have what renders templates."""
SPARE_SLOTS = 1
"""LoRA slots of vLLM's CPU build that stay empty. Its kernels take the slot -1 of a request for the base as the last
one (torch_ops/lora_ops.py of vLLM 0.32), and in a batch with adapters' requests the base answered as that adapter."""
TRAINED_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """How adapters are served."""

    max_rank: int
    slots: int
    """Adapters of one batch; on the CPU with those that stay empty."""
    modules: Sequence[str]
    """The layers that are prepared for LoRA. With lm_head among them prompt log-probabilities of several requests at
    once are mixed up, and the CPU build ends (vllm-project/vllm#16668)."""
    in_memory: int | None = None
    """Adapters that are kept besides; None: as many as slots."""
    loaded: Sequence[tuple[str, Path]] = ()
    """Name and folder of those that it loads as it starts."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """All that vLLM is started with."""

    python: str
    base: Path
    base_name: str
    host: str
    port: int
    gpus: int
    """0 for the CPU."""
    dtype: str
    max_model_len: int | str | None = None
    """None: what the base says."""
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool | None = None
    enforce_eager: bool | None = None
    language_model_only: bool = False
    """Start a base that also sees or hears without those layers, and refuse images and sound."""
    lora: LoraOptions | None = None
    template: Path | None = None
    """In place of the base's own."""
    tool_call_parser: str | None = None
    """None: answers are not read for calls of tools."""
    reasoning_parser: str | None = None
    """None: reasoning stays in the answer."""
    further: Sequence[str] = ()


def build_command(options: StartOptions) -> tuple[str, ...]:
    """Build the command that starts vLLM's OpenAI-compatible server."""
    return (
        *(options.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(options.base), "--served-model-name", options.base_name),
        *("--host", options.host, "--port", str(options.port)),
        *("--load-format", "safetensors"),
        *(_lora(options.lora) if options.lora else ()),
        *(("--chat-template", str(options.template)) if options.template else ()),
        *_settings(options),
        *options.further,
    )


def _settings(options: StartOptions) -> list[str]:
    values = {
        "--dtype": options.dtype,
        "--max-model-len": options.max_model_len,
        "--gpu-memory-utilization": options.gpu_memory_utilization,
        "--max-num-seqs": options.max_num_seqs,
        "--max-num-batched-tokens": options.max_num_batched_tokens,
        "--tensor-parallel-size": options.gpus if options.gpus > 1 else None,
        "--tool-call-parser": options.tool_call_parser,
        "--reasoning-parser": options.reasoning_parser,
    }
    flags = [part for name, value in values.items() if value is not None for part in (name, str(value))]
    if options.enable_prefix_caching is not None:
        flags.append("--enable-prefix-caching" if options.enable_prefix_caching else "--no-enable-prefix-caching")
    if options.enforce_eager or (options.enforce_eager is None and not options.gpus):
        flags.append("--enforce-eager")
    if options.language_model_only:
        flags.append("--language-model-only")
    if options.tool_call_parser is not None:
        flags.append("--enable-auto-tool-choice")
    return flags


def _lora(lora: LoraOptions) -> list[str]:
    flags = ["--enable-lora", "--max-lora-rank", str(lora.max_rank), "--max-loras", str(lora.slots)]
    if lora.in_memory is not None:
        flags += ["--max-cpu-loras", str(max(lora.slots, lora.in_memory))]
    flags += ["--lora-target-modules", *lora.modules]
    # JSON, since a path may hold "=".
    loaded = [json.dumps({"name": name, "path": str(path)}) for name, path in lora.loaded]
    return [*flags, "--lora-modules", *loaded] if loaded else flags


def cpu_dtype(base: BaseModel, trained: Iterable[str | None]) -> str:
    """Choose the dtype to compute in on the CPU, by the dtypes that the adapters were trained in."""
    config = read_config(base.path)
    if has_delta_net(config):
        return DELTA_DTYPE
    dtypes = set(trained)
    if len(dtypes) == 1 and (dtype := dtypes.pop()) in TRAINED_DTYPES:
        return str(dtype)
    return "float32" if saved_dtype(config) == "float32" else "auto"


def context_to_serve(base: BaseModel, asked: int | str | None) -> int | str | None:
    """Return `asked`, a number or what vLLM makes of the base, or instead of the latter all that a dynamic rope has."""
    return asked if isinstance(asked, int) else context_as_trained(read_config(base.path)) or asked


def harmony_note(config: Mapping[str, Any]) -> str | None:
    """Return what to say of a base whose chats vLLM writes without its template (`OnlineRenderer.use_harmony`)."""
    if config.get("model_type") != "gpt_oss":
        return None
    return (
        "vLLM writes the prompts of gpt-oss by OpenAI's Harmony and not by the chat template: results of tools, and a "
        "system message without tools, stand otherwise in them than in training, and the proof does not see it"
    )


def context_note(base: BaseModel, further: Sequence[str]) -> str | None:
    """Say what a context among further arguments, `--max-model-len N`, makes other than training; None: nothing."""
    asked = value_of_flag(further, "--max-model-len")
    return served_otherwise(length_dependent_ropes(read_config(base.path)).values(), _tokens(asked or ""))


def _tokens(text: str) -> int | None:
    """Read a number of tokens as vLLM does, `8k` for 8,000 and `8K` for 8,192; None for what is no number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    factors = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}
    return int(float(found[1]) * factors[found[2]]) if found else None


def base_template(base: BaseModel) -> str | None:
    """Read the base's chat template, None where it has none; raises InputError where it cannot be read."""
    for name in (CHAT_TEMPLATE, "chat_template.json"):
        if (base.path / name).exists():
            try:
                return read_text(base.path / name)
            except (OSError, ValueError) as error:
                rule = f"cannot be read ({error})"
                raise InputError(Problem(f"model {base.path}: {name}", rule, "copy it again")) from None
    config = read_json(base.path / TOKENIZER_CONFIG) or {}
    template = config.get("chat_template")
    return template if isinstance(template, str) or template is None else json.dumps(template)
