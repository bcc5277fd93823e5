"""How one tool call may be written, and how it is read back: the forms that chat templates have.

A form reads at a position of a text and returns the call with the position behind it, or None where no call is.
Where a form keeps texts of a template, white space between their parts is free: models vary it, and parsers let them.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

from llm_tuning.data.call_values import Parameters, value_of

NAME = re.compile(r"[\w.\-]+")
"""Of a function; OpenAI allows letters, digits, `_` and `-`, other servers a dot."""
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


class CallForm(Protocol):
    """One way to write a call."""

    def read(self, text: str, at: int, tools: Mapping[str, Parameters]) -> tuple[Call, int] | None:
        """Read the call that begins at `at`; `tools` tells the parameters by a tool's name."""


def pattern(literal: str) -> str:
    """Return a regular expression for a template's text with any white space where it has some, or at its ends."""
    return r"\s*" + r"\s*".join(re.escape(part) for part in literal.split()) + (r"\s*" if literal.split() else "")


def json_at(text: str, at: int) -> tuple[Any, int] | None:
    """Read the JSON value at `at`; returns it with the position behind it."""
    try:
        return _JSON.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class ObjectForm:
    """`{"name": "get", "arguments": {...}}`: Hermes, Qwen, Llama 3, Mistral."""

    name_key: str
    arguments_key: str

    def read(self, text: str, at: int, tools: Mapping[str, Parameters]) -> tuple[Call, int] | None:
        """Read a JSON object that has both keys."""
        found = json_at(text, at)
        if found is None or not isinstance(found[0], dict):
            return None
        name, arguments = found[0].get(self.name_key), found[0].get(self.arguments_key)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        return Call(name, arguments), found[1]


@dataclass(frozen=True)
class NamedObjectForm:
    """The name, and its arguments as a JSON object behind it: DeepSeek, gpt-oss, Mistral's later templates."""

    _between = re.compile(r"[^{}\"]{0,80}")

    def read(self, text: str, at: int, tools: Mapping[str, Parameters]) -> tuple[Call, int] | None:
        """Read a name and the next JSON object; what stands between them differs among versions and is not held to."""
        name = NAME.match(text, at)
        between = name and self._between.match(text, name.end())
        found = json_at(text, between.end()) if between else None
        if name is None or found is None or not isinstance(found[0], dict):
            return None
        return Call(name[0], found[0]), found[1]


@dataclass(frozen=True)
class ParametersForm:
    """The name, and each argument with its key and its value as text: Qwen3-Coder, GLM, Nemotron."""

    after_name: str
    before_key: str
    before_value: str
    after_value: str
    close: str
    """What follows the last value: with `after_value` before it a value ends."""

    @cached_property
    def _key(self) -> re.Pattern[str]:
        inner = self.before_value.rstrip()
        return re.compile(pattern(self.before_key) + r"(?P<key>\S+?)" + pattern(inner).removesuffix(r"\s*"))

    @cached_property
    def _end(self) -> re.Pattern[str]:
        ends = pattern(self.after_value.lstrip()).removeprefix(r"\s*")
        return re.compile(f"{ends}(?={pattern(self.before_key)}|{pattern(self.close)})")

    def read(self, text: str, at: int, tools: Mapping[str, Parameters]) -> tuple[Call, int] | None:
        """Read a name and its parameters; raw texts become values by the tool's schema."""
        name = NAME.match(text, at)
        behind = name and re.compile(pattern(self.after_name)).match(text, name.end())
        if name is None or behind is None:
            return None
        at, arguments = behind.end(), {}
        schemas = tools.get(name[0], {})
        lead = self.before_value[len(self.before_value.rstrip()) :]
        trail = self.after_value[: len(self.after_value) - len(self.after_value.lstrip())]
        while key := self._key.match(text, at):
            end = self._end.search(text, key.end())
            if end is None or key["key"] in arguments:
                return None
            raw = text[key.end() : end.start()].removeprefix(lead)
            raw = raw.removesuffix(trail) if trail else raw
            arguments[key["key"]] = value_of(raw, schemas.get(key["key"]))
            at = end.end()
        return Call(name[0], arguments), at


@dataclass(frozen=True)
class PythonForm:
    """`get(city="Oslo", days=3)`: Llama 4, LFM2, OLMo 3."""

    def read(self, text: str, at: int, tools: Mapping[str, Parameters]) -> tuple[Call, int] | None:
        """Read the shortest text that is a call with literal keyword arguments."""
        name = NAME.match(text, at)
        if name is None or not text.startswith("(", name.end()):
            return None
        for end in re.compile(r"\)").finditer(text, name.end()):
            called = _parsed("f" + text[name.end() : end.end()])
            if called is None:
                continue
            if not isinstance(called, ast.Call) or called.args or any(word.arg is None for word in called.keywords):
                return None
            try:
                arguments = {word.arg: ast.literal_eval(_json_words(word.value)) for word in called.keywords}
            except (ValueError, TypeError, RecursionError, MemoryError):
                return None
            return Call(name[0], cast(dict[str, Any], arguments)), end.end()
        return None


def _parsed(text: str) -> ast.expr | None:
    with warnings.catch_warnings(action="ignore"):  # of odd escapes
        try:
            return ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


class _JsonWords(ast.NodeTransformer):
    words: Mapping[str, Any] = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.words[node.id]) if node.id in self.words else node


def _json_words(value: ast.expr) -> ast.expr:
    """Return `value` with JSON's true, false and null as Python's: templates write both."""
    made: ast.expr = _JsonWords().visit(value)
    return made


@dataclass(frozen=True)
class QuotedForm:
    """`get{city:<|"|>Oslo<|"|>,days:3}`: objects with bare keys and a token for the quotes, as Gemma 4 has them."""

    quote: str

    def read(self, text: str, at: int, tools: Mapping[str, Parameters]) -> tuple[Call, int] | None:
        """Read a name and the object behind it."""
        name = NAME.match(text, at)
        try:
            found = self._value(text, name.end()) if name else None
        except (IndexError, ValueError, RecursionError):
            return None
        if name is None or found is None or not isinstance(found[0], dict):
            return None
        return Call(name[0], found[0]), found[1]

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        if text.startswith(self.quote, at):
            at += len(self.quote)
            end = text.index(self.quote, at)
            return text[at:end], end + len(self.quote)
        if text[at] in "{[":
            return self._many(text, at)
        scalar = re.compile(r"[^,}\]]+").match(text, at)
        if scalar is None:
            raise ValueError
        value = value_of(scalar[0].strip(), None)
        if isinstance(value, str):
            raise ValueError
        return value, scalar.end()

    def _many(self, text: str, at: int) -> tuple[Any, int]:
        """Read the object or array that opens at `at`."""
        keyed, close = text[at] == "{", "}" if text[at] == "{" else "]"
        pairs: dict[str, Any] = {}
        values: list[Any] = []
        at += 1
        while text[at] != close:
            key = ""
            if keyed and text.startswith(self.quote, at):
                key, at = self._value(text, at)
            elif keyed:
                colon = text.index(":", at)
                key, at = text[at:colon], colon
            value, at = self._value(text, at + 1 if keyed else at)
            pairs[key] = value
            values.append(value)
            if text[at] not in "," + close:
                raise ValueError
            at += text[at] == ","
        return (pairs if keyed else values), at + 1
