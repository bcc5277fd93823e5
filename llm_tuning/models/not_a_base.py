"""What people give for a base and is none: a hub name, an adapter, a GGUF, a cache, a checkpoint; and what to give.

Told by names of files and by small ones alone, so that the answer is there before anything is read. A folder that is a
base in spite of such files (weights beside a GGUF of them, a checkpoint with everything in it) is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.core.files import check_regular, open_regular, read_json
from llm_tuning.errors import Problem
from llm_tuning.models.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, MANIFEST

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
HUB_ADDRESS = re.compile(rf"(?:hf://|(?:https?://)?(?:huggingface\.co|hf\.co)/)({HUB_NAME.pattern})")
LFS_BYTES = 1024
"""A pointer of Git LFS is three lines."""
_LFS = b"version https://git-lfs.github.com/spec/"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".zst", ".xz", ".7z", ".nemo")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_LISTED = 3
_ORIGINAL = "give the model's folder with config.json and model.safetensors"


@dataclass(frozen=True)
class Folder:
    """A folder by the names in it."""

    path: Path
    names: frozenset[str]

    @classmethod
    def of(cls, path: Path) -> Folder:
        """List the folder; one that cannot be listed is empty."""
        try:
            return cls(path, frozenset(entry.name for entry in path.iterdir()))
        except OSError:
            return cls(path, frozenset())

    @property
    def is_base(self) -> bool:
        """It has what a base needs at least: these two are looked at more closely elsewhere."""
        return CONFIG in self.names and not self.names.isdisjoint(_WEIGHTS)

    def first(self, *patterns: str) -> str | None:
        """Return the first name, in order, that one of the patterns describes whole."""
        return next((name for name in sorted(self.names) if any(re.fullmatch(p, name) for p in patterns)), None)


def hub_fix(name: str) -> str:
    """Say how a model of the hub becomes a folder."""
    return f"it looks like a name on the hub: {{set:model.uri=hf://{name}}}"


def hub_name(text: str) -> str | None:
    """Return the hub's name that `text` is or leads to; None where it is a path."""
    address = HUB_ADDRESS.match(text)
    if address is not None:
        return address[1]
    return text if HUB_NAME.fullmatch(text) else None


def no_folder_problem(path: str | Path, where: str) -> Problem:
    """Build the problem of a base that is no folder."""
    place, give = Path(path), "give the folder that holds config.json and the weights"
    if not place.exists():
        name = hub_name(str(path))
        if name is not None and not place.parent.is_dir():
            return Problem(where, "does not exist", hub_fix(name))
        return Problem(where, "does not exist", give)
    if place.suffix == ".gguf":
        return _gguf(where, "is a GGUF file")
    if place.suffix == ".safetensors" or place.name == CONFIG:
        return Problem(where, "is a file, not a folder", f"give the folder that it lies in, {place.parent}")
    if place.suffix in _ARCHIVES:
        return Problem(where, "is an archive", "unpack it, and give the folder that holds config.json and the weights")
    return Problem(where, "is a file, not a folder", give)


def other_kind(path: Path, where: str, *, adapter_as: str = "") -> Problem | None:
    """Return the problem of a folder that is something else than a base; None: it is one, or nothing that is known.

    `adapter_as`: how an adapter is given to the caller's command.
    """
    folder = Folder.of(path)
    for find in _KINDS:
        if (problem := find(folder, where)) is not None:
            return problem
    if folder.is_base:
        return None
    if (problem := _adapter(folder, where, adapter_as)) is not None:
        return problem
    return next((problem for find in _WITHOUT_BASE if (problem := find(folder, where)) is not None), None)


def lfs_pointers(path: Path) -> list[str]:
    """List the files in the folder that are pointers of Git LFS, which stand for files that were never fetched."""
    return [entry.name for entry in sorted(path.iterdir()) if is_lfs_pointer(entry)]


def is_lfs_pointer(path: Path) -> bool:
    """Return whether the file is a pointer of Git LFS."""
    try:
        if check_regular(path) > LFS_BYTES:
            return False
        with open_regular(path) as stream:
            return stream.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _lfs(folder: Folder, where: str) -> Problem | None:
    found = lfs_pointers(folder.path)
    if not found:
        return None
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    rule = f"holds pointers of Git LFS in place of files: {', '.join(found[:_LISTED])}{more}"
    return Problem(where, rule, "fetch the files: `git lfs pull` in its repository")


def _diffusers(folder: Folder, where: str) -> Problem | None:
    if "model_index.json" not in folder.names:
        return None
    return Problem(where, "is a diffusers pipeline, which makes images or sound", "give a language model")


def _sentence_transformers(folder: Folder, where: str) -> Problem | None:
    if folder.names.isdisjoint({"modules.json", "config_sentence_transformers.json"}):
        return None
    rule = "is a sentence-transformers model, which makes embeddings and writes no text"
    return Problem(where, rule, "give a language model")


def _adapter(folder: Folder, where: str, adapter_as: str) -> Problem | None:
    if folder.names.isdisjoint({ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin"}):
        return None
    if ADAPTER_CONFIG not in folder.names and _is_checkpoint(folder):
        return _checkpoint(folder, where)
    base = _object(folder.path / ADAPTER_CONFIG).get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    give = f"give that base here{f', and the adapter as {adapter_as}' if adapter_as else ''}"
    if MANIFEST not in folder.names and adapter_as:
        give += "; one that was not trained here has to be merged into its base first (merge_and_unload() of PEFT)"
    return Problem(where, f"is an adapter{of}, not a base", give)


def _hub_cache(folder: Folder, where: str) -> Problem | None:
    name = folder.path.resolve().name
    if name.startswith("models--") and "snapshots" in folder.names:
        snapshots = [str(inner.path) for inner in _bases_below(folder.path / "snapshots")]
        known = "models--".join(name.split("models--")[1:]).replace("--", "/")
        give = f"give {_either(snapshots)}" if snapshots else f"it holds no whole snapshot: `hf download {known}`"
        return Problem(where, f"is the hub's cache of {known}, not the model itself", give)
    models = sorted(name for name in folder.names if name.startswith("models--"))
    if models or (folder.first("hub") and folder.path.name == "huggingface"):
        rule = f"is a cache of the hub{f' with {len(models)} models' if models else ''}"
        return Problem(where, rule, "give a folder below models--OWNER--NAME/snapshots/ in it")
    return None


def _unfinished(folder: Folder, where: str) -> Problem | None:
    downloads = folder.path / ".cache" / "huggingface" / "download"
    if folder.first(r".*\.incomplete") is None and not any(downloads.glob("*.incomplete")):
        return None
    return Problem(where, "is a download that has not been finished", "give the same `hf download` again: it goes on")


def _gguf_folder(folder: Folder, where: str) -> Problem | None:
    name = folder.first(r".*\.gguf", r"ggml-.*\.bin")
    return None if name is None else _gguf(where, f"holds GGUF weights ({name})")


def _gguf(where: str, rule: str) -> Problem:
    fix = f"GGUF is the form of llama.cpp, and no adapter can be trained or served on it here: {_ORIGINAL}"
    return Problem(where, rule, fix)


def _sharded_checkpoint(folder: Folder, where: str) -> Problem | None:
    if folder.first("zero_to_fp32.py", r"global_step\d+", r"(bf16_)?zero_pp_rank_.*\.pt", r"mp_rank_.*\.pt"):
        fix = "join them with its zero_to_fp32.py, beside the model's config.json and tokenizer"
        return Problem(where, "is a checkpoint of DeepSpeed, whose weights lie in parts", fix)
    if folder.first(r"pytorch_model_fsdp(_\d+)?(\.bin)?", r".*\.distcp"):
        fix = "join them with `accelerate merge-weights`, beside the model's config.json and tokenizer"
        return Problem(where, "is a checkpoint of FSDP, whose weights lie in parts", fix)
    if folder.first("latest_checkpointed_iteration.txt", r"iter_\d{7}"):
        return Problem(where, "is a checkpoint of Megatron", f"convert it to Hugging Face's form: {_ORIGINAL}")
    return None


def _is_checkpoint(folder: Folder) -> bool:
    return not folder.names.isdisjoint({"optimizer.pt", "trainer_state.json", "scheduler.pt", "training_args.bin"})


def _checkpoint(folder: Folder, where: str) -> Problem | None:
    if not _is_checkpoint(folder):
        return None
    fix = (
        "give the base that it trains; a run continues from its checkpoints by itself, under the same {field:model_id}"
    )
    return Problem(where, "is a checkpoint of a training, not a whole model", fix)


def _other_form(folder: Folder, where: str) -> Problem | None:
    """Find weights of another library."""
    for form, patterns in (
        ("Mistral's own form", (r"consolidated.*\.safetensors",)),
        ("Meta's own form", (r"consolidated\.\d+\.pth",)),
        ("the form of MLX", (r"weights.*\.npz",)),
        ("the form of ONNX", (r".*\.onnx", "onnx")),
        ("the form of Core ML", (r".*\.mlpackage", r".*\.mlmodelc")),
        ("the form of OpenVINO", (r"openvino_.*",)),
        ("the form of TensorRT", (r".*\.engine",)),
        ("the form of TensorFlow or Flax", (r"tf_model.*", r"flax_model.*", "saved_model.pb")),
    ):
        if name := folder.first(*patterns):
            return Problem(where, f"has weights in {form} only ({name})", _ORIGINAL)
    return None


def _no_index(folder: Folder, where: str) -> Problem | None:
    if CONFIG not in folder.names or (name := folder.first(r".*\.safetensors")) is None:
        return None
    rule = f"has weights under another name ({name}), and neither model.safetensors nor model.safetensors.index.json"
    return Problem(where, rule, "copy the index, too, or save the model again with save_pretrained()")


def _another_level(folder: Folder, where: str) -> Problem | None:
    """Find the base above or below a folder without config.json."""
    if CONFIG in folder.names:
        return None
    below = [str(inner.path) for inner in _bases_below(folder.path)]
    if below:
        return Problem(where, "holds no model itself", f"give the one in it: {_either(below)}")
    above = folder.path.resolve().parent
    if Folder.of(above).is_base:
        return Problem(where, "is a part of a model", f"give the whole: {above}")
    return None


def _bases_below(path: Path) -> Iterator[Folder]:
    for name in sorted(Folder.of(path).names):
        if (folder := Folder.of(path / name)).is_base:
            yield folder


def _either(paths: list[str]) -> str:
    return " or ".join(paths) if len(paths) <= _LISTED else f"{', '.join(paths[:_LISTED])} or another of them"


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


Find = Callable[[Folder, str], Problem | None]
_KINDS: tuple[Find, ...] = (_lfs, _diffusers, _sentence_transformers)
"""What no folder of a base may be."""
_WITHOUT_BASE: tuple[Find, ...] = (
    _hub_cache,
    _unfinished,
    _another_level,
    _gguf_folder,
    _sharded_checkpoint,
    _other_form,
    _checkpoint,
    _no_index,
)
"""What a folder may be that lacks what a base needs, the plainest first."""
