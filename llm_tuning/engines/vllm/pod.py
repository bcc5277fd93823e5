"""How vLLM is started in the pod of an InferenceService, where adapters come and go while it runs.

| Decision | Rule |
| --- | --- |
| rank | `maxLoraRank`, else the highest of the adapters that are wanted now, at least 16 |
| modules | the layers of the language model whose LoRA vLLM serves (of a class that is not listed, its linear layers \
but lm_head), and what the wanted adapters change besides |
| layers that see or hear | not started, unless `languageModelOnly` is false or a wanted adapter changes them |
| adapters in a batch | `maxLoras`, else one for each wanted adapter, at most 8; on the CPU the most at all |
| adapters in memory on GPUs | what a quarter of the memory holds, at most 256; at least twice the wanted ones |
| chat template | the base's own, else the project's plain one; an adapter with another is refused |
| parsers of tool calls and of reasoning | `toolCallParser`, `reasoningParser`, else those that read that template |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.engines.plan import EnginePlan
from llm_tuning.engines.vllm.adapter import ServedAdapter, allowed_rank
from llm_tuning.engines.vllm.command import (
    PLAIN_TEMPLATE,
    SPARE_SLOTS,
    LoraOptions,
    StartOptions,
    base_template,
    build_command,
    context_to_serve,
    cpu_dtype,
    harmony_note,
)
from llm_tuning.engines.vllm.environment import MANAGED, MODEL_RUNNER_VARIABLE, OFFLINE
from llm_tuning.engines.vllm.limits import (
    DELTA_DTYPE,
    architecture_of,
    is_multimodal,
    why_no_lora,
    why_not_on_cpu,
    wrong_on_cpu,
)
from llm_tuning.engines.vllm.parsers import Asked, choose_parsers
from llm_tuning.engines.vllm.tensor_names import read_lookup
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.adapter import OUTPUT_HEAD
from llm_tuning.models.base import BaseModel, read_config, tensor_shapes
from llm_tuning.models.families import FAMILIES, in_layer
from llm_tuning.models.layout import CHAT_TEMPLATE

LEAST_RANK = 16
MOST_LORAS_BY_DEFAULT = 8
MOST_IN_MEMORY = 256
MEMORY_SHARE = 4
"""The part of the memory that adapters may take: a quarter. vLLM never lets go of one by itself, unloaded or not."""
_EMBEDDING = re.compile(r"embed|wte|wpe|norm")


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What an InferenceService gives its pods."""

    base: BaseModel
    base_name: str
    base_hash: str
    base_path: str
    """As the spec names it."""
    settings: VllmSpec
    gpus: int
    memory_bytes: int
    """Of the engine's container."""
    port: int
    """On the pod's loopback."""


def plan_pod(pod: Pod, adapters: Sequence[ServedAdapter], *, wanted: int, rank: int, scratch: Path) -> EnginePlan:
    """Plan the engine for `adapters`, those of the `wanted` that fit; `rank` is the highest that is known to come.

    `scratch` is a folder that the pod's containers share.
    """
    settings, config = pod.settings, read_config(pod.base.path)
    _check_runs(pod, config)
    without_lora = why_no_lora(config, on_cpu=not pod.gpus)
    text_only = is_text_only(pod, adapters)
    modules = sorted({*linear_modules(pod.base), *(module for adapter in adapters for module in adapter.modules)})
    own, plain = base_template(pod.base), PLAIN_TEMPLATE.read_text(encoding="utf-8")
    template_file = scratch / CHAT_TEMPLATE
    if own is None:
        template_file.write_text(plain, encoding="utf-8")
    asked = Asked(settings.tool_call_parser, settings.reasoning_parser, "vllm.toolCallParser", "vllm.reasoningParser")
    parsers = choose_parsers(plain if own is None else own, pod.base.path, asked)
    max_rank = settings.max_lora_rank or _rank([rank, *(adapter.max_rank for adapter in adapters)])
    slots, max_adapters = _slots(pod, wanted, max_rank)
    dtype = "auto" if pod.gpus else cpu_dtype(pod.base, (adapter.dtype for adapter in adapters))
    command = build_command(
        StartOptions(
            python="python3",
            base=pod.base.path,
            base_name=pod.base_name,
            host="127.0.0.1",
            port=pod.port,
            gpus=pod.gpus,
            dtype=settings.dtype or dtype,
            max_model_len=context_to_serve(pod.base, settings.max_model_len or "auto"),
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            enable_prefix_caching=settings.enable_prefix_caching,
            enforce_eager=settings.enforce_eager,
            language_model_only=text_only,
            lora=None
            if without_lora
            else LoraOptions(max_rank=max_rank, slots=slots, modules=modules, in_memory=max_adapters),
            template=template_file if own is None else None,
            tool_call_parser=parsers.tool_calls,
            reasoning_parser=parsers.reasoning,
        )
    )
    return EnginePlan(
        command=command,
        environment=OFFLINE | MANAGED | _model_runner(pod),
        base_name=pod.base_name,
        base_hash=pod.base_hash,
        max_lora_rank=max_rank,
        max_adapters=max_adapters,
        # An unloaded adapter stays in its slot, so on the CPU one load more would take the spare one.
        max_loads=None if pod.gpus else max_adapters,
        target_modules=tuple(modules),
        template=plain if own is None else own,
        template_source=f"{pod.base_path}'s own template" if own is not None else "the project's plain template",
        lookup=read_lookup(pod.base, towers=not text_only),
        without_lora=f"{pod.base_path} {without_lora}" if without_lora else "",
        tool_call_parser=parsers.tool_calls or "",
        notes=(*parsers.notes, *filter(None, [harmony_note(config)])),
    )


def is_text_only(pod: Pod, adapters: Sequence[ServedAdapter]) -> bool:
    """Return whether the engine is started for text alone, though the base also sees or hears."""
    if not is_multimodal(read_config(pod.base.path)):
        return False
    chosen = pod.settings.language_model_only
    return not any(adapter.names.tower for adapter in adapters) if chosen is None else chosen


def _check_runs(pod: Pod, config: Mapping[str, Any]) -> None:
    """Raise InputError, all problems together, where vLLM cannot run the base as the spec has it."""
    where, settings = f"model {pod.base_path}", pod.settings
    problems = []
    if not pod.gpus:
        if rule := why_not_on_cpu(config):
            problems.append(Problem(where, rule, "serve it on GPUs (spec.resources.gpus)"))
        if settings.dtype and (rule := wrong_on_cpu(config, settings.dtype)):
            problems.append(Problem("spec.vllm.dtype", rule, f"leave it out, or set {DELTA_DTYPE}"))
    if problems:
        raise InputError(problems)


def _model_runner(pod: Pod) -> dict[str, str]:
    """Build the choice of vLLM's model runner; the CPU build has the old one only, and ends where another is chosen."""
    chosen = pod.settings.model_runner_v2
    return {MODEL_RUNNER_VARIABLE: str(int(chosen))} if pod.gpus and chosen is not None else {}


def linear_modules(base: BaseModel) -> set[str]:
    """Read the last name parts of the layers that are prepared for LoRA, as `q_proj`, in the weights' headers."""
    return {module for module, _ in _linear_layers(base)}


def adapter_bytes(base: BaseModel, rank: int) -> int:
    """Return what vLLM's memory for an adapter of all linear layers takes: 16 bits a number, pinned.

    torch pins memory in powers of two.
    """
    widths = (width for _, shape in _linear_layers(base) for width in shape)
    return sum(1 << (2 * rank * width - 1).bit_length() for width in widths)


def _linear_layers(base: BaseModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    family = FAMILIES.get(architecture_of(read_config(base.path)))
    for name, shape in tensor_shapes(base).items():
        *above, kind = name.split(".")
        if family is not None:
            inside = in_layer(name)
            if inside is not None and above[-1] in family.modules and kind == "weight" and len(shape) == 2:
                yield above[-1], shape
        elif (
            above and kind == "weight" and len(shape) == 2 and not _EMBEDDING.search(name) and above[-1] != OUTPUT_HEAD
        ):
            yield above[-1], shape


def _slots(pod: Pod, wanted: int, max_rank: int) -> tuple[int, int]:
    """Return the LoRA slots of a batch, and the most adapters that may be loaded at once."""
    asked = pod.settings.max_loras
    if pod.gpus:
        slots = asked or min(max(wanted, 1), MOST_LORAS_BY_DEFAULT)
        each = pod.gpus * max(adapter_bytes(pod.base, max_rank), 1)  # one process for each GPU, with all adapters
        room = min(pod.memory_bytes // MEMORY_SHARE // each, MOST_IN_MEMORY)
        return slots, max(slots, 2 * wanted, room)
    most = max(asked or max(MOST_LORAS_BY_DEFAULT, 2 * wanted), wanted)
    return most + SPARE_SLOTS, most


def _rank(known: Sequence[int]) -> int:
    return max(LEAST_RANK, *(allowed_rank(rank) or LEAST_RANK for rank in known))
