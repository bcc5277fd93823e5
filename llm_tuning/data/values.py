"""Single values of a row: whether one is given at all, flags, texts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from llm_tuning.data.faults import Reason, RowFault, got

_EMPTY_TEXTS = frozenset(("", "[]", "{}", "null", "none", "nan", "[null]"))
"""What other programs write where there is nothing."""
_MISSING = frozenset(("nan", "<na>", "#n/a", "<noinput>", "<nooutput>"))
"""Texts that stand for a value that is missing, and for nothing else: of pandas, Excel and the makers of Alpaca."""
_LONGEST_NUMBER = 32
_LONGEST_EMPTY_TEXT = 16
"""Characters of a text, blanks included, that may be nothing."""
_FLAG_TEXTS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


_A_LIST = re.compile(r"\s*(?:\[\s*)?\{\s*['\"](?:role|from|content|value|type)['\"]\s*:")
_ITS_END = re.compile(r"\}\s*\]?\s*\Z")
_OF_MESSAGES = (re.compile(r"['\"](?:role|from)['\"]\s*:"), re.compile(r"['\"](?:content|value)['\"]\s*:"))
_OF_PARTS = re.compile(r"['\"]type['\"]\s*:\s*['\"](?:text|image_url|image|input_text|output_text)['\"]")
_ENDS = 64
"""Characters at the end of a text in which the end of a list is looked for."""

_DEPTH = 8
"""Levels of lists and objects that are looked into: JSON may hold a thousand."""


def is_given(value: Any, depth: int = _DEPTH) -> bool:
    """Return whether `value` says anything: null, false, blank text and what holds nothing else do not."""
    if not depth:
        return bool(value)
    match value:
        case None | False:
            return False
        case str():
            if len(value) <= _LONGEST_EMPTY_TEXT:
                return value.strip().lower() not in _EMPTY_TEXTS
            return not value.isspace()
        case list() | tuple():
            return any(isinstance(item, dict) or is_given(item, depth - 1) for item in value)
        case dict():
            return any(is_given(item, depth - 1) for item in value.values())
    return True


def is_missing(value: Any) -> bool:
    """Return whether `value` is none, blank, NaN, or a text such as `nan` or `<noinput>`.

    `none` and `null` may be meant: a text of a conversation may be just that.
    """
    match value:
        case None:
            return True
        case str():
            return says_missing(value) or not value.strip()
        case float():
            return math.isnan(value)
    return False


def says_missing(text: str) -> bool:
    """Return whether all of `text` is what other programs write for a value that is missing."""
    return len(text) <= _LONGEST_EMPTY_TEXT and text.strip().lower() in _MISSING


def is_set(value: Any, depth: int = _DEPTH) -> bool:
    """Return whether `value` is given, or false."""
    if isinstance(value, dict) and depth:
        return any(is_set(item, depth - 1) for item in value.values())
    return value is False or is_given(value)


def flag(value: Any) -> bool | None:
    """Return a flag written as true, 1, 1.0 or as text; None where it is neither true nor false."""
    match value:
        case bool():
            return value
        case int() | float() | Decimal():
            return bool(value) if value in (0, 1) else None
        case str():
            return _FLAG_TEXTS.get(value.strip().lower())
    return None


def is_number(value: Any) -> bool:
    """Return whether `value` is a number, and no flag."""
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def number_in(value: Any) -> float | None:
    """Return the number that a value is, also as the text of a cell; None where it is none, or NaN."""
    if not is_number(value) and not (isinstance(value, str) and len(value) <= _LONGEST_NUMBER):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def texts_in(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the texts in `value`, of messages and parts their content alone; what lies too deep is one text."""
    match value:
        case str():
            yield value
        case list() | tuple() | dict() if not depth:
            yield str(type(value))
        case list() | tuple():
            for item in value:
                yield from texts_in(item, depth - 1)
        case dict():
            content = [value[name] for name in ("content", "value", "text") if name in value]
            for item in content or value.values():
                yield from texts_in(item, depth - 1)


def written_list(text: str) -> str | None:
    """Return what a text is that somebody made of a list: "messages", "parts", or None for most texts.

    Read are JSON and the spellings of Python and numpy, which pandas and `datasets` write; so nothing is parsed.
    """
    if _A_LIST.match(text) is None or _ITS_END.search(text, max(0, len(text) - _ENDS)) is None:
        return None
    if all(names.search(text) for names in _OF_MESSAGES):
        return "messages"
    return "parts" if text.lstrip()[0] == "[" and _OF_PARTS.search(text) else None


def refuse_written_list(text: str, field: str, *, at: str = "", fix: str = "") -> None:
    """Raise RowFault for messages, or for the parts of a text, that are written down as one text."""
    what = written_list(text)
    if what is None:
        return
    if what == "messages":
        rule = f"`{field}` holds a list of messages as text"
        meant = '[{"role": ..., "content": "that text"}]'
    else:
        rule = f"`{field}` holds the parts of a text as text"
        meant = '[{"type": "text", "text": "that text"}], as the content of a message'
    fix = fix or f"give the list itself (json.loads in Python); a text that is meant so is written {meant}"
    raise RowFault(Reason.AMBIGUOUS, rule, fix, at=at)


def check_text(row: Mapping[str, Any], field: str, *, at: str = "", may_be_empty: bool = False) -> str:
    """Return the text in `row[field]`; raises RowFault if it is missing, null, empty, no text or no valid Unicode."""
    if field not in row:
        raise RowFault(Reason.MISSING_FIELD, f"`{field}` is missing", "add it", at=at)
    value = row[field]
    if value is None:
        raise RowFault(Reason.NULL_FIELD, f"`{field}` is null", "give a text or remove the row", at=at)
    if not isinstance(value, str):
        rule = f"`{field}` must be text, got {got(value)}"
        raise RowFault(Reason.NOT_TEXT, rule, "write it as text in quotes", at=at)
    if not may_be_empty and not value.strip():
        raise RowFault(Reason.EMPTY_FIELD, f"`{field}` is empty", "give a text or remove the row", at=at)
    if not at:
        refuse_written_list(value, field)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            rule = f"`{field}` holds half of a character (an unpaired surrogate such as \\ud83d)"
            raise RowFault(Reason.NOT_UNICODE, rule, "write the character whole", at=at) from None
    return value
