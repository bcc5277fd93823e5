"""Rows of CSV and TSV files: all cells are text, and what a cell says is decided by the field that reads it.

A prompt of 42 is a text, a reward of 42 is a number, and a list of messages is JSON. A list in a field that takes texts
as well is refused: it could be either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.row_fields import HISTORY
from llm_tuning.data.values import refuse_written_list

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_LISTS = ("messages", "conversations", *HISTORY, "tools", "functions")
_KEEP_LISTS = "save the rows as JSON Lines or Parquet, such as to_json(path, orient='records', lines=True)"
"""pandas and `datasets` write lists into CSV in the spelling of Python."""


class CellRow(dict[str, Any]):
    """A row whose values are cells: texts, none of them empty."""


def read_cells(row: dict[str, Any], numbers: Collection[str]) -> dict[str, Any]:
    """Return a row of cells with the values that its fields take; `numbers` are fields of numbers. Raises RowFault."""
    return {name: _value(name, cell, numbers) for name, cell in row.items()}


def _value(name: str, cell: str, numbers: Collection[str]) -> Any:
    if name in numbers:
        text = cell.strip()
        if _NUMBER.fullmatch(text):
            return float(text)
        rule = f"`{shown(name)}` must be a finite number, got text"
        raise RowFault(Reason.REWARD_NOT_A_NUMBER, rule, "write a number such as 0.5, with a point and no more signs")
    if name in _LISTS:
        value = _json(cell)
        if isinstance(value, list):
            return value
        raise RowFault(Reason.NOT_MESSAGES, f"`{name}` of a CSV must be a list in JSON, got text", _KEEP_LISTS)
    refuse_written_list(cell, shown(name), fix=_KEEP_LISTS)
    return cell


def _json(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return None
