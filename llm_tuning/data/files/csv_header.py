"""How a CSV or TSV file is written: what separates its columns, told by its first row, which names them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from llm_tuning.data.files.json_text import BOM

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_OTHER_DELIMITERS = ("|",)
HEAD_BYTES = 1 << 16
"""Bytes of a file that are looked at to tell what it is."""
_LONGEST_NAME = 64
_MOST_WORDS = 6
_SAMPLED_ROWS = 50
_ALONE = ("text", "messages", "conversations")
"""Names of a column that is the whole row."""
_SENTENCE = re.compile(r"[.?!:;,]\s|[.?!]$|[\n\r{}\[\]<>]")
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(?:[eE][+-]?\d+)?")
_NAME_COLUMNS = "write the names of the columns into the first line, such as prompt,output"


def find_delimiter(head: bytes) -> tuple[str, str, str]:
    """Return what separates the columns of a file that begins with `head`, or "" with rule and fix.

    Those are "" as well where it is no table. The first row decides, since it holds names and no text; the rows behind
    it decide between two that fit.
    """
    text = head.removeprefix(BOM).decode(errors="replace")
    if marked := re.match(r"sep=(.)\r?\n", text):
        return (marked[1], "", "") if marked[1] in DELIMITERS else ("", f"is separated by {marked[1]}", "use commas")
    if "\r" in text and "\n" not in text:
        delimiter, rule, fix = find_delimiter(text.replace("\r", "\n").encode())
        return ("", "has old Mac line ends", "save it with line ends \\n or \\r\\n") if delimiter else ("", rule, fix)
    fitting: dict[str, float] = {}
    looks_like_rows = False
    for delimiter in (*DELIMITERS, *_OTHER_DELIMITERS):
        header, *records = list(_records(text, delimiter)) or [[]]
        agreeing = sum(len(record) == len(header) for record in records) / len(records) if records else 1.0
        if len(header) < 2 or agreeing < 0.5:
            continue
        if are_names(header):
            fitting[delimiter] = agreeing
        elif delimiter in DELIMITERS and records and sum(map(bool, header)) > 1:
            looks_like_rows = True
    best = [delimiter for delimiter in fitting if fitting[delimiter] == max(fitting.values())]
    if len(best) == 1:
        if best[0] in DELIMITERS:
            return best[0], "", ""
        return "", f"seems to be columns separated by {best[0]}", "separate them by commas, tabs or semicolons"
    if best:
        said = " and by ".join(DELIMITERS.get(delimiter, delimiter) for delimiter in best)
        return "", f"may be columns separated by {said}", "put the names in its first line into quotes"
    if looks_like_rows:
        return "", "seems to be CSV without the names of its columns", _NAME_COLUMNS
    first = next(iter(_records(text, ",")), [])
    return (",", "", "") if len(first) == 1 and first[0].strip() in _ALONE else ("", "", "")


def are_names(cells: Sequence[str]) -> bool:
    """Return whether the cells of a first row can be names of columns; pandas leaves that of its index empty."""
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:  # an empty column at the end of a table, as workbooks write it
        names.pop()
    return len(names) > 1 and all(map(_is_name, names[1:] if names[0] == "" else names))


def _is_name(name: str) -> bool:
    return (
        0 < len(name) <= _LONGEST_NAME
        and len(name.split()) <= _MOST_WORDS
        and _NUMBER.fullmatch(name) is None
        and _SENTENCE.search(name) is None
    )


def _records(text: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the first records of a text that may be cut at its end: the last one is only right where more follow."""
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    kept: list[str] | None = None
    try:
        for record in reader:
            if not record:
                continue
            if kept is not None:
                yield kept
            if reader.line_num > _SAMPLED_ROWS:
                return
            kept = record
    except csv.Error:
        text = "\n"  # it is the next one that is cut or broken
    if kept is not None and (text.endswith(("\n", "\r")) or len(text.encode()) < HEAD_BYTES):
        yield kept
