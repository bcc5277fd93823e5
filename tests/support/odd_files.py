"""What can stand on a shared volume in the place of a file, and what a reader must then do: end soon, with little."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SPARSE_BYTES = 3 * 2**30
MOST_MEMORY = 64 * 2**20


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # a socket's address holds 107 bytes, and pytest's folders are deep
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(SPARSE_BYTES)


ODD: dict[str, Callable[[Path], None]] = {
    "named pipe": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "3 GiB of nothing": _sparse,
    "nested": lambda path: path.write_text("[" * 200_000),
    "link to itself": lambda path: path.symlink_to(path.name),
}


def put(path: Path, form: str) -> None:
    """Put an odd thing in the place of whatever is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    ODD[form](path)


def soon(call: Callable[[], T], seconds: float = 10.0) -> T | Exception:
    """What `call` returns or raises; fails where it takes longer than `seconds` or much memory."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    tracemalloc.start()
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome, "it still reads"
    assert peak < MOST_MEMORY, f"it took {peak:,} bytes"
    result: T | Exception = outcome[0]
    return result
