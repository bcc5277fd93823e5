"""What every reader yields: numbered rows, each within the same bound, and the faults of rows that are none."""

from __future__ import annotations

from typing import Any

from llm_tuning.data.faults import Reason, RowFault, got

MAX_ROW_BYTES = 16 << 20
"""Bytes of one row at most: far above any training row, and it bounds memory on a file without line breaks."""
CHUNK_BYTES = 1 << 20
"""Bytes read at once."""

Row = tuple[int, Any]
"""Row number and value; the value is a RowFault where the row itself is broken."""

COPY_AGAIN = "copy or write the file again"
SAVE_UTF8 = "save it as UTF-8"


def not_an_object(value: object) -> RowFault:
    """Build the fault of a row that is no JSON object."""
    fix = "write each row as {...} with named fields"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        names = {name for item in value for name in item}
        if {"role", "content"} <= names:
            fix = 'it is a list of messages: write each row as {"messages": [...]}'
        elif {"from", "value"} <= names:
            fix = 'it is a list of messages: write each row as {"conversations": [...]}'
    return RowFault(Reason.NOT_AN_OBJECT, f"must be an object, got {got(value)}", fix)


def row_too_large() -> RowFault:
    """Build the fault of a row above MAX_ROW_BYTES."""
    return RowFault(Reason.ROW_TOO_LARGE, f"is larger than {MAX_ROW_BYTES >> 20} MiB", "split it into several rows")
