"""What of a source is taken: decided by the names of its files, before a byte is fetched. Pure.

Of a model: safetensors weights, configuration, tokenizer, templates, licence and card, all at the top of the
repository. Nothing that is run when it is loaded (pickles, Python files), and no second copy of the weights
(`original/`, ONNX, GGUF).
Of a data set: one file, one split, or the only one there is, as `data.files.folder` reads a folder on this disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_tuning.data.files.folder import Listing as DataListing
from llm_tuning.data.files.folder import choose
from llm_tuning.errors import InputError
from llm_tuning.sources.listing import RemoteFile
from llm_tuning.sources.reasons import SourceRefused, Terminal
from llm_tuning.sources.uri import Source

CONFIGURATIONS = ("config.json", "tokenizer_config.json", "adapter_config.json")
"""Read before anything else is fetched: they say whether the rest is wanted."""
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")
_OTHER_WEIGHTS = re.compile(r"(?!consolidated|adapter_)[^/]*\.safetensors")
"""Shards that the index calls otherwise. `consolidated` is Mistral's second copy."""
_BESIDE = re.compile(
    r"config\.json|generation_config\.json|model\.safetensors\.index\.json"
    r"|tokenizer[\w.-]*\.(?:json|model)|vocab\.(?:json|txt)|merges\.txt|spiece\.model|tekken\.json"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.(?:jinja|json)|additional_chat_templates/[^/]+\.jinja"
    r"|(?:pre)?processor_config\.json|video_preprocessor_config\.json"
    r"|README\.md|(?:LICEN[CS]E|NOTICE|USE_POLICY|COPYING)[\w.-]*",
    re.IGNORECASE,
)
_MOST_NAMED = 5
_OTHER_FORMS = (
    ("GGUF", re.compile(r".*\.gguf|ggml-.*\.bin"), "the form of llama.cpp, on which no adapter can be trained here"),
    ("pickles", re.compile(r".*\.(?:bin|pt|pth|ckpt|pkl)"), "which can run code when they are loaded"),
    ("ONNX", re.compile(r"(?:.*/)?.*\.onnx"), "which cannot be trained"),
    ("the form of TensorFlow or Flax", re.compile(r"tf_model.*|flax_model.*|saved_model\.pb"), "which is not read"),
)
_ORIGINAL = "give the repository of the original model, with config.json and safetensors weights"


def select(source: Source, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the files of `source` that are taken; raises SourceRefused where it is not what it is given as."""
    return _model(source, files) if source.kind == "model" else _dataset(source, files)


def check_configurations(source: Source, objects: Mapping[str, Any]) -> None:
    """Refuse a model by what its small files hold: code of its own, or an adapter's configuration."""
    for name in ("config.json", "tokenizer_config.json"):
        value = objects.get(name)
        if isinstance(value, dict) and "auto_map" in value:
            rule = f"asks for code of its own (auto_map in {name}), which is never run"
            raise SourceRefused(
                Terminal.FORMAT, source, rule, "give a model whose architecture transformers itself has"
            )
    if (adapter := objects.get("adapter_config.json")) is not None:
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        raise _is_adapter(source, base if isinstance(base, str) else "")


def _model(source: Source, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    names = {file.name for file in files}
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    if not weights and _INDEX in names:
        weights = [name for name in names if _OTHER_WEIGHTS.fullmatch(name)]
    if not weights and not names.isdisjoint(_ADAPTER):
        if "adapter_config.json" not in names:
            raise _is_adapter(source, "")
        return tuple(file for file in files if file.name == "adapter_config.json")  # it names its base: see above
    _refuse_other_kinds(source, names)
    if not weights:
        raise _without_weights(source, sorted(names))
    if "config.json" not in names:
        rule = f"has weights and no config.json ({_some(sorted(names))})"
        raise SourceRefused(Terminal.FORMAT, source, rule, _ORIGINAL)
    if len(weights) > 1 and _INDEX in names:
        weights = [name for name in weights if name != "model.safetensors"]  # the shards are the whole already
    return tuple(file for file in files if file.name in weights or _BESIDE.fullmatch(file.name))


def _refuse_other_kinds(source: Source, names: set[str]) -> None:
    if "model_index.json" in names:
        rule = "is a diffusers pipeline, which makes images or sound"
        raise SourceRefused(Terminal.FORMAT, source, rule, "give a language model")
    if not names.isdisjoint({"modules.json", "config_sentence_transformers.json"}):
        rule = "is a sentence-transformers model, which makes embeddings and writes no text"
        raise SourceRefused(Terminal.FORMAT, source, rule, "give a language model")


def _without_weights(source: Source, names: list[str]) -> SourceRefused:
    for form, pattern, why in _OTHER_FORMS:
        if found := next((name for name in names if pattern.fullmatch(name)), None):
            rule = f"has weights as {form} only ({found}), {why}"
            return SourceRefused(Terminal.FORMAT, source, rule, _ORIGINAL)
    if found := next((name for name in names if name.endswith(".safetensors")), None):
        rule = f"has weights under another name ({found}), and neither model.safetensors nor {_INDEX}"
        return SourceRefused(Terminal.FORMAT, source, rule, _ORIGINAL)
    rule = f"has no weights: {_some(names)}" if names else "is empty"
    return SourceRefused(Terminal.FORMAT, source, rule, _ORIGINAL)


def _is_adapter(source: Source, base: str) -> SourceRefused:
    rule = f"is an adapter{f' of {base}' if base else ''}, not a base"
    give = f"hf://{base}" if base.count("/") == 1 else "its base"
    fix = f"give {give} here; an adapter that was trained here is {{field:model.adapter.model_id}}"
    return SourceRefused(Terminal.FORMAT, source, rule, f"{fix}, another one has to be merged into its base first")


def _dataset(source: Source, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    if source.file:
        found = tuple(file for file in files if file.name == source.file)
        if not found:
            rule = f"has no file {source.file}; it has {_some([file.name for file in files])}"
            raise SourceRefused(Terminal.NOT_FOUND, source, rule, "give the path of a file in it")
        return found
    if source.scheme == "https" or len(files) == 1:
        return tuple(files)
    listing = DataListing(source.repository, Path(), [Path(file.name) for file in files])
    try:
        chosen = {str(path) for path in choose(listing, source.split).files}
    except InputError as error:
        fix = f"name one split, {source.repository}?split=NAME, or one file, {source.repository}/FILE"
        raise SourceRefused(Terminal.FORMAT, source, error.problems[0].rule, fix) from None
    return tuple(file for file in files if file.name in chosen)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
