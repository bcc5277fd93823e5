"""Whether a base can be trained: a class whose LoRA vLLM serves, weights not quantised, sizes of one piece."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import BaseModel, inspect_base, read_config, tensor_dtypes, tensor_shapes
from llm_tuning.models.families import Refusal, servable

QUANTISED_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Where older tools record that they have quantised a folder; newer ones do so in config.json."""
_CONFIGS = ("quantization_config", "compression_config")
_QUANTISED_WEIGHT = re.compile(r"\.(qweight|weight_packed|weight_scale|weight_scale_inv|absmax)$|_(blocks|scales)$")
_FLOATS = ("F64", "F32", "F16", "BF16")
_INPUT_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|embeddings)\.weight$")


def check_trainable(base: BaseModel) -> BaseModel:
    """Return `base`; raises InputError for a class whose LoRA is not served, quantised weights, sizes that differ."""
    config, where = read_config(base.path), f"model {base.path}"
    served = servable(config)
    if isinstance(served, Refusal):
        raise InputError(served.problem(where))
    method = quantisation_said(base.path, config) or _quantisation_seen(base)
    if method is not None:
        raise InputError(_quantised(base.path, method))
    says, has = _vocab_size(config), embedding_rows(base)
    if says is not None and has and says not in has:
        raise InputError(
            Problem(
                f"{where}: config.json",
                f"says vocab_size {says:,}, but the embeddings have {min(has):,} rows",
                "save model and tokenizer together: resize_token_embeddings(), then save_pretrained()",
            )
        )
    return base


def training_problems(folder: Path) -> list[Problem]:
    """List what `check_trainable` has against the base in `folder`, as far as the files that are there show it."""
    try:
        config = read_config(folder)
    except (OSError, ValueError):
        return []
    if not isinstance(config, dict):
        return []
    served = servable(config)
    if isinstance(served, Refusal):
        return [served.problem(f"model {folder}")]
    method = quantisation_said(folder, config)
    if method is not None:
        return [_quantised(folder, method)]
    try:
        base = inspect_base(folder)
    except InputError:  # a folder of a tokenizer alone is enough to check rows
        return []
    try:
        check_trainable(base)
    except InputError as error:
        return list(error.problems)
    return []


def _quantised(folder: Path, method: str) -> Problem:
    return Problem(
        f"model {folder}",
        f"is quantised ({method}), which no adapter can be trained on here",
        "give the unquantised weights; with {field:model.quantization} 4bit the run quantises them itself",
    )


def quantisation_said(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return how a base is quantised, by its config or a file beside it; None where neither names a method."""
    if isinstance(config.get("quantization"), Mapping):
        return "mlx"
    for found in _quantisation_configs(config):
        return _method(found)
    return next((method for name, method in QUANTISED_FILES.items() if (folder / name).is_file()), None)


def _quantisation_seen(base: BaseModel) -> str | None:
    """Return how the weights themselves are quantised, whatever the files beside them say; None: they are not."""
    dtypes = tensor_dtypes(base)
    for name, dtype in dtypes.items():
        if dtype.startswith("F8") or _QUANTISED_WEIGHT.search(name):
            return "fp8" if dtype.startswith("F8") else f"{name} is {dtype}"
        if name.endswith(".weight") and dtype not in _FLOATS:
            return dtype.lower()
    return None


def _quantisation_configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a model's quantisation configs, and its parts': one that also sees has its own in `text_config`."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            if name in _CONFIGS:
                yield value
            else:
                yield from _quantisation_configs(value)


def _method(config: Mapping[str, Any]) -> str:
    method = config.get("quant_method") or config.get("quant_algo") or config.get("quantization_method")
    if isinstance(method, str):
        return method.lower()
    return "bitsandbytes" if any(str(name).startswith(("load_in_", "bnb_", "_load_in_")) for name in config) else "?"


def embedding_rows(base: BaseModel) -> set[int]:
    """Return the row counts of the input embeddings, by the headers: several where the model also hears or speaks."""
    shapes = tensor_shapes(base).items()
    return {shape[0] for name, shape in shapes if _INPUT_EMBEDDINGS.search(name) and len(shape) == 2}


def _vocab_size(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    for part in (text if isinstance(text, Mapping) else {}, config):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None
