"""Inspect a base model's folder without loading it: can it be trained, and which weights exactly are they?

Only safetensors weights and no code: pickled weights and `auto_map` modules run code of whoever made the folder.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.core.files import JSON_BYTES, file_hash, odd_files, read_json, temporary_beside, write_json
from llm_tuning.core.room import NO_SPACE, volume_full
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import CONFIG, TOKENIZER_CONFIG
from llm_tuning.models.not_a_base import no_folder_problem, other_kind
from llm_tuning.models.safetensors import read_header
from llm_tuning.sources.store import source_at

SAFETENSORS_INDEX = "model.safetensors.index.json"
INDEX_BYTES = 2**26
"""A base of a thousand experts has an index of 20 MB."""
_RESAVE = "give the folder that save_pretrained() wrote"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARED_INPUTS = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
"""Layers of one block that read the same tensor."""


@dataclass(frozen=True)
class BaseModel:
    """A base model that passed the checks."""

    path: Path
    name: str
    """How the base is called in the registry and by the server: see `base_name`."""
    architecture: str
    parameters: int
    weight_files: tuple[str, ...]
    has_fast_tokenizer: bool
    """Whether tokenizer.json is there, so that lengths can be checked without transformers."""


def inspect_base(path: str | Path, *, adapter_as: str = "") -> BaseModel:
    """Check a base model's folder; raises InputError with all that is wrong with it.

    `adapter_as` says how the caller's command takes an adapter, where one is given for the base.
    """
    folder = Path(path)
    where = f"model {path}"
    if not folder.is_dir():
        raise InputError(no_folder_problem(path, where))
    problems = odd_file_problems(folder, where)
    if problems:
        raise InputError(problems)
    other = other_kind(folder, where, adapter_as=adapter_as)
    if other is not None:
        raise InputError(other)
    config = read_object(folder / CONFIG, where, problems, missing=_RESAVE)
    tokenizer_config = read_object(folder / TOKENIZER_CONFIG, where, problems)
    for name, value in ((CONFIG, config), (TOKENIZER_CONFIG, tokenizer_config)):
        if "auto_map" in value:
            problems.append(
                Problem(
                    f"{where}: {name}",
                    "asks for code of its own (auto_map), which is never run",
                    "use a model whose architecture transformers itself has",
                )
            )
    weight_files = _weight_files(folder, where, problems)
    parameters = sum(_parameters(folder / name, where, problems) for name in weight_files)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        problems.append(
            Problem(where, "has no tokenizer", "save it there: AutoTokenizer.from_pretrained(...).save_pretrained(...)")
        )
    if problems:
        raise InputError(problems)
    architectures = config.get("architectures") or [config.get("model_type", "unknown")]
    return BaseModel(
        path=folder,
        name=base_name(folder),
        architecture=str(architectures[0]),
        parameters=parameters,
        weight_files=weight_files,
        has_fast_tokenizer=(folder / "tokenizer.json").exists(),
    )


def base_name(folder: Path) -> str:
    """Return the name of the source that a base was fetched from, else the last part of its path."""
    source = source_at(folder)
    return source.record.name if source is not None and source.record.kind == "model" else folder.resolve().name


def weight_hash(base: BaseModel, cache: Path) -> str:
    """Return the sha256 (hex) over the names and contents of the weight files.

    Remembered in `cache` by path, size and modification time, since reading a large base takes longer than starting.
    """
    remembered = _read_cache(cache)
    total = hashlib.sha256()
    for name in base.weight_files:
        path = (base.path / name).resolve()
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in remembered:
            remembered[key] = file_hash(path)
            write_json(cache, remembered)
        total.update(f"{name}\0{remembered[key]}\n".encode())
    return total.hexdigest()


def tensor_shapes(base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Read the shape of every weight by its name, from the headers alone."""
    headers = [read_header(base.path / name) for name in base.weight_files]
    return {name: tensor.shape for header in headers for name, tensor in header.items()}


def tensor_dtypes(base: BaseModel) -> dict[str, str]:
    """Read the type of every weight by its name, as safetensors calls it (`BF16`, `F8_E4M3`)."""
    headers = [read_header(base.path / name) for name in base.weight_files]
    return {name: tensor.dtype for header in headers for name, tensor in header.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a base that passed `inspect_base`."""
    config: dict[str, Any] = read_json(folder / "config.json")
    return config


def _read_cache(cache: Path) -> dict[str, str]:
    try:
        value = read_json(cache)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def odd_file_problems(folder: Path, where: str) -> list[Problem]:
    """List a problem for each entry that is no regular file: whoever loads the folder may open it and wait for ever."""
    return [
        Problem(f"{where}: {Path(odd.filename).name}", str(odd), "replace it with a regular file, or remove it")
        for odd in odd_files(folder)
    ]


def read_object(
    path: Path, where: str, problems: list[Problem], *, missing: str | None = None, most: int = JSON_BYTES
) -> dict[str, Any]:
    """Read the JSON object in `path`; {} with a problem where it is none, or is missing and `missing` gives the fix."""
    try:
        value = read_json(path, most=most)
    except (OSError, ValueError) as error:
        problems.append(Problem(f"{where}: {path.name}", f"cannot be read as JSON ({error})", "copy it again"))
        return {}
    if value is None and not path.exists():
        if missing is not None:
            problems.append(Problem(where, f"has no {path.name}", missing))
        return {}
    if not isinstance(value, dict):
        problems.append(Problem(f"{where}: {path.name}", "must hold a JSON object", "copy it again"))
        return {}
    return value


def _weight_files(folder: Path, where: str, problems: list[Problem]) -> tuple[str, ...]:
    if (folder / SAFETENSORS_INDEX).exists():
        index = read_object(folder / SAFETENSORS_INDEX, where, problems, most=INDEX_BYTES)
        weight_map = index.get("weight_map")
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            problems.append(
                Problem(where, f"lacks weight files of {SAFETENSORS_INDEX}: {', '.join(missing[:5])}", "copy them too")
            )
        return tuple(name for name in names if name not in missing)
    if (folder / "model.safetensors").is_file():
        return ("model.safetensors",)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        problems.append(
            Problem(
                where,
                f"has only pickled weights ({pickles[0]}), which can run code when they are loaded",
                "save it as safetensors: model.save_pretrained(folder)",
            )
        )
    else:
        problems.append(Problem(where, "has no weights (model.safetensors)", "copy the weights into the folder"))
    return ()


def _parameters(path: Path, where: str, problems: list[Problem]) -> int:
    """Count the parameters in a safetensors file by its header; a cut file is a problem."""
    try:
        return sum(math.prod(tensor.shape) for tensor in read_header(path).values())
    except (OSError, ValueError) as error:
        problems.append(Problem(f"{where}: {path.name}", f"is not a whole safetensors file ({error})", "copy it again"))
        return 0


def check_writable(folder: Path) -> None:
    """Make `folder` and see that files can be written there; raises InputError naming it, TryAgain on a full disk."""
    probe = temporary_beside(folder / "writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in NO_SPACE:
            raise volume_full(folder, str(error.strerror)) from None
        raise InputError(
            Problem(
                f"output_dir {folder}", f"cannot be written ({error.strerror})", "give another with {field:output_dir}"
            )
        ) from None
