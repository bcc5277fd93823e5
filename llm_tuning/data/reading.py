"""The rows of a data set as one stream: of a file, of a list inside it, of a folder or of a glob (`data.files`).

A row number is the line number in JSON Lines (what an editor shows) and the 1-based position elsewhere. Over several
files it counts on, as in one file put together from them; `place` says the file and the row in it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from llm_tuning.data.files.arrow import read_arrow
from llm_tuning.data.files.content import FORMAT_NAMES, DataFile, Format, look_at
from llm_tuning.data.files.csv_rows import read_csv
from llm_tuning.data.files.json_lines import read_json_lines
from llm_tuning.data.files.json_list import read_json_array, read_json_member
from llm_tuning.data.files.json_object import holds_columns, holds_rows, object_problem, outline_of
from llm_tuning.data.files.locate import Located, locate, split_off
from llm_tuning.data.files.parquet import read_parquet
from llm_tuning.data.files.rows import Row
from llm_tuning.data.files.stored import Compression, file_errors
from llm_tuning.errors import InputError, Problem

__all__ = [
    "FORMAT_NAMES",
    "DatasetFile",
    "Format",
    "Row",
    "check_readable",
    "data_hash",
    "evaluation_path",
    "one_object_problem",
    "split_off",
]


class DatasetFile:
    """A data set; iterate it once. Raises InputError for what makes the whole of it unusable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._located = locate(path)
        self._files = _look_at_all(self._located)
        self._before: list[int] = []
        """Row numbers used up by the files before each one that was begun."""
        self._digests: list[str] = []

    @property
    def format(self) -> Format:
        """How the rows are written, in all files alike."""
        return self._files[0].format

    @property
    def compression(self) -> Compression | None:
        """How the files are compressed, all alike."""
        return self._files[0].stored.compression

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the rows, in order."""
        return tuple(file.stored.path for file in self._files)

    @property
    def skipped(self) -> tuple[str, ...]:
        """What lies beside the files and is not read: paths."""
        read = set(self.files)
        return (*self._located.skipped, *(str(file) for file in self._located.files if file not in read))

    @property
    def numbering(self) -> str:
        """What a row number counts in this data set."""
        kind = "line numbers" if self.format == "jsonl" else "positions, from 1"
        return kind if len(self._files) == 1 else f"{kind}, in the file named"

    @property
    def sha256(self) -> str:
        """Hash (hex) of the bytes as they were read (see `data_hash`); only right after all rows were read."""
        return _of_all(self._digests, self._located.member)

    @property
    def line(self) -> int:
        """The line on which the row yielded last begins, in a CSV; 0 elsewhere."""
        return self._files[len(self._before) - 1].line

    def place(self, number: int) -> str:
        """Return where the row of this number is: `row 3`, or `data/part-2.jsonl row 3` in one of several files."""
        if len(self._files) == 1:
            return f"row {number}"
        file = bisect_right(self._before, number - 1) - 1
        return f"{self.files[file]} row {number - self._before[file]}"

    def __iter__(self) -> Iterator[Row]:
        last = 0
        for file in self._files:
            before = last
            self._before.append(before)
            if before == 0:
                for last, row in self._rows_of(file):
                    yield last, row
            else:
                for number, row in self._rows_of(file):
                    last = before + number
                    yield last, row
            self._digests.append(_digest(file))

    def _rows_of(self, file: DataFile) -> Iterator[Row]:
        match file.format:
            case "json" if self._located.member:
                return read_json_member(file.stored, self._located.member)
            case "json":
                return read_json_array(file.stored)
            case "jsonl":
                return read_json_lines(file.stored)
            case "parquet":
                return read_parquet(file.stored)
            case "arrow":
                return read_arrow(file.stored)
            case "csv" | "tsv":
                return read_csv(file)


def one_object_problem(path: Path, *, is_row: bool, has_shape: bool) -> Problem | None:
    """Build the problem of a file with one line: what the object on it is instead of a row. Raises InputError.

    None for one that `is_row`, good or bad, or on one line as rows are, unless its lists or columns say otherwise;
    lists do not where the object has the shape of a row, which may hold some.
    """
    file = look_at(locate(path).files[0]).stored
    outline = outline_of(file)
    is_row = is_row or outline.first_line == outline.last_line
    other = holds_columns(outline) if has_shape else holds_rows(outline)
    return None if is_row and not other else object_problem(file.path, outline)


def check_readable(path: Path) -> None:
    """Find the files of a data set and look at their first bytes; raises InputError for what holds no rows."""
    _look_at_all(locate(path))


def data_hash(path: Path) -> str:
    """Hash a data set: sha256 (hex); raises InputError if it cannot be read.

    Of one file it is that of its bytes as they are stored. Of several it is the sha256 of theirs, one in a line, in
    order; the name of a list inside a file stands behind it, with a #.
    """
    located = locate(path)
    files = located.files if len(located.files) == 1 else [file.stored.path for file in _look_at_all(located)]
    digests = []
    for file in files:
        with file_errors(file), file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return _of_all(digests, located.member)


def evaluation_path(path: str | Path, evaluation: str | Path) -> Path:
    """Return where the rows to evaluate on are; `#validation` alone is that part of the data set at `path`."""
    if not str(evaluation).startswith("#") or Path(evaluation).exists():
        return Path(evaluation)
    whole, _ = split_off(str(path))
    return Path(f"{whole}{evaluation}")


def _of_all(digests: list[str], member: str) -> str:
    if len(digests) == 1 and not member:
        return digests[0]
    lines = "".join(f"{digest}#{member}\n" if member else f"{digest}\n" for digest in digests)
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest(file: DataFile) -> str:
    seeks = file.format in ("parquet", "arrow") and file.stored.compression is None
    return file.stored.hash() if seeks else file.stored.digest.hexdigest()


def _look_at_all(located: Located) -> list[DataFile]:
    """Look at every file; those of a folder that are empty are left out. Raises InputError."""
    if len(located.files) == 1:
        return [look_at(located.files[0], located.member)]
    with file_errors(located.path):
        filled = [file for file in located.files if file.stat().st_size]
        links = {(at.st_dev, at.st_ino): file for file in filled if (at := file.stat())}
    if not filled:
        raise InputError(Problem(str(located.path), "holds empty files alone", "give files with at least 2 rows"))
    if len(links) < len(filled):
        twice = next(file for file in filled if file not in links.values())
        rule = f"names one file twice, {twice.name} by a link"
        raise InputError(Problem(str(located.path), rule, "give a pattern that matches it once"))
    files = [look_at(file, located.member) for file in filled]
    first = files[0]
    for file in files:
        if (file.format, file.stored.compression) != (first.format, first.stored.compression):
            rule = f"mixes {_kind(first)} ({first.stored.path.name}) and {_kind(file)} ({file.stored.path.name})"
            fix = "give the files of one kind by a pattern: the same rows are often there in both"
            raise InputError(Problem(str(located.path), rule, fix))
    return files


def _kind(file: DataFile) -> str:
    packed = file.stored.compression
    return f"{FORMAT_NAMES[file.format]}, {packed}" if packed else FORMAT_NAMES[file.format]
