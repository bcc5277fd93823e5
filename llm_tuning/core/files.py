"""Writing files so that a reader, or a crash, never sees half of one; reading others' files so that none harms us.

What lies on a shared volume was written by whoever mounts it. A FIFO in the place of a file would hang its reader for
ever, and a sparse file of gigabytes would take all its memory: neither is opened as if it were a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

JSON_BYTES = 2**24
"""The largest JSON file that is read as a whole, unless its reader says otherwise: read, it takes some 25 times this
in the worst case."""
_KINDS = {
    stat.S_IFIFO: "is a named pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}


class OddFile(OSError):  # noqa: N818 - what it is
    """What stands in a file's place is none, or is far larger than such a file can be; `strerror` says what it is."""

    def __init__(self, path: Path, rule: str) -> None:
        super().__init__(errno.EINVAL, rule, str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def expand_home(path: str) -> str:
    """Return `path` with the home folder for a leading `~`, which a shell leaves in `--flag=~/x` and in quotes."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # no such user
        return path


def temporary_beside(path: Path) -> Path:
    """Return an unused hidden name in the folder of `path`, to write to and then rename.

    The process id would not do: in containers that share a volume every process is number 1.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path` in one step: a temporary sibling, flushed to disk, then renamed.

    Folders that are missing on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    with temporary.open("x", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, at once; raises OddFile for what is none, OSError as `open` does."""
    check_regular(path)
    # Without O_NONBLOCK a FIFO that has taken its place meanwhile would hang us.
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        check_regular(path)
        raise OddFile(path, "is no regular file")
    return stream


def check_regular(path: Path, *, most: int | None = None) -> int:
    """Return the size of a regular file; raises OddFile if it is none or has over `most` bytes, OSError as `stat`."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OddFile(path, _KINDS.get(stat.S_IFMT(found.st_mode), "is no regular file"))
    if most is not None and found.st_size > most:
        raise _too_large(path, found.st_size, most)
    return found.st_size


def _too_large(path: Path, size: int, most: int) -> OddFile:
    return OddFile(path, f"has {size:,} bytes, and at most {most:,} are read")


def read_file(path: Path, *, most: int = JSON_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes; raises OddFile, or OSError as `open` does."""
    check_regular(path, most=most)
    with open_regular(path) as stream:  # perhaps another file already: writers replace theirs whole
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise _too_large(path, size, most)
        content = stream.read(size + 1)
    if len(content) > size:
        raise OddFile(path, "grows while it is read")
    return content


def read_text(path: Path, *, most: int = JSON_BYTES) -> str:
    """Read a regular file as UTF-8 text; raises ValueError for what is none, and as `read_file` does."""
    return read_file(path, most=most).decode()


def read_json(path: Path, *, most: int = JSON_BYTES) -> Any:
    """Read the JSON value in `path`, or None where there is no such file.

    Raises ValueError on half or foreign content, and OSError as `read_file` does.
    """
    try:
        return json.loads(read_file(path, most=most))
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def file_hash(path: Path, *, most: int | None = None) -> str:
    """Return the sha256 (hex) of one regular file; raises OddFile and OSError as `check_regular` does."""
    check_regular(path, most=most)
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def odd_files(folder: Path) -> Iterator[OddFile]:
    """Yield what in `folder` is neither a file nor a folder: a program that opens it may wait for ever."""
    for path in sorted(folder.iterdir()):
        try:
            check_regular(path)
        except OddFile as odd:
            yield odd
        except OSError:  # a folder, or a link that leads nowhere
            continue


def flush(path: Path) -> None:
    """Write `path`, a file or a folder's own entries, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Write every file and folder under `folder` to the disk (fsync)."""
    for parent, _, files in os.walk(folder):
        for name in files:
            flush(Path(parent, name))
        flush(Path(parent))
