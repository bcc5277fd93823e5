"""Bases of real families, small: the architecture's own class with random weights, a real tokenizer, a real template.

Their folders are as a hub has them: config.json in its form, the tensors' names, shards, the dtype. What the trainer,
PEFT and vLLM make of a family is tried on these; `tests.support.families` is for what needs no tokenizer and no folder,
only models of every kind in a moment.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.zoo_tokenizers import DATA, Written, write_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GAIN = 1.5
"""How much wider than 1 a layer's outputs are: attention is to prefer some tokens, and logits are not to be flat."""
BARE = Written({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 511}, bos="<s>", eos="</s>", pad="<pad>")
"""A tokenizer that is not there: what config.json needs to know of one."""


@dataclass(frozen=True)
class Family:
    """An entry of `zoo_data/families`, whose keys its README explains (`class_name` is `class`)."""

    name: str
    kind: str
    """The file that it is in."""
    class_name: str
    tokenizer: str
    config: dict[str, Any]
    sizes: str = "small"
    dtype: str = "float32"
    shard: str = "5GB"
    architecture: str | None = None
    hub_names: tuple[tuple[str, str], ...] = ()
    beyond: int | None = None
    logits_of: str = ""


@cache
def families() -> dict[str, Family]:
    """The whole zoo, by name."""
    found = {}
    for path in sorted((DATA / "families").glob("*.yaml")):
        for name, fields in yaml.safe_load(path.read_text()).items():
            found[name] = Family(name=name, kind=path.stem, class_name=fields.pop("class"), **fields)
    return found


def make_base(name: str, folder: Path) -> Path:
    """Write the base of that family to `folder` and return it: the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    return _write(families()[name], folder, write_tokenizer(families()[name].tokenizer, folder))


def make_model(name: str, folder: Path) -> Path:
    """Write the base without its tokenizer, for ids below `BARE.size`: quickly, and with small embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    return _write(families()[name], folder, BARE)


def _write(family: Family, folder: Path, tokenizer: Written) -> Path:
    text = json.dumps(_hub_config(family, tokenizer), indent=2)
    (folder / "config.json").write_text(text)
    generation = folder / "generation_config.json"
    kept = generation.read_bytes() if generation.exists() else None
    _save(_build(family, folder), family, folder)
    # transformers has written its own form of both
    (folder / "config.json").write_text(text)
    generation.unlink(missing_ok=True)
    if kept is not None:
        generation.write_bytes(kept)
    return folder


def bare_config(name: str) -> dict[str, Any]:
    """Return the config.json of that family for a tiny vocabulary: for what looks at names and shapes alone."""
    return _hub_config(families()[name], BARE)


def _hub_config(family: Family, tokenizer: Written) -> dict[str, Any]:
    text = yaml.safe_load((DATA / "sizes.yaml").read_text())[family.sizes] | {"vocab_size": tokenizer.size}
    whole = {"architectures": [family.architecture or family.class_name], "torch_dtype": family.dtype}
    whole |= tokenizer.special_ids() | family.config
    if "text_config" in family.config:
        return whole | {"text_config": text | family.config["text_config"]}
    return text | whole


def _build(family: Family, folder: Path) -> PreTrainedModel:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    config.dtype = torch.float32
    torch.manual_seed(0)
    model = getattr(transformers, family.class_name)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter, config.get_text_config().hidden_size)
    return model.to(getattr(torch, family.dtype))


def _fill(name: str, parameter: torch.Tensor, hidden_size: int) -> None:
    """Random numbers, wide: matrices keep the size of what passes them, vectors stay near what they begin with."""
    if parameter.ndim == 1:
        parameter.add_(0.1 * parameter.new_empty(parameter.shape).normal_())
    elif "embed" in name and parameter.ndim == 2:
        parameter.normal_(std=2 / math.sqrt(hidden_size))
    else:
        fan_in = math.prod(parameter.shape[1:]) if "conv" in name or parameter.ndim > 3 else parameter.shape[-1]
        parameter.normal_(std=GAIN / math.sqrt(fan_in))


def _save(model: PreTrainedModel, family: Family, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=family.shard)
    if family.hub_names:
        from safetensors.torch import load_file, save_file

        (file,) = folder.glob("*.safetensors")
        renamed = {_hub_name(family, name): tensor for name, tensor in load_file(file).items()}
        save_file(renamed, file, metadata={"format": "pt"})


def _hub_name(family: Family, name: str) -> str:
    for pattern, replacement in family.hub_names:
        name = re.sub(pattern, replacement, name)
    return name
