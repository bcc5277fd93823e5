"""Checkpoint folders that are either whole or not there.

A checkpoint is written into a temporary sibling, flushed to the disk and renamed; it is removed by renaming it away
first. So a folder named `checkpoint-<step>` is complete whenever the process was killed, and what a killed save or
removal left behind (a name that starts with a dot) goes with the next save. No torch in here: what a
checkpoint holds is the recipe's choice.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_NAME = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.(saving|removed)-.*")


def save_checkpoint(root: Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Have `write` fill the checkpoint of `step` (optimizer steps done) and keep the `keep` newest; returns its folder.

    A checkpoint of that step that is already there is whole and stays as it is. Errors of `write` come through,
    and nothing of the checkpoint is left then. One process at a time may save into `root`.
    """
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    final = root / f"checkpoint-{step}"
    if not final.exists():
        draft = root / f".saving-{step}"
        draft.mkdir()
        try:
            write(draft)
            flush_tree(draft)
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        flush(root)
    for _, old in _checkpoints(root)[:-keep]:
        doomed = old.rename(root / f".removed-{old.name}")
        shutil.rmtree(doomed, ignore_errors=True)
    return final


def latest_checkpoint(root: Path) -> tuple[int, Path] | None:
    """(optimizer steps done, folder) of the newest whole checkpoint under `root`, or None."""
    found = _checkpoints(root)
    return found[-1] if found else None


def flush(path: Path) -> None:
    """Have the system write `path`, a file or a folder's own entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Have the system write every file and folder under `folder` to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            flush(Path(parent, name))
        flush(Path(parent))


def _checkpoints(root: Path) -> list[tuple[int, Path]]:
    if not root.is_dir():
        return []
    named = ((_NAME.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in named if match is not None and path.is_dir())


def _remove_leftovers(root: Path) -> None:
    for path in root.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
