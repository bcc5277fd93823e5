"""What is wrong with models: files changed or gone, a base that is no longer the one, an index that says otherwise."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_tuning.core.files import file_hash
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import BaseModel, inspect_base, weight_hash
from llm_tuning.models.layout import BASE_HASHES, CACHE_FOLDER, MANIFEST, REGISTRY
from llm_tuning.models.manifest import Manifest, read_model
from llm_tuning.models.registry import Index
from llm_tuning.models.registry_entries import FINE_TUNED, PEOPLES_FIELDS, Bases, build_entry, is_derived

_NOT_COMPARED = {*PEOPLES_FIELDS, "path", "config_file"}
"""People edit the first; the others hold the name of the models directory, which may have been moved."""


def verify_models(models_dir: Path, index: Index, model_id: str | None = None) -> list[Problem]:
    """Compare all models (or one) in `models_dir` with their manifests and with `index`, a healed one.

    Every file is hashed, and each base once. Files that a manifest does not list are no problem.
    """
    problems: list[Problem] = []
    entries = {entry["model_id"]: entry for entry in index.entries}
    bases = Bases(index.entries)
    users: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(os.listdir(models_dir)) if models_dir.is_dir() else []:
        folder = models_dir / name
        if name.startswith(".") or not folder.is_dir() or model_id not in (None, name):
            continue
        try:
            manifest = _whole(folder)
        except InputError as error:
            problems += error.problems
            continue
        problems += _files(folder, manifest)
        want = build_entry(manifest, models_name=models_dir.name, base_model_id=bases.of(manifest))
        problems += _entry(entries.get(name), {**want})
        users[manifest.base.path, manifest.base.weight_hash].append(name)
    problems += _index(models_dir, index, model_id)
    for (path, want_hash), names in users.items():
        problems += _base(models_dir, path, want_hash, names)
    return problems


def _whole(folder: Path) -> Manifest:
    manifest = read_model(folder)
    if manifest is None:
        rule = f"has no {MANIFEST}: it is not whole and is never served"
        raise InputError(Problem(str(folder), rule, "remove it, or copy it again whole"))
    return manifest


def _files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for name, want in manifest.files.items():
        path = folder / name
        try:
            changed = file_hash(path, most=manifest.size or None) != want
        except OSError as error:
            yield Problem(str(path), f"cannot be read ({error.strerror})", "copy the directory again")
        else:
            if changed:
                yield Problem(str(path), f"is not the file that was published (sha256 {want[:12]})", "copy it again")


def _entry(entry: dict[str, Any] | None, want: dict[str, Any]) -> Iterator[Problem]:
    """Yield where the index differs from the manifest, by which the entry is `want`."""
    if entry is None:
        yield Problem(want["model_id"], "is not in registry.json", "the file could not be written: see the warning")
        return
    for name, value in want.items():
        if name not in _NOT_COMPARED and entry.get(name) != value:
            rule = f"{name} is {entry.get(name)!r} in registry.json and {value!r} by the manifest"
            yield Problem(want["model_id"], rule, "run `registry rebuild`")


def _index(models_dir: Path, index: Index, model_id: str | None) -> Iterator[Problem]:
    """Yield what is wrong with entries by themselves."""
    counts = Counter(entry["model_id"] for entry in index.entries)
    for name, count in counts.items():
        if count > 1 and model_id in (None, name):
            yield Problem(name, f"is in registry.json {count} times", "remove all but one by hand")
    for entry in index.entries:
        name, base = entry["model_id"], entry.get("base_model_id")
        if model_id not in (None, name):
            continue
        if entry.get("model_type") == FINE_TUNED and is_derived(entry) and not (models_dir / name).is_dir():
            yield Problem(name, "is in registry.json, but its directory is gone", "bring it back or `registry rebuild`")
        if base is not None and str(base) not in counts:
            yield Problem(name, f"belongs to base {base!r}, which is not in registry.json", "add the base by hand")
    nameless = len(index.models) - len(index.entries)
    if model_id is None and nameless:
        yield Problem(str(models_dir / REGISTRY), f"has {nameless} entries without a model_id", "give them one")


def _base(models_dir: Path, path: str, want: str, names: list[str]) -> list[Problem]:
    """Check that the base which the models `names` need is still there, with the weights it had."""
    needed = f"needed by {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    folder = _base_folder(models_dir, path)
    try:
        got = _weight_hash(models_dir, inspect_base(folder))
    except InputError as error:
        return [Problem(p.where, f"{p.rule} ({needed})", p.fix) for p in error.problems]
    except OSError as error:
        return [Problem(f"model {folder}", f"cannot be read ({error.strerror}; {needed})")]
    if got == want:
        return []
    rule = f"has other weights ({got[:12]}) than at training ({want[:12]}; {needed})"
    fix = "restore the base it was trained on; the adapter does not work with another"
    return [Problem(f"model {folder}", rule, fix)]


def _base_folder(models_dir: Path, path: str) -> Path:
    """Resolve a base path: from the current directory, else from the folder that holds the models."""
    beside = models_dir.absolute().parent / path
    return beside if beside.is_dir() and not Path(path).is_dir() else Path(path)


def _weight_hash(models_dir: Path, base: BaseModel) -> str:
    """Return the base's weight hash, cached where runs cache it, or nowhere when that is read-only."""
    cache = models_dir / CACHE_FOLDER / BASE_HASHES
    if os.access(cache.parent, os.W_OK):
        return weight_hash(base, cache)
    with tempfile.TemporaryDirectory() as scratch:
        return weight_hash(base, Path(scratch) / cache.name)
