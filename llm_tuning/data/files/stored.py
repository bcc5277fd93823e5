"""One file of a data set as it lies on the disk: opened as a stream of its content, unpacked and hashed on the way.

What is compressed unfolds in bounded memory, and not without end: a few bytes of zstd can be terabytes of blanks.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from llm_tuning.errors import InputError, Problem

if TYPE_CHECKING:
    import _hashlib

    from _typeshed import WriteableBuffer

Compression = Literal["gzip", "zstd"]
MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

MOST_UNFOLDED = 1000
"""Bytes of content at most to a byte of the file: gzip reaches it with one letter alone, text comes to a tenth."""
LEAST_UNFOLDED_BYTES = 64 << 20
"""What a file of any size may unfold to."""
_BUFFER_BYTES = 1 << 18


@dataclass
class StoredFile:
    """A file and how its content is packed; `digest` hashes its bytes as they lie there, when it is read."""

    path: Path
    compression: Compression | None = None
    digest: _hashlib.HASH = field(default_factory=hashlib.sha256)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the content as a stream and begin the hash again; raises InputError while it is read."""
        self.digest = hashlib.sha256()
        with file_errors(self.path), self.path.open("rb", buffering=0) as raw:
            stored = io.BufferedReader(_Hashed(raw, self.digest), _BUFFER_BYTES)
            if self.compression is None:
                yield stored
                return
            limit = max(LEAST_UNFOLDED_BYTES, MOST_UNFOLDED * self.path.stat().st_size)
            unpacked = _Unpacked(self.path, _unpacker(stored, self.compression), limit)
            yield io.BufferedReader(unpacked, _BUFFER_BYTES)

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Give a path where the content lies for readers that seek: the file's own, or that of an unpacked copy."""
        if self.compression is None:
            with file_errors(self.path):
                yield self.path
            return
        with tempfile.NamedTemporaryFile(prefix="llm-tuning-") as copy:
            with self.open() as stream:
                shutil.copyfileobj(stream, copy, _BUFFER_BYTES)
            copy.flush()
            yield Path(copy.name)

    def hash(self) -> str:
        """Return the sha256 (hex) of the file's bytes, read to its end; raises InputError."""
        with file_errors(self.path), self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of a file into an InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(Problem(str(path), "does not exist", "check the path of the dataset")) from None
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror or error}")) from None


def _unpacker(stored: BinaryIO, compression: Compression) -> BinaryIO:
    if compression == "gzip":
        return cast("BinaryIO", gzip.GzipFile(fileobj=stored, mode="rb"))
    import pyarrow as pa  # Python has its own zstd from 3.14 on

    return cast("BinaryIO", pa.CompressedInputStream(pa.PythonFile(stored, "r"), "zstd"))


class _Hashed(io.RawIOBase):
    """A file that adds what is read of it to a hash."""

    def __init__(self, file: io.FileIO, digest: _hashlib.HASH) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        size = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:size])
        return size


class _Unpacked(io.RawIOBase):
    """The content of a compressed file, up to `limit` bytes of it."""

    def __init__(self, path: Path, unpacker: BinaryIO, limit: int) -> None:
        self._path, self._unpacker = path, unpacker
        self._left = self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer)
        try:
            content = self._unpacker.read(len(into))
        except EOFError:
            raise self._error("ends in the middle: the file is cut off") from None
        except (zlib.error, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            cut = "truncated" in str(error).lower()
            raise self._error("ends in the middle: the file is cut off" if cut else "is damaged") from None
        self._left -= len(content)
        if self._left < 0:
            rule = f"unfolds to more than {self._limit >> 20:,} MiB from {self._path.stat().st_size:,} bytes"
            raise InputError(Problem(str(self._path), rule, "unpack it and look what it holds"))
        into[: len(content)] = content
        return len(content)

    def _error(self, rule: str) -> InputError:
        return InputError(Problem(str(self._path), rule, "copy or write the file again"))
