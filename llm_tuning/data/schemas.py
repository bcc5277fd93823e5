"""The parameters of tools as JSON Schemas: each is compiled once, and says where arguments do not fit it.

The path of a fault is the place in the schema, which is the author's own text; no value of a row is in it. Most schemas
have a few keywords alone, and those are looked at here; what else there is is left to the `jsonschema` library, which
takes a hundred times as long. It is imported where it is needed: nothing else of the package uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from llm_tuning.data.faults import shown

_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
_MAY_BE_NULL = frozenset(("default", "const", "examples", "enum"))
_OF_AN_OBJECT = frozenset(("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "properties"))
_DEPTH = 64
"""Levels of a schema; deeper ones are broken, or made to be."""
_PATTERN_SECONDS = 1.0
"""Of processor time for one `pattern` and value: most take microseconds, and some that repeat repetitions years."""
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


class BrokenSchema(ValueError):  # noqa: N818 - the schema is broken, the program is not
    """A schema is not valid: `path` is the place in it, and `rule` what is wrong there."""

    def __init__(self, path: str, rule: str) -> None:
        self.path, self.rule = path, rule
        super().__init__(f"{path} {rule}")


class _EndlessError(Exception):
    """A pattern, its argument, takes too long to match."""


class Schema:
    """The parameters of one tool."""

    def __init__(self, parameters: Mapping[str, Any] | None) -> None:
        """Compile them; None takes no arguments. Raises BrokenSchema."""
        self._parameters = parameters
        self._simple = parameters is None or _is_simple(parameters)
        self._names = frozenset((parameters or {}).get("properties") or ())
        self._validator: Any = None
        self._endless: BrokenSchema | None = None
        if parameters is None:
            return
        if parameters and parameters.get("type") != "object" and not _OF_AN_OBJECT & parameters.keys():
            raise BrokenSchema("type", 'must be "object": arguments are an object with a name for each')
        if not self._simple:
            self._validator = _compile(parameters)

    def fault(self, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return where in the schema `arguments` do not fit and what is wrong, None where they fit.

        Raises BrokenSchema for what only a call shows: a `$ref` to nowhere, a pattern that takes too long.
        """
        if self._endless is not None:
            raise self._endless
        try:
            return self._fault(arguments)
        except _EndlessError as endless:
            rule = f"has the pattern {shown(str(endless))}, which takes too long: it repeats what repeats itself"
            self._endless = BrokenSchema("", rule)
            raise self._endless from None

    def _fault(self, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
        if self._parameters is None:
            return ("", "the tool takes no arguments, and the call has some") if arguments else None
        if self._names and any(value is None for value in arguments.values()):
            for name, value in arguments.items():
                if value is None and name not in self._names:
                    return "properties", "an argument is null and no parameter of the tool has its name"
        if self._simple:
            if _fits(arguments, self._parameters):
                return None
            self._validator = self._validator or _compile(self._parameters)
        return _first_fault(self._validator, arguments)


def without_nulls(schema: Any) -> Any:
    """Return a schema without keywords that are null, as Parquet sets those of other schemas; values stay."""
    if isinstance(schema, list):
        return [without_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value if name in _MAY_BE_NULL else without_nulls(value)
        for name, value in schema.items()
        if value is not None or name in _MAY_BE_NULL
    }


def _is_simple(schema: Any, depth: int = 0) -> bool:
    """Return whether a schema is valid and has nothing but the keywords that `_fits` knows."""
    if type(schema) is not dict or depth > _DEPTH:
        return False
    return all(name in _SIMPLE and _SIMPLE[name](value, depth + 1) for name, value in schema.items())


def _is_number(value: Any, depth: int) -> bool:
    return type(value) in (int, float)


def _is_size(value: Any, depth: int) -> bool:
    return type(value) is int and value >= 0


def _is_pattern(value: Any, depth: int) -> bool:
    if type(value) is not str:
        return False
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _is_choice(value: Any, depth: int) -> bool:
    return type(value) is list and bool(value) and all(_is_simple(part, depth) for part in value)


def _is_list_of_texts(value: Any, depth: int) -> bool:
    return type(value) is list and all(type(part) is str for part in value)


_SIMPLE: Mapping[str, Callable[[Any, int], bool]] = {
    "type": lambda value, depth: type(value) is str and value in _TYPES,
    **dict.fromkeys(("description", "title", "format"), lambda value, depth: type(value) is str),
    "properties": lambda value, depth: type(value) is dict and all(_is_simple(part, depth) for part in value.values()),
    "items": _is_simple,
    "required": lambda value, depth: _is_list_of_texts(value, depth) and len(set(value)) == len(value),
    "enum": _is_list_of_texts,
    "additionalProperties": lambda value, depth: type(value) is bool,
    "default": lambda value, depth: True,
    **dict.fromkeys(("minimum", "maximum"), _is_number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _is_size),
    "pattern": _is_pattern,
    "anyOf": _is_choice,
}
"""The keywords that `_fits` knows, and when their values are valid."""


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether `value` fits a simple schema; False leaves it to the library, which says what is wrong."""
    kind = schema.get("type")
    if kind is not None and (
        not isinstance(value, _PYTHON_TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")
    ):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(_fits(value, part) for part in schema["anyOf"]):
        return False
    if type(value) is dict:
        properties = schema.get("properties", {})
        if not all(name in value for name in schema.get("required", ())):
            return False
        if schema.get("additionalProperties") is False and not value.keys() <= properties.keys():
            return False
        return all(_fits(part, properties[name]) for name, part in value.items() if name in properties)
    if type(value) is list:
        return _within(len(value), schema, "minItems", "maxItems") and (
            "items" not in schema or all(_fits(part, schema["items"]) for part in value)
        )
    if type(value) is str:
        return _within(len(value), schema, "minLength", "maxLength") and (
            "pattern" not in schema or _matches(schema["pattern"], value)
        )
    return type(value) is bool or value is None or _within(value, schema, "minimum", "maximum")


def _within(number: float, schema: Mapping[str, Any], least: str, most: str) -> bool:
    return (least not in schema or number >= schema[least]) and (most not in schema or number <= schema[most])


def _matches(pattern: str, text: str) -> bool:
    """Search `text`; Python's own `re` could not be stopped, and a row brings the pattern. Raises _EndlessError."""
    import regex  # type: ignore[import-untyped]

    try:
        return regex.search(pattern, text, timeout=_PATTERN_SECONDS) is not None
    except TimeoutError:
        raise _EndlessError(pattern) from None


def _compile(parameters: Mapping[str, Any]) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    if _has(parameters, "patternProperties") and _has(parameters, "unevaluatedProperties"):
        rule = "has `patternProperties` with `unevaluatedProperties`; use `additionalProperties`"
        raise BrokenSchema("", rule)
    kind = validator_for(parameters, default=Draft202012Validator)
    try:
        kind.check_schema(parameters)
    except SchemaError as error:
        raise BrokenSchema(_joined(error.absolute_path), f"is not valid JSON Schema ({error.validator})") from None
    except Exception as error:  # a metaschema that is not known, say
        raise BrokenSchema("", f"is not valid JSON Schema ({type(error).__name__})") from None
    # Without a registry of its own the library would fetch what a `$ref` names from the network.
    validator = _with_bounded_patterns(kind)(parameters, registry=Registry())
    _first_fault(validator, {})
    return validator


def _has(schema: Any, keyword: str) -> bool:
    parts = schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ()
    return (isinstance(schema, Mapping) and keyword in schema) or any(_has(part, keyword) for part in parts)


@cache
def _with_bounded_patterns(kind: Any) -> Any:
    """Return the library's validator with `_matches` where it takes the patterns of a schema itself."""
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, value: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(value, "string") and not _matches(wanted, value):
            yield ValidationError("does not match")

    def pattern_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        for known, part in wanted.items():
            for name in value if validator.is_type(value, "object") else ():
                if _matches(known, name):
                    yield from validator.descend(value[name], part, path=name, schema_path=known)

    def additional_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        names = value if validator.is_type(value, "object") else ()
        for name in names:
            if name not in known and not any(_matches(pattern, name) for pattern in patterns):
                if wanted is False:
                    yield ValidationError("is not known")
                elif validator.is_type(wanted, "object"):
                    yield from validator.descend(value[name], wanted, path=name)

    return extend(
        kind,
        {
            "pattern": pattern,
            "patternProperties": pattern_properties,
            "additionalProperties": additional_properties,
        },
    )


def _first_fault(validator: Any, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    from referencing.exceptions import Unresolvable

    try:
        error = next(iter(validator.iter_errors(arguments)), None)
    except Unresolvable:
        raise BrokenSchema("", "has a `$ref` to what is not in it") from None
    except RecursionError:
        raise BrokenSchema("", "refers to itself without end") from None
    if error is None:
        return None
    return _joined(error.absolute_schema_path), _words(error)


def _words(error: Any) -> str:
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"`{shown(missing[0])}` is missing"
    if error.validator == "type":
        kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        return f"the value is not of type {' or '.join(map(str, kinds))}"
    if error.validator == "additionalProperties":
        return "an argument has a name that the tool does not know"
    return f"the value does not fit `{error.validator}`"


def _joined(path: Any) -> str:
    return "".join(_steps(path)).removeprefix(".")


def _steps(path: Any) -> Iterator[str]:
    for step in path:
        yield f"[{step}]" if isinstance(step, int) else f".{shown(str(step))}"
