"""How the engine is started in a pod: decided once, by what the claim holds, before it starts.

| Decision | Rule |
| --- | --- |
| rank | `maxLoraRank`, else the highest of the adapters that are wanted now, at least 16 |
| modules | the base's linear layers but lm_head, and what the wanted adapters change besides |
| adapters in a batch | `maxLoras`, else one for each wanted adapter, at most 8; on the CPU the most at all |
| chat template | the base's own, else the project's plain one; an adapter with another is refused |

The command line itself and the dtype are those of `engines.vllm.command`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

from llm_tuning.agent.aside import BRIEFLY_SECONDS, StillRunning, within
from llm_tuning.agent.contract import ENGINE_PORT, Desired, ServeInput
from llm_tuning.core.files import read_file
from llm_tuning.engines.vllm.adapter import ServedAdapter, allowed_rank, inspect_adapter
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
from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.models.adapter import OUTPUT_HEAD, trained_base
from llm_tuning.models.base import BaseModel, inspect_base, tensor_shapes, weight_hash
from llm_tuning.models.layout import BASE_HASHES, CACHE_FOLDER, CHAT_TEMPLATE

log = logging.getLogger(__name__)

VOLUME_SECONDS = 60.0
"""For the headers and small files of the base."""
ADAPTER_SECONDS = 20.0
"""For an adapter's files; one that takes longer is left out of the plan, as one that is not there."""
LEAST_RANK = 16
MOST_LORAS_BY_DEFAULT = 8
CPU_LORAS = 256
"""Adapters that vLLM keeps in memory. Above it, it would read them again from the volume, unproven."""
_EMBEDDING = re.compile(r"embed|wte|wpe|norm")


@dataclass(frozen=True)
class EnginePlan:
    """vLLM's command, and what it fixes for adapters."""

    command: tuple[str, ...]
    environment: dict[str, str]
    """Added to the container's own."""
    base_name: str
    base_hash: str
    max_lora_rank: int
    max_adapters: int
    target_modules: tuple[str, ...]
    template: str
    template_source: str
    """Where it is from, for messages."""
    max_loads: int | None = None
    """How often an engine may load an adapter from its start to its end; None without a limit. vLLM's unload leaves an
    adapter in its slot, so on the CPU one load more would take the spare one."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Self:
        value = json.loads(text)
        return cls(**{**value, "command": tuple(value["command"]), "target_modules": tuple(value["target_modules"])})


def make_plan(
    given: ServeInput, desired: Desired, root: Path, *, scratch: Path, engine_port: int = ENGINE_PORT
) -> EnginePlan:
    """Decide; `root` is the mounted claim, `scratch` a folder to write to.

    Raises InputError for an unfit base, TryAgain where its volume does not answer.

    An adapter that is not there or is not fit is no fault here: it is refused by itself later on.
    """
    try:
        base = within(VOLUME_SECONDS, lambda: inspect_base(_inside(root, given.model_path)))
    except StillRunning as running:
        raise TryAgain("VolumeSilent", f"model {given.model_path}: its volume does not answer: {running}") from None
    base_hash = weight_hash(base, _own_hashes(root, scratch))
    adapters = _fit_adapters(desired, root, base_hash)
    modules = sorted({*linear_modules(base), *(module for adapter in adapters for module in adapter.modules)})
    own = base_template(base)
    plain = PLAIN_TEMPLATE.read_text(encoding="utf-8")
    rank = given.vllm.max_lora_rank or _rank(desired, adapters)
    slots, max_adapters = _slots(given, len(desired.model_ids))
    template_file = scratch / CHAT_TEMPLATE
    if own is None:
        template_file.write_text(plain, encoding="utf-8")
    vllm = given.vllm
    command = build_command(
        StartOptions(
            python="python3",
            base=base.path,
            base_name=given.base_name,
            host="127.0.0.1",
            port=engine_port,
            gpus=given.gpus,
            dtype=vllm.dtype or ("auto" if given.gpus else cpu_dtype(base, (adapter.dtype for adapter in adapters))),
            max_model_len=vllm.max_model_len or "auto",
            gpu_memory_utilization=vllm.gpu_memory_utilization,
            max_num_seqs=vllm.max_num_seqs,
            max_num_batched_tokens=vllm.max_num_batched_tokens,
            enable_prefix_caching=vllm.enable_prefix_caching,
            enforce_eager=vllm.enforce_eager,
            lora=LoraOptions(max_rank=rank, slots=slots, modules=modules, in_memory=max_adapters),
            template=template_file if own is None else None,
        )
    )
    return EnginePlan(
        command=command,
        environment=OFFLINE | MANAGED,
        base_name=given.base_name,
        base_hash=base_hash,
        max_lora_rank=rank,
        max_adapters=max_adapters,
        max_loads=None if given.gpus else max_adapters,
        target_modules=tuple(modules),
        template=plain if own is None else own,
        template_source=f"{given.model_path}'s own template" if own is not None else "the project's plain template",
    )


def linear_modules(base: BaseModel) -> set[str]:
    """Last name parts of the base's linear layers, as `q_proj`, by the headers of its weights; lm_head left out."""
    found = set()
    for name, shape in tensor_shapes(base).items():
        parts = name.split(".")
        if parts[-1] == "weight" and len(parts) > 1 and len(shape) == 2 and not _EMBEDDING.search(name):
            found.add(parts[-2])
    return found - {OUTPUT_HEAD}


def _fit_adapters(desired: Desired, root: Path, base_hash: str) -> list[ServedAdapter]:
    found = []
    patience = ADAPTER_SECONDS
    for name in desired.model_ids:
        try:
            adapter = within(patience, partial(_fit_adapter, root / "models" / name, base_hash))
        except StillRunning:
            patience = BRIEFLY_SECONDS
        except Exception:  # whatever its files hold, the engine starts for the others
            log.debug("%s is left out of the plan", name, exc_info=True)
        else:
            found += [adapter] if adapter is not None else []
    return found


def _fit_adapter(path: Path, base_hash: str) -> ServedAdapter | None:
    return inspect_adapter(path, None) if trained_base(path).weight_hash in ("", base_hash) else None


def _slots(given: ServeInput, wanted: int) -> tuple[int, int]:
    """Slots of a batch, and the most adapters that may be loaded at once."""
    if given.gpus:
        return given.vllm.max_loras or min(max(wanted, 1), MOST_LORAS_BY_DEFAULT), max(CPU_LORAS, wanted)
    most = max(given.vllm.max_loras or max(MOST_LORAS_BY_DEFAULT, 2 * wanted), wanted)
    return most + SPARE_SLOTS, most


def _rank(desired: Desired, adapters: Sequence[ServedAdapter]) -> int:
    known = [LEAST_RANK, desired.rank, *(adapter.max_rank for adapter in adapters)]
    return max(allowed_rank(rank) or LEAST_RANK for rank in known)


def _inside(root: Path, relative: str) -> Path:
    path = root / relative
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        rule = "leads out of the volume by a symbolic link"
        raise InputError(Problem(f"model {relative}", rule, "copy the files into the claim", field="model.path"))
    return path


def _own_hashes(root: Path, scratch: Path) -> Path:
    """A copy of what the trainers have noted, to read and write: the claim is mounted read-only here."""
    own = scratch / BASE_HASHES
    with suppress(OSError):
        own.write_bytes(read_file(root / "models" / CACHE_FOLDER / BASE_HASHES))
    return own
