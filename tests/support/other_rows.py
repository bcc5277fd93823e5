"""Rows as other projects write them, in short, and what is asserted of one that is refused."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.errors import in_words
from llm_tuning.modes import MODES

Row = dict[str, Any]
Refused = tuple[str, Row, Reason, str, str]
"""A name for the test, the row, and what its refusal says: reason, a part of the rule, a part of the fix."""


def user(content: Any, **more: Any) -> Row:
    return {"role": "user", "content": content} | more


def assistant(content: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": content} | more


CHAT = [user("Where is my invoice?"), assistant("Account > Invoices.")]


def assert_refused(row: Row, reason: Reason, rule: str, fix: str) -> None:
    """Assert how sft refuses `row`, and that columns which the fix proposes make the row work."""
    with pytest.raises(RowFault) as fault:
        RowParser(MODES["sft"].rows).parse(1, row)
    assert fault.value.reason is reason
    assert rule in in_words(fault.value.rule)
    assert fix in in_words(fault.value.fix)
    if proposed := fix.partition("set columns to ")[2].split(" ")[0]:
        columns = dict(pair.split("=") for pair in proposed.split(","))
        filled = row | {field: "text" for field, value in row.items() if value == ""}
        assert RowParser(MODES["sft"].rows, columns).parse(1, filled)
