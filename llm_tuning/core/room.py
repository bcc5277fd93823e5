"""Room on a disk: whether an error comes from a full one, and what is raised for it.

Libraries hide the system's error. safetensors keeps its words; torch says `unexpected pos 387712 vs 387600`, and by
the time that this is looked into, what was half written is removed and there is room again. So whoever removes it asks
first.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llm_tuning.errors import TryAgain

VOLUME_FULL = "VolumeFull"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
FULL_BYTES = 256 * 1024
"""A disk with less room than this is full: a run writes little at a time that is smaller."""


def is_full(folder: Path) -> bool:
    """Return whether the disk of `folder` has no room; False for one that is not there."""
    return folder.exists() and shutil.disk_usage(folder).free < FULL_BYTES


def says_no_space(error: BaseException) -> bool:
    """Return whether it, or one that it came from, is the system's for a full disk or a used up quota."""
    return any(
        (isinstance(link, OSError) and link.errno in NO_SPACE)
        or any(os.strerror(number) in str(link) for number in NO_SPACE)
        for link in _with_origins(error)
    )


def volume_full(folder: Path, found: str = "") -> TryAgain:
    """Build the error for no room in `folder`, a part of the output; `found` says how much there is and is needed."""
    where = f"{{field:output_dir}}: no space is left in {folder}{f' ({found})' if found else ''}"
    return TryAgain(VOLUME_FULL, f"{where}; make room there: the next start goes on from the last checkpoint")


def require_room(folder: Path, size: int, what: str) -> None:
    """Raise TryAgain where `size` bytes, which `what` takes, have no room in `folder`."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < size:  # some network file systems know no sizes, and say 0 of 0
        raise volume_full(folder, f"{what} takes {_mib(size)}, {_mib(usage.free)} are free")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _with_origins(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
