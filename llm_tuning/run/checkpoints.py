"""Checkpoint folders that are either whole or not there.

A checkpoint is written into a temporary sibling, flushed to the disk and renamed; it is removed by renaming it away
first. So a folder named `checkpoint-<step>` is complete whenever the process was killed, and what a killed save or
removal left behind (a name that starts with a dot) goes with the next save. What the disk or a network volume does to
a whole one later is found by `newest_whole`, from the sizes and hashes in `files.json`. No torch in here: what a
checkpoint holds is the recipe's choice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_tuning.core.files import flush, flush_tree, read_json, write_json
from llm_tuning.core.room import is_full, require_room, says_no_space, volume_full
from llm_tuning.errors import InputError, Problem

log = logging.getLogger(__name__)

FILES = "files.json"
"""Name, size and sha256 of every other file of a checkpoint."""
_FILES_BEFORE = (
    {"ppo_state.pt"},
    {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"},
)
"""What checkpoints without `files.json` hold, by the versions that wrote them: one of these sets."""

_NAME = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.(saving|removed)-.*")


def save_checkpoint(root: Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Have `write` fill the checkpoint of `step` (optimizer steps done) and keep the `keep` newest; returns its folder.

    A checkpoint of that step that is already there is whole and stays as it is. Raises TryAgain where the disk is full,
    other errors of `write` come through; nothing of the checkpoint is left then. One process at a time may save into
    `root`.
    """
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    final = root / f"checkpoint-{step}"
    if not final.exists():
        draft = root / f".saving-{step}"
        draft.mkdir()
        try:
            write(draft)
            write_json(draft / FILES, {path.name: _measured(path) for path in sorted(draft.iterdir())})
            flush_tree(draft)
            draft.rename(final)
        except BaseException as error:
            no_room = isinstance(error, Exception) and (is_full(root) or says_no_space(error))
            shutil.rmtree(draft, ignore_errors=True)
            if no_room:
                raise volume_full(root) from error
            raise
        flush(root)
    for _, old in _checkpoints(root)[:-keep]:
        doomed = old.rename(root / f".removed-{old.name}")
        shutil.rmtree(doomed, ignore_errors=True)
    return final


def latest_checkpoint(root: Path) -> tuple[int, Path] | None:
    """Return (optimizer steps done, folder) of the newest whole checkpoint under `root`, or None."""
    found = _checkpoints(root)
    return found[-1] if found else None


def newest_whole(root: Path) -> tuple[int, Path] | None:
    """Return `latest_checkpoint` with every byte checked: damaged newer ones are set aside, with a warning.

    Raises InputError where all are damaged: to begin again is for the user to say. One process at a time may do this
    in `root`, before any reads the checkpoints.
    """
    damaged: list[tuple[Path, str]] = []
    for step, folder in reversed(_checkpoints(root)):
        fault = find_damage(folder)
        if fault is not None:
            damaged.append((folder, fault))
            continue
        for bad, what in damaged:
            log.warning("checkpoint %s is damaged (%s): resuming from %s", bad, what, folder.name)
            bad.rename(
                root / f".removed-{bad.name}"
            )  # or the run, when it comes there again, would take it for its own
        return step, folder
    if not damaged:
        return None
    folders = "; ".join(f"{folder.name}: {what}" for folder, what in damaged)
    raise InputError(
        Problem(
            str(root), f"holds no whole checkpoint ({folders})", f"remove {root} to train from the first step again"
        )
    )


def require_room_beside(newest: Path) -> None:
    """Raise TryAgain where another checkpoint like `newest` has no room, once what killed saves left is removed.

    One process at a time may do this, as `save_checkpoint`.
    """
    _remove_leftovers(newest.parent)
    size = sum(path.stat().st_size for path in newest.iterdir())
    require_room(newest.parent, size, "a checkpoint of this run")


def find_damage(folder: Path) -> str | None:
    """Find what is wrong with the files of a checkpoint, None where every byte is as it was written."""
    try:
        written = read_json(folder / FILES)
        if written is None:
            return _damage_by_form(folder)
        for name, measured in written.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _measured(folder / name) != measured:
                return f"{name} is not as it was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{FILES} cannot be read: {error}"
    return None


def _damage_by_form(folder: Path) -> str | None:
    """Find damage as far as the files' own forms show it: for checkpoints of versions that wrote no `files.json`."""
    there = {path.name for path in folder.iterdir()}
    if missing := max(_FILES_BEFORE, key=lambda names: len(names & there)) - there:
        return f"{min(missing)} is missing"
    for name in sorted(there):
        try:
            _read_form(folder / name)
        except Exception as error:
            return f"{name} cannot be read: {error}"
    return None


def _read_form(path: Path) -> None:
    """Raise what the libraries raise where `path` is not whole by its form."""
    match path.suffix:
        case ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="np"):
                pass
        case ".pt" | ".pth":
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad is not None:
                raise ValueError(f"{bad} has another checksum")
        case ".json":
            json.loads(path.read_bytes())


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _checkpoints(root: Path) -> list[tuple[int, Path]]:
    if not root.is_dir():
        return []
    named = ((_NAME.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in named if match is not None and path.is_dir())


def _remove_leftovers(root: Path) -> None:
    for path in root.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
