"""Publish a finished model: one rename makes it visible, so a directory with a manifest is whole.

The stage lies on the same filesystem as its target. Everything in it is flushed to the disk and the manifest is
written last, before the rename; a process killed at any point leaves either no target or a whole one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_tuning.core.files import flush, flush_tree
from llm_tuning.core.room import NO_SPACE, volume_full
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import MANIFEST
from llm_tuning.models.manifest import Manifest, file_hashes, read_manifest, write_manifest

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_whole(folder: Path) -> bool:
    """Return whether `folder` is a published model, by its manifest alone: `Registry.verify` compares the contents."""
    return (folder / MANIFEST).is_file()


def publish(stage: Path, target: Path, manifest: Manifest) -> Manifest:
    """Make `stage` the model `target` in one step and return its manifest, with `files` and `size` filled in.

    Safe to repeat after a crash: a whole target of the same configuration hash is the result already, and `stage`,
    which may be gone, is left alone. Raises InputError, and overwrites nothing, when something else has the target's
    name or the disk is not writable, and TryAgain when it is full.
    """
    published = _already(target, manifest)
    if published is not None:
        return published
    with storage_errors(target.parent):
        for leftover in stage.glob(f".{MANIFEST}.*.tmp"):  # of a process killed while it wrote the manifest
            leftover.unlink()
        files = file_hashes(stage)
        size = sum((stage / name).stat().st_size for name in files)
        manifest = manifest.model_copy(update={"files": files, "size": size})
        write_manifest(stage, manifest)
        flush_tree(stage)
        try:
            stage.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            published = _already(target, manifest)  # another process took the name since the check above
            if published is None:
                raise
            return published
        flush(target.parent)
        flush(stage.parent)
    return manifest


def _already(target: Path, manifest: Manifest) -> Manifest | None:
    """Return the manifest of a `target` that is this very model, None if the name is free; raises InputError else."""
    if not os.path.lexists(target):
        return None
    there = read_manifest(target)
    if there is None:
        rule = f"is there already and holds no {MANIFEST}, so it was not made by tune-llm"
        raise InputError(Problem(str(target), rule, "move it away, or give another {field:model_id}"))
    if there.config_hash != manifest.config_hash:
        rule = (
            f"is a finished model of another configuration ({there.config_hash[:12]}, not {manifest.config_hash[:12]})"
        )
        raise InputError(Problem(str(target), rule, "give another {field:model_id}"))
    return there


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn an unwritable disk into an InputError, a full one into a TryAgain that names `where`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise volume_full(where, str(error.strerror)) from error
        if error.errno in _NOT_WRITABLE:
            name = f" of {error.filename}" if error.filename and str(error.filename) != str(where) else ""
            rule = f"cannot be written ({error.strerror}{name})"
            raise InputError(
                Problem(str(where), rule, "give another with {field:output_dir}", field="output_dir")
            ) from error
        raise
