"""CSV and TSV as a stream of rows. The first row names the columns, and an empty cell is a field that is not there.

A row number counts the rows behind that first one, blank lines left out, as a workbook counts them; faults name the
line, which quotes with line breaks in them move away from it.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import BinaryIO

from llm_tuning.data.cells import CellRow
from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.files import rows
from llm_tuning.data.files.content import DataFile
from llm_tuning.data.files.json_text import BOM
from llm_tuning.data.files.rows import SAVE_UTF8, Row
from llm_tuning.errors import InputError, Problem

_NUL_FIX = "remove it"
_FAULTS = (
    (
        "new-line character seen in unquoted",
        "has old Mac line ends inside a row",
        "save it with line ends \\n or \\r\\n",
    ),
    ("unexpected end of data", "opens a quote that is never closed", 'close it, and write a quote in a text as ""'),
    ("expected after", "has text behind a closing quote", 'write a quote in a text as ""'),
)
_INDEX = "Unnamed: 0"
"""What pandas calls the column of its index, which has no name in the file."""


def read_csv(file: DataFile) -> Iterator[Row]:
    """Yield (row number, fields) of each row; raises InputError where no row can be found any more."""
    csv.field_size_limit(max(csv.field_size_limit(), rows.MAX_ROW_BYTES))  # one for the process; 128 KiB by default
    path = file.stored.path
    with file.stored.open() as stream:
        lines = _Lines(stream)
        reader = csv.reader(lines, delimiter=file.delimiter, strict=True)
        names = _names(file, lines, reader)
        number = 0
        while True:
            lines.begin()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                number += 1
                yield number, _not_csv(str(error), lines)
                continue
            except _TooLongError:
                rule = (
                    f"holds a row {number + 1} of more than {rows.MAX_ROW_BYTES >> 20} MiB, or a quote is never closed"
                )
                where = f"{path}, line {lines.first}"
                raise InputError(Problem(where, rule, "correct it, or split the row")) from None
            if cells is None:
                return
            if not any(cells):
                number += bool(cells)
                continue
            number += 1
            file.line = lines.first
            yield number, lines.fault or _row(cells, names, lines)


class _TooLongError(Exception):
    """A row has more bytes than any may have."""


class _Lines:
    """The lines of a file as text, and what is wrong with those of the present row."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = 0
        self.number = 0
        self.first = 0
        """The line on which the present row begins."""
        self.fault: RowFault | None = None

    def begin(self) -> None:
        """Begin a row."""
        self._size, self.first, self.fault = 0, self.number + 1, None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(rows.MAX_ROW_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        self._size += len(line)
        if self._size > rows.MAX_ROW_BYTES or (len(line) == rows.MAX_ROW_BYTES and not line.endswith(b"\n")):
            raise _TooLongError
        if self.number == 1:
            line = line.removeprefix(BOM)
        if b"\0" in line:
            self.fault = RowFault(Reason.NOT_TEXT, "holds a NUL byte", _NUL_FIX, at=f"line {self.number}")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            at = f"line {self.number}, byte {error.start + 1} of it"
            self.fault = RowFault(Reason.NOT_UTF8, "is not UTF-8", f"{SAVE_UTF8} (Excel: CSV UTF-8)", at=at)
            return codecs.decode(line, errors="replace")


def _names(file: DataFile, lines: _Lines, reader: Iterator[list[str]]) -> list[str]:
    """Read the names of the columns; raises InputError."""
    path = file.stored.path
    lines.begin()
    try:
        names = next(cells for cells in reader if any(cells) and not cells[0].startswith("sep="))
    except (csv.Error, StopIteration, _TooLongError):
        raise InputError(Problem(str(path), "has no first line that names the columns", "write them into it")) from None
    if lines.fault is not None:
        raise InputError(Problem(f"{path}, {lines.fault.at}", lines.fault.rule, lines.fault.fix))
    names = [name.strip() for name in names]
    if not names[0] and _INDEX not in names:
        names[0] = _INDEX
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise InputError(
            Problem(
                f"{path}, line {lines.number}", f"names two columns `{shown(twice)}`", "rename or remove one of them"
            )
        )
    return names


def _row(cells: list[str], names: list[str], lines: _Lines) -> CellRow | RowFault:
    if len(cells) != len(names):
        rule = f"has {len(cells)} cells, and the first line names {len(names)} columns"
        fix = "put a cell that holds the separator into quotes"
        return RowFault(Reason.NOT_CSV, rule, fix, at=f"line {lines.first}")
    row = CellRow((name, cell) for name, cell in zip(names, cells, strict=True) if cell)
    if "" in row:
        rule, fix = "has a cell in a column without a name", "name the column in the first line, or remove it"
        return RowFault(Reason.NOT_CSV, rule, fix, at=f"line {lines.first}")
    return row


def _not_csv(error: str, lines: _Lines) -> RowFault:
    rule, fix = next(
        ((rule, fix) for part, rule, fix in _FAULTS if part in error), (f"is not CSV: {error}", "correct it")
    )
    return RowFault(Reason.NOT_CSV, rule, fix, at=f"line {lines.first}")
