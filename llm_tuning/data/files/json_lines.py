"""JSON Lines as a stream of rows, in memory bounded by the largest one.

Only faults that leave no rows to find are InputErrors; a broken line is one refused row, so that all of them are
reported together. NaN and Infinity, which JSON does not have but Python writes, are read as numbers: the row check
refuses them where a field is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.files import rows
from llm_tuning.data.files.json_object import lists_of, object_problem, outline_of
from llm_tuning.data.files.json_text import BOM, Decoder
from llm_tuning.data.files.rows import COPY_AGAIN, SAVE_UTF8, Row, not_an_object, row_too_large
from llm_tuning.data.files.stored import StoredFile
from llm_tuning.errors import InputError, Problem


def read_json_lines(file: StoredFile) -> Iterator[Row]:
    """Yield (line number, value) of each line that is not blank.

    A file whose first two lines are both broken is not JSON Lines: InputError.
    """
    first: Row | None = None
    with file.open() as stream:
        lines = _lines(stream)
        for number, value in lines:
            if not _is_broken(value):
                if first is not None:
                    yield first
                yield number, value
                yield from lines
                return
            if first is not None:
                break
            first = number, value
    if first is not None:
        raise _not_json_lines(file, first[1])


def _is_broken(value: Any) -> bool:
    return isinstance(value, RowFault) and value.reason is not Reason.DUPLICATE_FIELD


def _lines(stream: BinaryIO) -> Iterator[Row]:
    decoder = Decoder()
    number = offset = 0
    while line := stream.readline(rows.MAX_ROW_BYTES):
        number += 1
        start, whole_length = offset, len(line)
        too_large = False
        while not line.endswith(b"\n") and len(line) == rows.MAX_ROW_BYTES:
            line = stream.readline(rows.MAX_ROW_BYTES)
            too_large = True
            whole_length += len(line)
        offset += whole_length
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
            start += len(BOM)
        if too_large:
            yield number, row_too_large()
        elif not line.isspace() and line:
            yield number, _parse_line(decoder, line, number, start)


def _parse_line(decoder: Decoder, line: bytes, number: int, offset: int) -> Any:
    """Return the value on one line, or a RowFault. `offset` is the line's first byte in the file."""
    last_without_end = not line.endswith(b"\n")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        if last_without_end and error.end == len(line) and error.reason == "unexpected end of data":
            return _truncated(number)
        return RowFault(
            Reason.NOT_UTF8,
            "is not UTF-8",
            SAVE_UTF8,
            at=f"line {number}, column {error.start + 1}, byte {offset + error.start}",
        )
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        if last_without_end and not text.rstrip().endswith("}"):
            return _truncated(number)
        column = min(error.pos, len(text.rstrip())) + 1  # the fault of a row cut off is not on the next line
        return RowFault(
            Reason.NOT_JSON, f"is not valid JSON: {error.msg}", "correct it", at=f"line {number}, column {column}"
        )
    except RecursionError:
        return RowFault(Reason.NOT_JSON, "is nested too deeply", "flatten it", at=f"line {number}")
    except ValueError:  # Python refuses integers of more than 4300 digits
        return RowFault(Reason.NOT_JSON, "holds a number of too many digits", "correct it", at=f"line {number}")
    return value if isinstance(value, dict | RowFault) else not_an_object(value)


def _truncated(number: int) -> RowFault:
    return RowFault(
        Reason.TRUNCATED_ROW, "is cut off: the file ends in the middle of it", COPY_AGAIN, at=f"line {number}"
    )


def _not_json_lines(file: StoredFile, fault: RowFault) -> InputError:
    """Build the error for a file that starts with { but has no valid first lines: often one object over several."""
    problem = Problem(f"{file.path}, {fault.at}" if fault.at else str(file.path), fault.rule, fault.fix)
    if fault.reason not in (Reason.NOT_JSON, Reason.TRUNCATED_ROW, Reason.ROW_TOO_LARGE):
        return InputError(problem)
    try:
        outline = outline_of(file)
    except InputError as error:
        return error
    if outline.rest == ",":
        where = f"{file.path}, line {outline.last_line}"
        fix = "write one a line without it, or all in one JSON array [...]"
        return InputError(Problem(where, "has a comma after the object", fix))
    if outline.rest and outline.last_line > outline.first_line:
        fix = "write one row a line, or all in one JSON array [...]"
        return InputError(Problem(str(file.path), "holds JSON objects over several lines", fix))
    if outline.rest or (fault.reason is Reason.ROW_TOO_LARGE and not lists_of(outline)):
        return InputError(problem)
    return InputError(object_problem(file.path, outline))
