"""What a run publishes of an adapter: weights and configuration, as PEFT and vLLM read them, and the tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tuning.models.base import read_config
from llm_tuning.models.families import Servable, family_of, published_name
from llm_tuning.models.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHAT_TEMPLATE, TOKENIZER_CONFIG
from llm_tuning.models.targets import last
from llm_tuning.trainers.model import TRAINED, adapter_weights

if TYPE_CHECKING:
    from peft import PeftModel

TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)
"""What a tokenizer of transformers may consist of; those present in the base are copied as they are."""


def save_adapter(
    model: PeftModel, tokenizer: Path, stage: Path, *, base_name: str, chat_template: str | None = None
) -> None:
    """Write adapter weights, its configuration, the tokenizer and the chat template to `stage`; same model, same bytes.

    `tokenizer` is the base's folder: its tokenizer files are copied as they are, since a tokenizer saved again by
    another version of transformers need not give the same token ids. `chat_template` is the one used in training.
    """
    from safetensors.torch import save_file

    stage.mkdir(parents=True, exist_ok=True)
    family = family_of(read_config(tokenizer) or {})
    weights = {published_name(name, family): weight for name, weight in adapter_weights(model).items()}
    save_file(weights, stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config[TRAINED].to_dict()
    config |= {
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "target_modules": _short_names(model, family),
    }
    if family.names:
        config["exclude_modules"] = _outside(family)
    (stage / ADAPTER_CONFIG).write_text(json.dumps(_ordered(config), indent=2, sort_keys=True) + "\n")
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, stage / name)
    if chat_template is not None:
        (stage / CHAT_TEMPLATE).write_text(chat_template)


def _short_names(model: PeftModel, family: Servable) -> list[str]:
    """Shorten target modules to their last name parts (q_proj), as people write them, where they mean the same ones.

    Otherwise they are whole; from `layers` on where the base is also loaded by a class that has more before that.
    """
    targeted = set(model.base_model.targeted_module_names)
    short = {last(name) for name in targeted}
    named = {name for name, _ in model.get_base_model().named_modules() if last(name) in short}
    layers = {name for name in named if ".lora_" not in name}
    if layers == targeted:
        return sorted(short)
    return sorted(name.removeprefix("model.") if family.names else name for name in targeted)


def _outside(family: Servable) -> str:
    """Match all that is outside the language model, in the class that training loads and in the whole one.

    A tower may have layers of the same names (Llama 4's has), and PEFT would put an adapter there that is empty.
    """
    return rf"(?!{re.escape(family.names)}|model[.]layers[.]).*"


def _ordered(value: object) -> object:
    """Return `value` for JSON, sets as sorted lists: a set's order (PEFT's target_modules) changes with every run."""
    if isinstance(value, dict):
        return {str(key): _ordered(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    return value
