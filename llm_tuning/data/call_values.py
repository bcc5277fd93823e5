"""Values of tool calls: JSON values compared as JSON does, and values that a template writes as plain text.

Templates of the XML kind write `<parameter=city>Oslo</parameter>`: the text alone does not say whether `5` is a number
or a text. As in the parsers of servers, the parameter's JSON schema decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Parameters = Mapping[str, Mapping[str, Any]]
"""JSON schemas of a tool's parameters, by their names."""

_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
"""JSON's words, and Python's: a template that makes a text of a value writes these."""


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Parameters]:
    """Return the parameters of each tool, by its name; tools in OpenAI's form or as bare functions."""
    found: dict[str, Parameters] = {}
    for tool in tools:
        function = tool.get("function", tool)
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        if isinstance(schema, Mapping):
            properties = schema.get("properties")
            found[str(function.get("name"))] = properties if isinstance(properties, Mapping) else {}
    return found


def value_of(text: str, schema: Mapping[str, Any] | None) -> Any:
    """Return the value that `text` stands for where `schema` is asked for; a text that fits nothing else stays one."""
    kinds = set(_kinds(schema)) if schema is not None else set()
    if kinds == {"string"}:
        return text
    try:
        value = _WORDS[text] if text in _WORDS else json.loads(text)
    except (ValueError, RecursionError):
        return text
    if "string" in kinds and kind_of(value) not in kinds:
        return text
    return value


def _kinds(schema: Any) -> Iterator[str]:
    """Yield the types that a schema allows, as far as it says so itself."""
    if not isinstance(schema, Mapping):
        return
    named = schema.get("type")
    for kind in [named] if isinstance(named, str) else named if isinstance(named, list) else []:
        yield from ("number", "integer") if kind == "number" else (kind,)
    if named is None:
        values = schema.get("enum")
        for value in [schema["const"]] if "const" in schema else values if isinstance(values, list) else []:
            yield kind_of(value)
    for branch in ("anyOf", "oneOf"):
        for part in schema.get(branch) or ():
            yield from _kinds(part)


def kind_of(value: Any) -> str:
    """Return JSON schema's name of the type of `value`; a number without a fraction is an integer."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == value // 1 else "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"


def same_json(one: Any, other: Any) -> bool:
    """Return whether two values are equal as JSON: 1 is 1.0 and not true, and the order of keys has no meaning."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
