"""What this package says of arguments is what the library says of them."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llm_tuning.data.schemas import BrokenSchema, Schema, _is_simple

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 1.0, 1.5, 14, 15, -1, 10**30, "", "a", "A", "Ab", "abcd", "1"),
    *([], ["A"], ["A", "b"], ["A", 1, None], {}, {"a": 1}, {"a": None, "b": "A"}, [[1]]),
)
SIMPLE: dict[str, dict[str, Any]] = {
    "bounds": {"minimum": 1, "maximum": 14},
    "bounds of a type": {"type": "integer", "minimum": 1.0, "maximum": 14.5},
    "lengths": {"minLength": 1, "maxLength": 3},
    "items": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}},
    "lengths and items": {"minLength": 2, "minItems": 2, "minimum": 2},
    "pattern": {"pattern": "^[A-Z]"},
    "choice": {"anyOf": [{"type": "string", "pattern": "b"}, {"type": "null"}, {"type": "number", "maximum": 0}]},
    "choice and type": {"type": "string", "anyOf": [{"maxLength": 1}, {"enum": ["Ab"]}]},
    "choice of objects": {
        "anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"type": "array"}]
    },
}
LEFT_TO_THE_LIBRARY: dict[str, dict[str, Any]] = {
    "a bound that is true": {"minimum": True},
    "a length below zero": {"minLength": -1},
    "a length with a fraction": {"maxItems": 1.0},
    "a pattern that is none": {"pattern": "["},
    "no choice": {"anyOf": []},
    "a choice that is no schema": {"anyOf": [True]},
    "another keyword": {"exclusiveMinimum": 1},
}


@pytest.mark.parametrize("name", SIMPLE)
def test_arguments_fit_as_the_library_says(name: str) -> None:
    assert _is_simple(SIMPLE[name])
    parameters = {"type": "object", "properties": {"value": SIMPLE[name]}}
    schema, library = Schema(parameters), Draft202012Validator(parameters)
    said = {repr(value): schema.fault({"value": value}) is None for value in VALUES}
    assert said == {repr(value): library.is_valid({"value": value}) for value in VALUES}
    assert set(said.values()) == {True, False}


@pytest.mark.parametrize("name", LEFT_TO_THE_LIBRARY)
def test_other_keywords_and_values_are_left_to_the_library(name: str) -> None:
    assert not _is_simple(LEFT_TO_THE_LIBRARY[name])


ENDLESS = "^(a|a)*$"
LONG = "a" * 40 + "b"


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"x": {"type": "string", "pattern": ENDLESS}}}, {"x": LONG}),
        ({"properties": {"x": {"type": "string", "pattern": ENDLESS, "not": {"const": 1}}}}, {"x": LONG}),
        ({"properties": {"x": {"type": "array", "items": {"pattern": ENDLESS}}}}, {"x": [LONG]}),
        ({"patternProperties": {ENDLESS: {"type": "integer"}}}, {LONG: 1}),
        ({"additionalProperties": False, "patternProperties": {ENDLESS: {}}}, {LONG: 1}),
    ],
)
def test_a_pattern_that_would_take_years_is_refused_once(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    made = Schema({"type": "object", **schema})
    with pytest.raises(BrokenSchema, match="takes too long") as first:
        made.fault(arguments)
    with pytest.raises(BrokenSchema) as second:
        made.fault({})
    assert second.value is first.value, "each of a thousand rows would wait"


def test_a_pattern_that_python_alone_could_not_end_is_matched() -> None:
    fault = Schema({"type": "object", "properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}}).fault({"x": LONG})
    assert fault == ("properties.x.pattern", "the value does not fit `pattern`")


def test_names_by_pattern_beside_unevaluated_ones_are_refused() -> None:
    schema = {"type": "object", "unevaluatedProperties": False, "patternProperties": {ENDLESS: {}}}
    with pytest.raises(BrokenSchema, match="additionalProperties"):
        Schema(schema)


NAMES: tuple[dict[str, Any], ...] = (
    {"additionalProperties": False},
    {"additionalProperties": {"type": "integer"}},
    {"additionalProperties": True, "patternProperties": {"^a": {"type": "string"}}},
    {"additionalProperties": False, "patternProperties": {"^a": {"type": "string"}, "b$": {"minimum": 2}}},
    {"additionalProperties": {"minimum": 2}, "properties": {"c": {}}, "patternProperties": {"b": {}}},
)


@pytest.mark.parametrize("schema", NAMES)
@pytest.mark.parametrize("value", [{}, {"a": 1}, {"a": "x"}, {"ab": 1}, {"b": 1}, {"b": 2}, {"c": "x"}, {"d": 1}])
def test_names_are_held_to_what_the_library_says(schema: dict[str, Any], value: dict[str, Any]) -> None:
    made = {"type": "object", "not": {"required": ["z"]}, **schema}
    assert (Schema(made).fault(value) is None) == Draft202012Validator(made).is_valid(value)
