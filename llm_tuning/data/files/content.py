"""What a file holds, by its first bytes and never by its name; what cannot be read is refused with its own name."""

from __future__ import annotations

import re
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from llm_tuning.data.files.csv_header import HEAD_BYTES, find_delimiter
from llm_tuning.data.files.json_text import BOM
from llm_tuning.data.files.stored import MAGIC, StoredFile, file_errors
from llm_tuning.errors import InputError, Problem

Format = Literal["json", "jsonl", "parquet", "csv", "tsv", "arrow"]
FORMAT_NAMES: dict[Format, str] = {
    "json": "JSON array",
    "jsonl": "JSON Lines",
    "parquet": "Parquet",
    "csv": "CSV",
    "tsv": "TSV",
    "arrow": "Arrow",
}
_UNPACK = "unpack it, and give a file or folder in it"
_SAVE_UTF8 = "save it as UTF-8"
_SAVE_ROWS = "save it as JSON Lines, a JSON array, CSV with a header row (all UTF-8) or Parquet"
_BINARY: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\xff\xfe\x00\x00", "is UTF-32", _SAVE_UTF8),
    (0, b"\x00\x00\xfe\xff", "is UTF-32", _SAVE_UTF8),
    (0, b"\xff\xfe", "is UTF-16", _SAVE_UTF8),
    (0, b"\xfe\xff", "is UTF-16", _SAVE_UTF8),
    (0, b"\x1f\x8b", "is compressed twice", "unpack it once"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed twice", "unpack it once"),
    (257, b"ustar", "is a tar archive", _UNPACK),
    (0, b"BZh", "is compressed with bzip2", "unpack it, or compress it with gzip or zstd"),
    (0, b"\xfd7zXZ\x00", "is compressed with xz", "unpack it, or compress it with gzip or zstd"),
    (0, b"\x04\x22\x4d\x18", "is compressed with lz4", "unpack it, or compress it with gzip or zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", _UNPACK),
    (0, b"Rar!", "is a rar archive", _UNPACK),
    (0, b"PARE", "is an encrypted Parquet file", "decrypt it"),
    (0, b"FEA1", "is a Feather file of version 1", "save it as Parquet"),
    (0, b"ORC", "is an ORC file", "save it as Parquet"),
    (0, b"Obj\x01", "is an Avro file", "save it as JSON Lines or Parquet"),
    (0, b"SQLite format 3", "is an SQLite database", "export the rows as JSON Lines or CSV"),
    (0, b"\x89HDF", "is an HDF5 file", "save the rows as JSON Lines or Parquet"),
    (0, b"\x93NUMPY", "is a NumPy array", "save the rows as JSON Lines or Parquet"),
    (0, b"\xd0\xcf\x11\xe0", "is an old Office file (.xls, .doc)", "save it as CSV (UTF-8)"),
    (0, b"%PDF", "is a PDF", _SAVE_ROWS),
    (0, b"GGUF", "is a GGUF model", "give the dataset's file"),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_IN_ZIP = (
    ("xl/", "is an Excel workbook", "save it as CSV (UTF-8), one sheet, column names in the first row"),
    ("word/", "is a Word document", _SAVE_ROWS),
    ("content.xml", "is an OpenDocument file", "save it as CSV (UTF-8), column names in the first row"),
    ("archive/data.pkl", "is a PyTorch file", "save the rows as JSON Lines or Parquet"),
    ("", "is a zip archive", _UNPACK),
)


@dataclass
class DataFile:
    """A file of rows, and how they are written in it."""

    stored: StoredFile
    format: Format
    delimiter: str = ""
    """Of CSV and TSV."""
    line: int = 0
    """The line of the row read last, where its number does not say so."""


def look_at(path: Path, member: str = "") -> DataFile:
    """Find out what a file holds; `member` is the list wanted of its object. Raises InputError for what has no rows."""
    with file_errors(path):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(Problem(str(path), "is not a regular file", "write the rows to a file first"))
        with path.open("rb") as stream:
            start = stream.read(4)
        compression = next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)
    stored = StoredFile(path, compression)
    with stored.open() as stream:
        head, line, column = _content_start(stream)
    if not head:
        raise InputError(Problem(str(path), "is empty", "give a file with at least 2 rows"))
    if (problem := _binary(path, head)) is not None:
        raise InputError(problem)
    return _readable(stored, head, member, f"{path}, line {line}, column {column}")


def _readable(stored: StoredFile, head: bytes, member: str, where: str) -> DataFile:
    if member and not head.startswith(b"{"):
        fix = f"leave #{member} away: it names a list in one JSON object, or a split of a folder"
        raise InputError(Problem(str(stored.path), "has no names for its rows", fix))
    if head.startswith(b"PAR1"):
        return DataFile(stored, "parquet")
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return DataFile(stored, "arrow")
    if head.startswith(b"["):
        return DataFile(stored, "json")
    if head.startswith(b"{"):
        return DataFile(stored, "json" if member else "jsonl")
    with stored.open() as stream:
        delimiter, rule, fix = find_delimiter(stream.read(HEAD_BYTES))
    if not delimiter:
        no_text = "is no text, and no format that is known" if b"\0" in head else ""
        rule = rule or no_text or "is not JSON: a row list starts with [ and a row with {"
        raise InputError(Problem(where, rule, fix or _SAVE_ROWS))
    return DataFile(stored, "tsv" if delimiter == "\t" else "csv", delimiter)


def _binary(path: Path, head: bytes) -> Problem | None:
    if head.startswith(_LFS):
        return Problem(str(path), "is a Git LFS pointer, not the file itself", "fetch it: git lfs pull")
    if head.startswith(b"PK\x03\x04"):
        return Problem(str(path), *_zip(path))
    for at, magic, rule, fix in _BINARY:
        if head.startswith(magic, at):
            return Problem(str(path), rule, fix)
    if _PICKLE.match(head):
        return Problem(
            str(path), "is a pickle, which runs code when it is read", "save the rows as JSON Lines or Parquet"
        )
    if head.lstrip()[:1] == b"<":
        return Problem(
            str(path), "is HTML or XML, often an error page of a download", "download it again, or " + _SAVE_ROWS
        )
    if 0 in head[:2] and max(head[1::2].count(0), head[::2].count(0)) > len(head) // 4:
        return Problem(str(path), "is UTF-16 without its mark", _SAVE_UTF8)
    return None


def _zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        names = []
    return next((rule, fix) for part, rule, fix in _IN_ZIP if not part or any(part in name for name in names))


def _content_start(stream: BinaryIO) -> tuple[bytes, int, int]:
    """Return the first bytes that are neither BOM nor white space (b"": there are none), with their line and column."""
    head = stream.read(HEAD_BYTES).removeprefix(BOM)
    line, column = 1, 1
    while head:
        content = head.lstrip()
        blank = head[: len(head) - len(content)]
        line += blank.count(b"\n")
        column = len(blank) - blank.rfind(b"\n") if b"\n" in blank else column + len(blank)
        if content:
            return content, line, column
        head = stream.read(HEAD_BYTES)
    return b"", line, column
