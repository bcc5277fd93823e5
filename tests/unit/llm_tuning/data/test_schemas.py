"""What this package says of arguments is what the library says of them."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llm_tuning.data.schemas import Schema, _is_simple

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
