"""What an adapter's files say: which modules it changes, its chat template, the base it was trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.core.files import read_text
from llm_tuning.errors import Problem
from llm_tuning.models.base import read_object
from llm_tuning.models.layout import ADAPTER_WEIGHTS, CHAT_TEMPLATE, MANIFEST, PARITY
from llm_tuning.models.safetensors import read_header

SMALL_FILE_BYTES = 2**21
"""The largest JSON file or template of an adapter. Ours have some hundred KB; the agent, with 1 GiB, reads several."""
HEADER_BYTES = 2**23
"""The largest header of an adapter's weights: more than fifty thousand tensors."""
OUTPUT_HEAD = "lm_head"
_OWN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of init_lora_weights that begin elsewhere and leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ do not."""
_MODULE = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?[AB](?:\.|$)")


def read_small(path: Path, where: str, problems: list[Problem], *, missing: str | None = None) -> dict[str, Any]:
    """Read the JSON object in a file of an adapter, as `read_object` does, up to SMALL_FILE_BYTES."""
    return read_object(path, where, problems, missing=missing, most=SMALL_FILE_BYTES)


def read_template(adapter: Path) -> str | None:
    """Read the chat template that an adapter was trained with, None without one; raises OSError or ValueError."""
    path = adapter / CHAT_TEMPLATE
    return read_text(path, most=SMALL_FILE_BYTES) if path.exists() else None


def unserved_features(config: dict[str, Any]) -> list[str]:
    """Name what an adapter_config.json asks for that is more than the LoRA that vLLM serves; [] for a plain one."""
    if config.get("peft_type") != "LORA":
        return [f"peft_type {config.get('peft_type')}"]
    start = config.get("init_lora_weights")
    asks = {
        "use_dora": config.get("use_dora"),
        "bias": config.get("bias", "none") != "none",
        f"init_lora_weights {start}": isinstance(start, str) and start.lower() not in _OWN_STARTS,
    } | {name: config.get(name) for name in _MORE_THAN_LORA}
    return [name for name, value in asks.items() if value]


_MORE_THAN_LORA = (
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "use_qalora",
)


def adapted_paths(adapter: Path) -> set[str]:
    """Read the names of the adapted modules, as `model.layers.0.self_attn.q_proj`.

    Raises ValueError or OSError if unreadable.
    """
    found = [_MODULE.search(name) for name in read_header(adapter / ADAPTER_WEIGHTS, most=HEADER_BYTES)]
    return {match.group(1) for match in found if match}


def adapted_modules(adapter: Path) -> set[str]:
    """Read the last name parts of the adapted modules, as `q_proj`; raises as `adapted_paths` does.

    PEFT puts the LoRA of a second tensor of fused experts on `experts.base_layer`: that is `experts` here.
    """
    return {path.removesuffix(".base_layer").rpartition(".")[2] for path in adapted_paths(adapter)}


def adapts_output_head(adapter: Path) -> bool:
    """Return whether lm_head is adapted; False where the weights cannot be read."""
    try:
        return OUTPUT_HEAD in adapted_modules(adapter)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class TrainedBase:
    """The base that an adapter was trained on, as far as its files say."""

    name: str = ""
    path: str = ""
    weight_hash: str = ""


def trained_base(path: Path) -> TrainedBase:
    """Read which base an adapter was trained on, by its manifest or its probes; empty where neither is readable."""
    ignored: list[Problem] = []
    manifest = read_small(path / MANIFEST, "", ignored)
    parity = read_small(path / PARITY, "", ignored)
    record = manifest.get("base")
    record = record if isinstance(record, dict) else {}
    expected = record.get("weight_hash") or parity.get("base_weight_hash") or ""
    return TrainedBase(str(record.get("name") or ""), str(record.get("path") or ""), str(expected))
