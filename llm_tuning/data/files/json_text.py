"""JSON as a stream: a sliding buffer that knows its line and column, in memory bounded by the largest row."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.files import rows
from llm_tuning.data.files.rows import COPY_AGAIN, SAVE_UTF8, row_too_large
from llm_tuning.errors import InputError, Problem

BOM = codecs.BOM_UTF8

_LONGEST_PIECE = len("\\u00e9")
"""Characters at the end of a cut file that can look wrong only because they are not whole: an escape, `false`."""
_WHITESPACE = re.compile(r"[ \t\n\r]*+")
_NO_BRACKET = re.compile(r'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
"""All up to the next bracket, or to a string that the buffer does not hold to its end."""
_NUMBER_GOES_ON = re.compile(r"[-+.0-9eE]*")
_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)


class Decoder(json.JSONDecoder):
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


class JsonText:
    """The file's text as a sliding buffer that knows its line and column."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._json = Decoder()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._buffer = ""
        self._position = 0
        self._line = 1  # of the buffer's first character
        self._column = 1
        self._bytes_read = 0
        self._ended = False

    @property
    def line(self) -> int:
        """The line of the position."""
        return self._line + self._buffer.count("\n", 0, self._position)

    def peek(self) -> str:
        """Move to the next character that is not white space and return it, "" at the end of the file."""
        while True:
            self._position = _WHITESPACE.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill(rows.CHUNK_BYTES):
                return ""

    def take(self, character: str) -> None:
        """Go past `character`, which is the next one."""
        assert self.peek() == character
        self._position += 1

    def value(self, index: int) -> Any:
        """Decode the value at the position, reading on until it is whole; `index` is the row, for errors."""
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
            if _NUMBER_GOES_ON.fullmatch(self._buffer, end) and self._more():
                continue
            size = end - self._position
            self._position = end
            return value if size <= rows.MAX_ROW_BYTES else row_too_large()

    def key(self) -> str:
        """Decode the name of a member and go past its colon; raises InputError."""
        if self.peek() != '"':
            raise self.error("is not valid JSON: expecting a name in double quotes", "correct it")
        name = self.value(1)
        if self.peek() != ":":
            raise self._unexpected("expecting : after a name")
        self._position += 1
        return name if isinstance(name, str) else ""  # a fault: longer than any row

    def skip(self, depth: int = 0) -> None:
        """Go past the value at the position, however large, or to the end of the `depth` brackets around it.

        Its brackets and quotes are followed, and no more of it is looked at. Raises InputError where it has no end.
        """
        if depth == 0 and self.peek() not in ("[", "{"):
            if self.peek() == '"':
                self._skip_string()
            else:
                self.value(1)
            return
        while True:
            self._position = _NO_BRACKET.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position == len(self._buffer):
                if not self._fill(rows.CHUNK_BYTES):
                    raise self._cut_off()
                continue
            character = self._buffer[self._position]
            if character == '"':
                self._skip_string()
                continue
            self._position += 1
            depth += 1 if character in "[{" else -1
            if depth == 0:
                return

    def _skip_string(self) -> None:
        self._position += 1
        while True:
            self._position = _IN_STRING.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._buffer) and self._buffer[self._position] == '"':
                self._position += 1
                return
            if not self._fill(rows.CHUNK_BYTES):  # a backslash at the end of the buffer is kept and read with the next
                raise self._cut_off()

    def _unexpected(self, expecting: str) -> InputError:
        return self._cut_off() if self.peek() == "" else self.error(f"is not valid JSON: {expecting}", "correct it")

    def _cut_off(self) -> InputError:
        rule = "ends in the middle: the file is cut off, or a quote or bracket is never closed"
        return self.error(rule, COPY_AGAIN, len(self._buffer))

    def _broken(self, index: int, fault: str, position: int) -> InputError:
        """Build the error for a value that stays broken however far one reads."""
        if not fault.startswith("Unterminated"):
            text = self._buffer.rstrip()
            if self._ended and not text.endswith("]") and len(text) - position <= _LONGEST_PIECE:
                rule = f"ends in the middle of row {index}: the file is cut off"
                return self.error(rule, COPY_AGAIN, position)
            return self.error(f"is not valid JSON in row {index}: {fault}", "correct it", position)
        if self._ended:
            rule = f"ends in the middle of row {index}: the file is cut off, or a quote is never closed"
            return self.error(rule, COPY_AGAIN, position)
        rule = f"holds a row {index} of more than {rows.MAX_ROW_BYTES >> 20} MiB, or a quote is never closed"
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
        left = len(self._buffer) - self._position
        return left <= rows.MAX_ROW_BYTES and self._fill(max(rows.CHUNK_BYTES, len(self._buffer)))

    def _fill(self, size: int) -> bool:
        """Read about `size` bytes and forget what was consumed; False at the end of the file."""
        if self._ended:
            return False
        chunk = self._stream.read(size)
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
            return InputError(Problem(str(self._path), "ends in the middle of a character: it is cut off", COPY_AGAIN))
        offset = self._bytes_read - len(error.object) + error.start
        line = self._line + self._buffer.count("\n") + error.object.count(b"\n", 0, error.start)
        return InputError(Problem(f"{self._path}, line {line}, byte {offset}", "is not UTF-8", SAVE_UTF8))
