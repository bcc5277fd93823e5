"""The tools that a row declares, brought to the form in which vLLM hands OpenAI's `tools` to a chat template.

Read are OpenAI's `tools` and `functions`, as a list or, as in ShareGPT files, as the JSON text of one. Most files have
few different ones, so each is read and its schemas are compiled once, by its text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_tuning.data.calls import SharedTools, Tools
from llm_tuning.data.faults import Reason, RowFault, got, shown
from llm_tuning.data.row_fields import plain, words
from llm_tuning.data.schemas import BrokenSchema, Schema, without_nulls
from llm_tuning.data.values import is_given

_FUNCTION_FIELDS = frozenset(("name", "description", "parameters", "strict"))
_SCHEMA_NAMES = frozenset(
    words(
        "inputschema schema jsonschema parametersschema parameterschema parametersjsonschema argsschema "
        "argumentsschema params parameter args arguments inputs input properties"
    )
)
"""What others call `parameters`, as `plain` writes it: Anthropic and MCP `input_schema`, LangChain `args_schema`."""
_FORM = '[{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}]'
_MOST_CHARACTERS = 1 << 23
"""Of the declarations that are kept compiled; many rows share them, or none do."""


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The tools of a row, and by name the schema of their parameters and where it stands in the row."""

    tools: Tools
    schemas: Mapping[str, tuple[Schema, str]]


class ToolReader:
    """Reads declarations, and remembers those that it has read."""

    def __init__(self) -> None:
        self._sets: dict[tuple[str, str], ToolSet | RowFault] = {}
        self._schemas: dict[str, Schema] = {}
        self._characters = 0

    def read(self, value: Any, name: str) -> ToolSet:
        """Return the tools in the field `name` of a row; raises RowFault."""
        text = value if isinstance(value, str) else _json_text(value, name)
        key = (name, text)
        found = self._sets.get(key)
        if found is None:
            try:
                found = self._read(_parsed(text, name) if isinstance(value, str) else value, name)
            except RowFault as fault:
                found = fault
            self._keep(key, found)
        if isinstance(found, RowFault):
            raise RowFault(found.reason, found.rule, found.fix, at=found.at)
        return found

    def _keep(self, key: tuple[str, str], found: ToolSet | RowFault) -> None:
        self._characters += len(key[1])
        if self._characters > _MOST_CHARACTERS:
            self._sets.clear()
            self._schemas.clear()
            self._characters = len(key[1])
        self._sets[key] = found

    def _read(self, items: Any, name: str) -> ToolSet:
        if not isinstance(items, list) or not items:
            rule = f"`{name}` must be a list of tools, got {'an empty list' if items == [] else got(items)}"
            raise RowFault(Reason.NOT_TOOLS, rule, f"write {_FORM}, or its JSON text")
        tools = SharedTools()
        schemas: dict[str, tuple[Schema, str]] = {}
        for index, item in enumerate(items):
            at = f"{name}[{index}]"
            function, at = _function(_parsed(item, at) if isinstance(item, str) else item, at)
            own = function["function"]["name"]
            if own in schemas:
                rule = "two tools have one name, and a call could mean either"
                raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them", at=at)
            where = f"{at}.parameters"
            tools.append(function)
            schemas[own] = self._schema(function["function"]["parameters"], where), where
        return ToolSet(tools, schemas)

    def _schema(self, parameters: Mapping[str, Any] | None, at: str) -> Schema:
        key = json.dumps(parameters)
        schema = self._schemas.get(key)
        if schema is None:
            try:
                schema = self._schemas[key] = Schema(parameters)
            except BrokenSchema as broken:
                place = f"{at}.{broken.path}" if broken.path and broken.path[0] != "[" else f"{at}{broken.path}"
                fix = 'write {"type": "object", "properties": {...}, "required": [...]}, as OpenAI\'s API takes it'
                raise RowFault(Reason.BROKEN_SCHEMA, f"the schema of a tool {broken.rule}", fix, at=place) from None
        return schema


def _function(item: Any, at: str) -> tuple[dict[str, Any], str]:
    """Return a declaration in vLLM's form, and where its function stands; raises RowFault."""
    if not isinstance(item, Mapping):
        raise RowFault(Reason.NOT_TOOLS, f"a tool must be an object, got {got(item)}", f"write {_FORM}", at=at)
    function: Any = item
    if item.get("function") is not None:
        _refuse_others(item, frozenset(("type", "function")), at)
        function, at = item["function"], f"{at}.function"
    kind = item.get("type", "function")
    if kind not in ("function", None):
        rule = "a tool has a `type` that is not function, and what is behind it is not in the row"
        raise RowFault(Reason.NOT_TOOLS, rule, "declare it as a function, or leave such rows out", at=at)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RowFault(Reason.NOT_TOOLS, "a tool has no `name`", f"write {_FORM}", at=at)
    _refuse_others(function, _FUNCTION_FIELDS | {"type"}, at)
    description, parameters = function.get("description"), function.get("parameters")
    if description is not None and not isinstance(description, str):
        rule = f"`description` of a tool must be text, got {got(description)}"
        raise RowFault(Reason.NOT_TEXT, rule, "write it as text in quotes", at=at)
    if parameters is not None and not isinstance(parameters, dict):
        rule = f"`parameters` of a tool must be a JSON Schema, got {got(parameters)}"
        raise RowFault(Reason.BROKEN_SCHEMA, rule, 'write {"type": "object", "properties": {...}}', at=at)
    made = {"name": function["name"], "description": description, "parameters": without_nulls(parameters)}
    if isinstance(function.get("strict"), bool):
        made["strict"] = function["strict"]
    return {"type": "function", "function": made}, at


def _refuse_others(item: Mapping[str, Any], known: frozenset[str], at: str) -> None:
    """Raise RowFault for what a server does not hand to a template."""
    for name, value in item.items():
        if name not in known and is_given(value):
            rule = f"`{shown(name)}` of a tool is not shown to the model by a server"
            fix = "put it into the description, or remove it"
            if plain(name) in _SCHEMA_NAMES and not is_given(item.get("parameters")):
                fix = "write it as `parameters`, which is shown"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, fix, at=at)


def _json_text(value: Any, name: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RowFault(Reason.NOT_TOOLS, f"`{name}` holds what is no JSON", "write it as JSON text") from None


def _parsed(text: str, name: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        rule = f"`{name}` is text and no JSON"
        raise RowFault(Reason.NOT_TOOLS, rule, "write the JSON text of the tools (json.dumps)") from None


def parse_json(text: str) -> Any:
    """Return what a JSON text holds; raises ValueError, also where a name stands twice or a number is not finite."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
