"""JSON Lines and JSON arrays as streams of rows, in memory bounded by the largest row.

Only faults that leave no rows to find (a broken array, text that is not JSON) are InputErrors; a broken line of a
JSON Lines file is one refused row, so that all of them are reported together. NaN and Infinity, which JSON does not
have but Python writes, are read as numbers: the row check refuses them where a field is used.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llm_tuning.data.faults import Reason, RowFault, got, shown
from llm_tuning.errors import InputError, Problem

MAX_ROW_BYTES = 16 << 20
"""Bytes of one row at most: far above any training row, and it bounds memory on a file without line breaks."""
CHUNK_BYTES = 1 << 20
"""Bytes read at once from a JSON array."""
_WHOLE_BYTES = 4 * MAX_ROW_BYTES
"""Bytes of a file at most that is read as a whole, to say what it is instead of rows."""
BOM = codecs.BOM_UTF8

Row = tuple[int, Any]
"""Row number and value; the value is a RowFault where the row itself is broken."""

_LONGEST_PIECE = len("\\u00e9")
"""Characters at the end of a cut file that can look wrong only because they are not whole: an escape, `false`."""

_COPY_AGAIN = "copy or write the file again"
_SAVE_UTF8 = "save it as UTF-8"


class _Decoder(json.JSONDecoder):
    """Reads JSON, and refuses an object that gives a field twice: JSON would let the last one win in silence."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self._twice: str | None = None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            self._twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return values

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """Return the value at `idx` and where it ends; the value is a RowFault where a field is given twice."""
        self._twice = None
        value, end = super().raw_decode(s, idx)
        return value if self._twice is None else _given_twice(self._twice), end


def _given_twice(name: str) -> RowFault:
    return RowFault(Reason.DUPLICATE_FIELD, f"`{shown(name)}` is given twice in one object", "keep one of them")


def read_json_lines(path: Path, stream: BinaryIO, on_bytes: Callable[[bytes], object]) -> Iterator[Row]:
    """Yield (line number, value) of each line that is not blank; every byte read also goes to `on_bytes`.

    A file whose first two lines are both broken is not JSON Lines: InputError.
    """
    first: Row | None = None
    confirmed = False
    for number, value in _lines(stream, on_bytes):
        if confirmed:
            yield number, value
        elif first is None and _is_broken(value):
            first = number, value
        else:
            if first is not None and _is_broken(value):
                raise _not_json_lines(path, first[1])
            confirmed = True
            if first is not None:
                yield first
            yield number, value
    if first is not None and not confirmed:
        raise _not_json_lines(path, first[1])


def _is_broken(value: Any) -> bool:
    return isinstance(value, RowFault) and value.reason is not Reason.DUPLICATE_FIELD


def _lines(stream: BinaryIO, on_bytes: Callable[[bytes], object]) -> Iterator[Row]:
    decoder = _Decoder()
    number = offset = 0
    while line := stream.readline(MAX_ROW_BYTES):
        number += 1
        start, whole_length = offset, len(line)
        on_bytes(line)
        too_large = False
        while not line.endswith(b"\n") and len(line) == MAX_ROW_BYTES:
            line = stream.readline(MAX_ROW_BYTES)
            too_large = True
            on_bytes(line)
            whole_length += len(line)
        offset += whole_length
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
            start += len(BOM)
        if too_large:
            yield number, row_too_large()
        elif not line.isspace() and line:
            yield number, _parse_line(decoder, line, number, start)


def _parse_line(decoder: _Decoder, line: bytes, number: int, offset: int) -> Any:
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
            _SAVE_UTF8,
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


def not_an_object(value: object) -> RowFault:
    """Build the fault of a row that is no JSON object."""
    return RowFault(
        Reason.NOT_AN_OBJECT, f"must be an object, got {got(value)}", "write each row as {...} with named fields"
    )


def row_too_large() -> RowFault:
    """Build the fault of a row above MAX_ROW_BYTES."""
    return RowFault(Reason.ROW_TOO_LARGE, f"is larger than {MAX_ROW_BYTES >> 20} MiB", "split it into several rows")


def _truncated(number: int) -> RowFault:
    return RowFault(
        Reason.TRUNCATED_ROW, "is cut off: the file ends in the middle of it", _COPY_AGAIN, at=f"line {number}"
    )


def _not_json_lines(path: Path, fault: RowFault) -> InputError:
    """Build the error for a file that starts with { but has no valid first lines: often one object over several."""
    where = f"{path}, {fault.at}" if fault.at else str(path)
    problem = Problem(where, fault.rule, fault.fix)
    if fault.reason not in (Reason.NOT_JSON, Reason.TRUNCATED_ROW, Reason.ROW_TOO_LARGE):
        return InputError(problem)
    with path.open("rb") as stream:
        content = stream.read(_WHOLE_BYTES).removeprefix(BOM)
        is_cut = bool(stream.read(1))
    try:
        text = content.decode(errors="ignore" if is_cut else "strict")
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and fault.reason is Reason.ROW_TOO_LARGE:  # a row, and more after it
            return InputError(problem)
        if error.msg == "Extra data" and text[error.pos] == ",":
            rule, fix = "has a comma after the object", "write one a line without it, or all in one JSON array [...]"
            return InputError(Problem(f"{path}, line {error.lineno}", rule, fix))
        if error.msg == "Extra data":
            rule, fix = "holds JSON objects over several lines", "write one row a line, or all in one JSON array [...]"
            return InputError(Problem(str(path), rule, fix))
        if is_cut:
            return InputError(object_problem(path))
        if fault.reason is Reason.NOT_JSON and content.count(b"\n") > 1:
            where = f"{path}, line {error.lineno}, column {error.colno}"
            return InputError(Problem(where, f"is not valid JSON: {error.msg}", "correct it"))
    except (ValueError, RecursionError):
        pass
    else:
        return InputError(object_problem(path, value))
    return InputError(problem)


def read_object(path: Path) -> object:
    """Read a file as one JSON value; None where it is none, or too large for the memory."""
    try:
        return json.loads(path.read_bytes()) if path.stat().st_size <= _WHOLE_BYTES else None
    except (ValueError, RecursionError):
        return None


def object_problem(path: Path, value: object = None) -> Problem:
    """Build the problem of a file that is one JSON object instead of rows; `value` is that object, if it is known."""
    fix = "write a JSON array of rows [...] or one row a line"
    if isinstance(value, dict):
        lists = [name for name in ("data", "rows", "train", "examples") if isinstance(value.get(name), list)]
        fix = f"the rows seem to be its `{lists[0]}`: save that list alone" if lists else fix
    return Problem(str(path), "is one JSON object, not a JSON array, JSON Lines or Parquet of rows", fix)


def read_json_array(path: Path, stream: BinaryIO, on_bytes: Callable[[bytes], object]) -> Iterator[Row]:
    """Yield (1-based index, value) of each element; every byte read also goes to `on_bytes`. Raises InputError."""
    text = _Text(path, stream, on_bytes)
    text.take("[")
    index = 0
    if text.peek() != "]":
        while True:
            index += 1
            value = text.value(index)
            yield index, value if isinstance(value, dict | RowFault) else not_an_object(value)
            if text.peek() != ",":
                break
            text.take(",")
            if text.peek() == "]":
                raise text.error("has a comma after the last row", "remove it")
    if text.peek() == "":
        raise text.error(f"ends after row {index} without the closing ]: the file is cut off", _COPY_AGAIN)
    if text.peek() != "]":
        raise text.error(f"is not valid JSON after row {index}: expecting , or ]", "correct it")
    text.take("]")
    if text.peek() != "":
        raise text.error("holds more text after the end of the array", "keep one JSON array, or one row a line")


class _Text:
    """The file's text as a sliding buffer that knows its line and column."""

    def __init__(self, path: Path, stream: BinaryIO, on_bytes: Callable[[bytes], object]) -> None:
        self._path = path
        self._stream = stream
        self._on_bytes = on_bytes
        self._json = _Decoder()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._buffer = ""
        self._position = 0
        self._line = 1  # of the buffer's first character
        self._column = 1
        self._bytes_read = 0
        self._ended = False

    def peek(self) -> str:
        """Move to the next character that is not white space and return it, "" at the end of the file."""
        while True:
            rest = json.decoder.WHITESPACE.match(self._buffer, self._position)  # type: ignore[attr-defined]
            self._position = rest.end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill(CHUNK_BYTES):
                return ""

    def take(self, character: str) -> None:
        assert self.peek() == character
        self._position += 1

    def value(self, index: int) -> Any:
        """Decode the value at the position, reading on until it is whole."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                inside = error.pos - self._position  # reading on moves the buffer
                if self._more():
                    continue
                raise self._broken(index, error.msg, self._position + inside) from None
            except RecursionError:
                raise self.error(f"is nested too deeply in row {index}", "flatten it") from None
            except ValueError:
                raise self.error(f"holds a number of too many digits in row {index}", "correct it") from None
            if end == len(self._buffer) and self._more():  # a number could continue
                continue
            size = end - self._position
            self._position = end
            return value if size <= MAX_ROW_BYTES else row_too_large()

    def _broken(self, index: int, fault: str, position: int) -> InputError:
        """Build the error for a value that stays broken however far one reads."""
        if not fault.startswith("Unterminated"):
            text = self._buffer.rstrip()
            if self._ended and not text.endswith("]") and len(text) - position <= _LONGEST_PIECE:
                rule = f"ends in the middle of row {index}: the file is cut off"
                return self.error(rule, _COPY_AGAIN, position)
            return self.error(f"is not valid JSON in row {index}: {fault}", "correct it", position)
        if self._ended:
            rule = f"ends in the middle of row {index}: the file is cut off, or a quote is never closed"
            return self.error(rule, _COPY_AGAIN, position)
        rule = f"holds a row {index} of more than {MAX_ROW_BYTES >> 20} MiB, or a quote is never closed"
        return self.error(rule, "correct it, or split the row", position)

    def error(self, rule: str, fix: str, position: int | None = None) -> InputError:
        """Build an InputError at `position` of the buffer (default: here), with its line and column."""
        position = self._position if position is None else position
        line = self._line + self._buffer.count("\n", 0, position)
        line_start = self._buffer.rfind("\n", 0, position)
        column = position - line_start if line_start >= 0 else self._column + position
        return InputError(Problem(f"{self._path}, line {line}, column {column}", rule, fix))

    def _more(self) -> bool:
        """Read on because a value is not whole yet; doubling, so that a large row is not parsed over and over."""
        return len(self._buffer) - self._position <= MAX_ROW_BYTES and self._fill(max(CHUNK_BYTES, len(self._buffer)))

    def _fill(self, size: int) -> bool:
        """Read about `size` bytes and forget what was consumed; False at the end of the file."""
        if self._ended:
            return False
        chunk = self._stream.read(size)
        self._on_bytes(chunk)
        first = self._bytes_read == 0
        self._bytes_read += len(chunk)
        self._ended = not chunk
        self._forget()
        try:
            self._buffer += self._decoder.decode(chunk.removeprefix(BOM) if first else chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._not_utf8(error) from None
        return bool(chunk)

    def _forget(self) -> None:
        newlines = self._buffer.count("\n", 0, self._position)
        line_start = self._buffer.rfind("\n", 0, self._position)
        self._line += newlines
        self._column = self._position - line_start if newlines else self._column + self._position
        self._buffer = self._buffer[self._position :]
        self._position = 0

    def _not_utf8(self, error: UnicodeDecodeError) -> InputError:
        if self._ended:
            return InputError(Problem(str(self._path), "ends in the middle of a character: it is cut off", _COPY_AGAIN))
        offset = self._bytes_read - len(error.object) + error.start
        line = self._line + self._buffer.count("\n") + error.object.count(b"\n", 0, error.start)
        return InputError(Problem(f"{self._path}, line {line}, byte {offset}", "is not UTF-8", _SAVE_UTF8))
