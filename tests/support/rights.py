"""A test as somebody who may not do everything: also where it runs as root, as in CI."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

VERSION = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 (capget(2))."""
OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: for whom the modes of files do not count."""

Header = ctypes.c_uint32 * 2
"""The version, and which thread: 0 is this one."""
Sets = ctypes.c_uint32 * 6
"""Effective, permitted and inheritable capabilities, twice: the lower and the upper 32."""


@contextmanager
def modes_of_files_count() -> Iterator[None]:
    """Take from this thread what lets root read and write every file, until the block ends."""
    held = _capabilities()
    fewer = Sets(*held)
    fewer[0] &= ~OVERRIDES
    _call("capset", fewer)
    try:
        yield
    finally:
        _call("capset", held)


def _capabilities() -> ctypes.Array[ctypes.c_uint32]:
    held = Sets()
    _call("capget", held)
    return held


def _call(name: str, sets: ctypes.Array[ctypes.c_uint32]) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(Header(VERSION, 0), sets):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
