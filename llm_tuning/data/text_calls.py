"""Calls of tools in the text of an answer, as Hermes, Glaive and xLAM files have them.

Such a text would be learned as words: nothing holds it to the tool's schema, the base's template does not write it in
its own way, and no parser of the base's calls reads what a model answers that has learned it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

_MARKS = (
    "<tool_call>",
    "<functioncall>",
    "<function=",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<|tool_call",
    "<｜tool▁call",
)
_NAME, _ARGUMENTS = ("name", "function"), ("arguments", "parameters", "args")


def holds_a_call(text: str, tools: Collection[str]) -> bool:
    """Return whether a text calls one of the tools of these names: behind a mark of a template, or as bare JSON."""
    if any(mark in text for mark in _MARKS):
        return any(name in text for name in tools)
    text = text.strip()
    if not text.startswith(("{", "[")):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    calls = value if isinstance(value, list) else [value]
    return bool(calls) and all(_is_call(call, tools) for call in calls)


def _is_call(value: Any, tools: Collection[str]) -> bool:
    if not isinstance(value, dict) or not any(name in value for name in _ARGUMENTS):
        return False
    return any(isinstance(value.get(name), str) and value[name] in tools for name in _NAME)
