"""A folder written by `save_to_disk` of the `datasets` library: which Arrow files hold its rows, as it says itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.data.faults import shown
from llm_tuning.data.files.stored import file_errors
from llm_tuning.errors import InputError, Problem

_DICT, _STATE = "dataset_dict.json", "state.json"
_SAVE_AGAIN = "save it again with save_to_disk()"


@dataclass(frozen=True)
class Saved:
    """The files of a saved data set, in the order of its rows."""

    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()


def read_saved(folder: Path, split: str) -> Saved | None:
    """Return the files of `split` ("": the only one there is), or None for a folder of another kind.

    Raises InputError.
    """
    if (folder / _DICT).is_file():
        return _of_dict(folder, split)
    if not (folder / _STATE).is_file():
        return None
    state = _read(folder / _STATE)
    own = state.get("_split")
    if split and split != own:
        fix = f"give {folder}" + (f", or {folder}#{shown(own)}" if isinstance(own, str) else " without the #")
        raise InputError(Problem(str(folder), f"is one split, not `{shown(split)}`", fix))
    return _of_state(folder, state)


def _of_dict(folder: Path, split: str) -> Saved:
    splits = _read(folder / _DICT).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) and name and "/" not in name for name in splits):
        raise InputError(Problem(str(folder / _DICT), "names no splits", _SAVE_AGAIN))
    exact = " or ".join(f"{folder}#{shown(name)}" for name in splits)
    if split and split not in splits:
        raise InputError(Problem(str(folder), f"has no split `{shown(split)}`", f"name one that it has: {exact}"))
    if not split and len(splits) != 1:
        said = " and ".join(map(shown, splits))
        raise InputError(Problem(str(folder), f"holds the splits {said}", f"name one: {exact}"))
    name = split or splits[0]
    found = _of_state(folder / name, _read(folder / name / _STATE))
    return Saved(found.files, (*found.skipped, *(str(folder / other) for other in splits if other != name)))


def _of_state(folder: Path, state: dict[str, Any]) -> Saved:
    if state.get("_indices_data_files") or state.get("_indices_files"):
        rule = "keeps the order of its rows in a file of its own"
        raise InputError(Problem(str(folder), rule, "load it, then flatten_indices() and save_to_disk()"))
    listed = state.get("_data_files")
    names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        raise InputError(Problem(str(folder / _STATE), "names no files of rows", _SAVE_AGAIN))
    files = tuple(folder / str(name) for name in names)
    if missing := [file for file in files if not file.is_file()]:
        rule = f"is not whole: {len(missing):,} of {len(files):,} files are missing, {missing[0].name} first"
        raise InputError(Problem(str(folder), rule, "copy or save it again"))
    others = (file for file in sorted(folder.iterdir()) if file not in files)
    return Saved(files, tuple(str(file) for file in others if file.suffix != ".json"))


def _read(path: Path) -> dict[str, Any]:
    with file_errors(path):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(Problem(str(path), "is not the JSON object that save_to_disk() writes", _SAVE_AGAIN))
    return value
