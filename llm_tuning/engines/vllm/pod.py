"""How vLLM is started in the pod of an InferenceService, where adapters come and go while it runs.

| Decision | Rule |
| --- | --- |
| rank | `maxLoraRank`, else the highest of the adapters that are wanted now, at least 16 |
| modules | the base's linear layers but lm_head, and what the wanted adapters change besides |
| adapters in a batch | `maxLoras`, else one for each wanted adapter, at most 8; on the CPU the most at all |
| chat template | the base's own, else the project's plain one; an adapter with another is refused |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    cpu_dtype,
)
from llm_tuning.engines.vllm.environment import MANAGED, OFFLINE
from llm_tuning.models.adapter import OUTPUT_HEAD
from llm_tuning.models.base import BaseModel, tensor_shapes
from llm_tuning.models.layout import CHAT_TEMPLATE

LEAST_RANK = 16
MOST_LORAS_BY_DEFAULT = 8
CPU_LORAS = 256
"""Adapters that vLLM keeps in memory. Above it, it would read them again from the volume, unproven."""
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
    port: int
    """On the pod's loopback."""


def plan_pod(pod: Pod, adapters: Sequence[ServedAdapter], *, wanted: int, rank: int, scratch: Path) -> EnginePlan:
    """Plan the engine for `adapters`, those of the `wanted` that fit; `rank` is the highest that is known to come.

    `scratch` is a folder that the pod's containers share.
    """
    settings = pod.settings
    modules = sorted({*linear_modules(pod.base), *(module for adapter in adapters for module in adapter.modules)})
    own, plain = base_template(pod.base), PLAIN_TEMPLATE.read_text(encoding="utf-8")
    template_file = scratch / CHAT_TEMPLATE
    if own is None:
        template_file.write_text(plain, encoding="utf-8")
    max_rank = settings.max_lora_rank or _rank([rank, *(adapter.max_rank for adapter in adapters)])
    slots, max_adapters = _slots(pod, wanted)
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
            max_model_len=settings.max_model_len or "auto",
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            enable_prefix_caching=settings.enable_prefix_caching,
            enforce_eager=settings.enforce_eager,
            lora=LoraOptions(max_rank=max_rank, slots=slots, modules=modules, in_memory=max_adapters),
            template=template_file if own is None else None,
        )
    )
    return EnginePlan(
        command=command,
        environment=OFFLINE | MANAGED,
        base_name=pod.base_name,
        base_hash=pod.base_hash,
        max_lora_rank=max_rank,
        max_adapters=max_adapters,
        # An unloaded adapter stays in its slot, so on the CPU one load more would take the spare one.
        max_loads=None if pod.gpus else max_adapters,
        target_modules=tuple(modules),
        template=plain if own is None else own,
        template_source=f"{pod.base_path}'s own template" if own is not None else "the project's plain template",
    )


def linear_modules(base: BaseModel) -> set[str]:
    """Read the last name parts of the base's linear layers, as `q_proj`, in its weights' headers; without lm_head."""
    found = set()
    for name, shape in tensor_shapes(base).items():
        parts = name.split(".")
        if parts[-1] == "weight" and len(parts) > 1 and len(shape) == 2 and not _EMBEDDING.search(name):
            found.add(parts[-2])
    return found - {OUTPUT_HEAD}


def _slots(pod: Pod, wanted: int) -> tuple[int, int]:
    """Return the LoRA slots of a batch, and the most adapters that may be loaded at once."""
    asked = pod.settings.max_loras
    if pod.gpus:
        return asked or min(max(wanted, 1), MOST_LORAS_BY_DEFAULT), max(CPU_LORAS, wanted)
    most = max(asked or max(MOST_LORAS_BY_DEFAULT, 2 * wanted), wanted)
    return most + SPARE_SLOTS, most


def _rank(known: Sequence[int]) -> int:
    return max(LEAST_RANK, *(allowed_rank(rank) or LEAST_RANK for rank in known))
