"""Opens the file of a data set and streams its rows: JSON array, JSON Lines or Parquet, by its content.

The row number is the line number in JSON Lines (what an editor shows) and the 1-based index in arrays and Parquet.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from llm_tuning.data.json_stream import BOM, Row, read_json_array, read_json_lines
from llm_tuning.data.parquet import read_parquet
from llm_tuning.errors import InputError, Problem

Format = Literal["json", "jsonl", "parquet"]
FORMAT_NAMES: dict[Format, str] = {"json": "JSON array", "jsonl": "JSON Lines", "parquet": "Parquet"}

_PARQUET_MAGIC = b"PAR1"
_USE_UTF8 = "save it as a JSON array, JSON Lines (both UTF-8) or Parquet"
_OTHER_CONTENT = (
    (b"\xff\xfe", "is UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16", "save it as UTF-8"),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it: gunzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it: unzstd"),
    (b"PK\x03\x04", "is a zip archive", "unpack it"),
)


class DatasetFile:
    """The file of a data set; iterate it once. Raises InputError for what makes the whole file unusable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.format: Format = detect_format(path)
        self._digest = hashlib.sha256()

    @property
    def numbering(self) -> str:
        """What a row number counts in this file."""
        return "line numbers" if self.format == "jsonl" else "positions, from 1"

    @property
    def sha256(self) -> str:
        """Hash (hex) of the file's bytes as they were read; only right after all rows were read."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Row]:
        with _file_errors(self.path), self.path.open("rb") as stream:
            match self.format:
                case "json":
                    yield from read_json_array(self.path, stream, self._digest.update)
                case "jsonl":
                    yield from read_json_lines(self.path, stream, self._digest.update)
                case "parquet":
                    yield from read_parquet(self.path)
                    while chunk := stream.read(1 << 20):
                        self._digest.update(chunk)


def data_hash(path: Path) -> str:
    """Hash the bytes of a data set's file: sha256 (hex); raises InputError if it cannot be read."""
    with _file_errors(path):
        _format_of(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(Problem(str(path), "does not exist", "check the path of the dataset")) from None
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror or error}")) from None


def detect_format(path: Path) -> Format:
    """Detect a file's format by its first bytes; raises InputError for what holds no rows, or cannot be read."""
    with _file_errors(path):
        return _format_of(path)


def _format_of(path: Path) -> Format:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(Problem(str(path), "is a folder", "give the dataset file in it"))
    if not stat.S_ISREG(mode):
        raise InputError(Problem(str(path), "is not a regular file", "write the rows to a file first"))
    with path.open("rb") as stream:
        head, line, column = _content_start(stream)
    if not head:
        raise InputError(Problem(str(path), "is empty", "give a file with at least 2 rows"))
    if head.startswith(_PARQUET_MAGIC):
        return "parquet"
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{"):
        return "jsonl"
    for magic, rule, fix in _OTHER_CONTENT:
        if head.startswith(magic):
            raise InputError(Problem(str(path), rule, fix))
    rule = "is not JSON: a row list starts with [ and a row with {"
    raise InputError(Problem(f"{path}, line {line}, column {column}", rule, _USE_UTF8))


def _content_start(stream: BinaryIO) -> tuple[bytes, int, int]:
    """Return the first bytes that are neither BOM nor white space (b"": there are none), with their line and column."""
    head = stream.read(1 << 16).removeprefix(BOM)
    line, column = 1, 1
    while head:
        content = head.lstrip()
        blank = head[: len(head) - len(content)]
        line += blank.count(b"\n")
        column = len(blank) - blank.rfind(b"\n") if b"\n" in blank else column + len(blank)
        if content:
            return content, line, column
        head = stream.read(1 << 16)
    return b"", line, column
