"""Rows with tools, calls, results or reasoning that are refused: with the place, the reason, and never the text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.modes import MODES
from tests.support.tool_turns import (
    ANSWER,
    CALLS_AS_TEXT,
    OLD,
    PARAMETERS,
    REASONED,
    SECRET,
    SHAREGPT,
    TOOLS,
    USER,
    WEATHER,
    called,
    calls,
    fault_of,
    parse,
    result,
    row_of,
    tool,
)


def misfit(arguments: dict[str, Any], *path: str, says: str = "") -> tuple[dict[str, Any], Reason, str]:
    place = ".".join(("tools[0].function.parameters", *path))
    return row_of(calls(called(arguments))), Reason.CALL_DOES_NOT_FIT, f"`{place}`: {says}"


REFUSED: list[tuple[dict[str, Any], Reason, str]] = [
    # calls and their schemas
    misfit({"city": "Paris", "unit": SECRET}, "properties", "unit", "enum"),
    misfit({"unit": "kelvin"}, "required", says="`city` is missing"),
    misfit({"city": 7}, "properties", "city", "type", says="the value is not of type string"),
    misfit({"city": "Paris", "days": 0}, "properties", "days", "minimum"),
    misfit({"city": "Paris", "days": True}, "properties", "days", "type"),
    misfit({"city": "Paris", "days": 1.5}, "properties", "days", "type"),
    misfit(
        {"city": "Paris", "places": [{"lat": SECRET}]}, "properties", "places", "items", "properties", "lat", "type"
    ),
    misfit({"city": "Paris", SECRET: None}, "properties", says="an argument is null"),
    (
        row_of(calls(called({SECRET: 1})), tools=tool({"type": "object", "additionalProperties": False})),
        Reason.CALL_DOES_NOT_FIT,
        "parameters.additionalProperties`",
    ),
    (row_of(calls(called({"a": SECRET})), tools=tool(None)), Reason.CALL_DOES_NOT_FIT, "takes no arguments"),
    (row_of(calls(called(name=SECRET))), Reason.UNKNOWN_TOOL, "does not declare"),
    ({"messages": [USER, calls(called())]}, Reason.UNKNOWN_TOOL, "the row declares none"),
    (row_of(calls(called(SECRET))), Reason.NOT_A_CALL, "are text and no JSON"),
    (row_of(calls(called('{"a": 1, "a": 2}'))), Reason.NOT_A_CALL, "are text and no JSON"),
    (row_of(calls(called('{"a": NaN}'))), Reason.NOT_A_CALL, "are text and no JSON"),
    (row_of(calls(called([SECRET]))), Reason.NOT_A_CALL, "must be an object or its JSON text, got a list"),
    (row_of(calls(called({"city": float("nan")}))), Reason.NOT_A_CALL, "hold what is no JSON"),
    (row_of(calls(called({"city": "\ud83d"}))), Reason.NOT_A_CALL, "hold what is no JSON"),
    (row_of(calls({"type": "custom", "custom": {"name": SECRET}})), Reason.NOT_A_CALL, "`type` that is not function"),
    (row_of(calls({"function": {"arguments": SECRET}})), Reason.NOT_A_CALL, "has no `name`"),
    (row_of(calls() | {"tool_calls": {"name": SECRET}}), Reason.NOT_A_CALL, "must be a list of calls"),
    (row_of(calls(called(), called())), Reason.AMBIGUOUS, "two calls of a turn have one id"),
    (row_of(calls(called()) | {"function_call": {"name": SECRET}}), Reason.AMBIGUOUS, "are both given"),
    (row_of(calls(called(), role="user"), ANSWER), Reason.UNSUPPORTED_FIELD, "its role is another"),
    (
        {"conversations": [SHAREGPT[0], SHAREGPT[1] | {"value": SECRET}], "tools": TOOLS},
        Reason.NOT_A_CALL,
        "a call is text and no JSON",
    ),
    # calls in the text of an answer
    *(
        (row_of(ANSWER | {"content": text}), Reason.NOT_A_CALL, "stands in the text of an answer")
        for text in CALLS_AS_TEXT
    ),
    (
        {
            "conversations": [
                SHAREGPT[0],
                {"from": "gpt", "value": CALLS_AS_TEXT[0]},
                {"from": "tool", "value": SECRET},
                {"from": "gpt", "value": "warm"},
            ],
            "tools": TOOLS,
        },
        Reason.NOT_A_CALL,
        "stands in the text of an answer",
    ),
    # results
    (row_of(result(SECRET), ANSWER), Reason.RESULT_WITHOUT_CALL, "has no call before it"),
    (row_of(calls(called()), result(), result(), ANSWER), Reason.RESULT_WITHOUT_CALL, "has no call before it"),
    (row_of(calls(called()), result(tool_call_id=SECRET), ANSWER), Reason.RESULT_WITHOUT_CALL, "is the id of no call"),
    (row_of(calls(called()), result(name=SECRET), ANSWER), Reason.RESULT_WITHOUT_CALL, "is another than that"),
    (row_of(calls(called()), ANSWER), Reason.CALL_WITHOUT_RESULT, "another turn follows"),
    (row_of(calls(called(), called(id="b")), result(), ANSWER), Reason.CALL_WITHOUT_RESULT, "another turn follows"),
    (row_of(calls(called()), result({"t": SECRET}), ANSWER), Reason.NOT_TEXT, "`content` must be text"),
    (row_of(OLD, {"role": "function", "content": SECRET}, ANSWER), Reason.MISSING_FIELD, "has no `name`"),
    (row_of(ANSWER | {"tool_call_id": SECRET}), Reason.UNSUPPORTED_FIELD, "its role is another"),
    # declarations
    (row_of(ANSWER, tools=SECRET), Reason.NOT_TOOLS, "is text and no JSON"),
    (row_of(ANSWER, tools={"name": SECRET}), Reason.NOT_TOOLS, "must be a list of tools, got an object"),
    (row_of(ANSWER, tools=[SECRET]), Reason.NOT_TOOLS, "`tools[0]` is text and no JSON"),
    (row_of(ANSWER, tools=["[1]"]), Reason.NOT_TOOLS, "a tool must be an object"),
    (row_of(ANSWER, tools=[{"type": "retrieval"}]), Reason.NOT_TOOLS, "`type` that is not function"),
    (row_of(ANSWER, tools=[*TOOLS, WEATHER]), Reason.AMBIGUOUS, "two tools have one name"),
    (row_of(ANSWER, functions=[WEATHER]), Reason.AMBIGUOUS, "both declare tools"),
    (row_of(ANSWER, tools=tool(PARAMETERS, returns={"type": SECRET})), Reason.UNSUPPORTED_FIELD, "`returns` of a tool"),
    (row_of(ANSWER, tools=tool(PARAMETERS, description=[SECRET])), Reason.NOT_TEXT, "`description` of a tool"),
    (row_of(ANSWER, tools=tool([SECRET])), Reason.BROKEN_SCHEMA, "must be a JSON Schema, got a list"),
    (row_of(ANSWER, tools=tool({"type": "dict"})), Reason.BROKEN_SCHEMA, 'must be "object"'),
    (row_of(ANSWER, tools=tool({"city": {"type": "string"}})), Reason.BROKEN_SCHEMA, 'must be "object"'),
    (
        row_of(ANSWER, tools=tool({"type": "object", "properties": {"a": {"type": "text"}}})),
        Reason.BROKEN_SCHEMA,
        "is not valid JSON Schema",
    ),
    (row_of(ANSWER, tools=tool({"type": "object", "required": "a"})), Reason.BROKEN_SCHEMA, "is not valid JSON Schema"),
    (
        row_of(calls(called({"a": 1})), tools=tool({"properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}})),
        Reason.BROKEN_SCHEMA,
        "`$ref` to what is not in it",
    ),
    (
        row_of(calls(called({"a": "1"})), tools=tool({"properties": {"a": {"pattern": "("}}})),
        Reason.BROKEN_SCHEMA,
        "is not valid JSON Schema",
    ),
    (
        row_of(calls(called({"a": {}})), tools=tool({"$ref": "#", "properties": {}})),
        Reason.BROKEN_SCHEMA,
        "without end",
    ),
    ({"text": "a", "tools": TOOLS}, Reason.UNSUPPORTED_FIELD, "beside `text`"),
    # what is asked for
    (
        row_of(calls(called(), called(id="b")), parallel_tool_calls=False),
        Reason.AMBIGUOUS,
        "`parallel_tool_calls` is false",
    ),
    (row_of(ANSWER, parallel_tool_calls=SECRET), Reason.UNSUPPORTED_FIELD, "must be true or false"),
    (row_of(ANSWER, tool_choice="required"), Reason.AMBIGUOUS, "does not call what `tool_choice`"),
    (row_of(calls(called()), tool_choice="none"), Reason.AMBIGUOUS, "does not call what `tool_choice`"),
    (
        row_of(calls(called()), tool_choice={"type": "function", "function": {"name": SECRET}}),
        Reason.AMBIGUOUS,
        "does not call what `tool_choice`",
    ),
    (row_of(ANSWER, tool_choice=SECRET), Reason.UNSUPPORTED_FIELD, "`tool_choice` must be"),
    # reasoning
    (row_of(ANSWER | {"reasoning": SECRET, "thinking": "t"}), Reason.AMBIGUOUS, "`reasoning` and `thinking` differ"),
    (
        row_of({"role": "assistant", "content": f"<think>{SECRET}</think>a", "reasoning": "t"}),
        Reason.AMBIGUOUS,
        "in a field of its own and before",
    ),
    (row_of(ANSWER | {"reasoning": [SECRET, SECRET]}), Reason.NOT_TEXT, "`reasoning` must be text"),
    ({"messages": [USER, {"role": "assistant", "reasoning": SECRET}]}, Reason.MISSING_FIELD, "`content` is missing"),
    ({"messages": [USER | {"reasoning": SECRET}, ANSWER]}, Reason.UNSUPPORTED_FIELD, "its role is another"),
    ({"messages": [USER, ANSWER], "reasoning": SECRET}, Reason.AMBIGUOUS, "does not say which turn"),
    (
        {"prompt": "q", "output": "<think>a</think>b", "reasoning": SECRET},
        Reason.AMBIGUOUS,
        "and before </think> in the answer",
    ),
    (
        row_of(calls(called(), prefix=True), ANSWER),
        Reason.UNSUPPORTED_FIELD,
        "goes on from a given beginning (`prefix`) has calls",
    ),
]


@pytest.mark.parametrize(("row", "reason", "rule"), REFUSED)
def test_what_is_wrong_is_refused_with_its_place_and_never_its_text(
    row: dict[str, Any], reason: Reason, rule: str
) -> None:
    fault = fault_of(row)
    assert (fault.reason, rule in fault.rule) == (reason, True), fault.rule


def test_the_place_of_a_call_that_does_not_fit_is_named() -> None:
    fault = fault_of(row_of(calls(called(), called({"city": 7}, id="b"))))
    assert fault.at == "message 2, call 2"


def test_nulls_that_parquet_puts_into_arguments_are_explained() -> None:
    """One column has the arguments of all rows, and null where a row has none: neither call nor schema is wrong."""
    for arguments in ({"city": "Paris", "days": None}, {"city": "Paris", "other": None}):
        assert "write `arguments` as JSON text" in fault_of(row_of(calls(called(arguments)))).fix
    assert "Parquet" not in fault_of(row_of(calls(called({"city": 7})))).fix


def test_a_schema_may_have_any_keyword() -> None:
    """What the short way does not know is left to the library, also where it is deep inside."""
    schema = {
        "type": "object",
        "properties": {
            "when": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "of": {"$ref": "#/$defs/of"},
            "n": {"type": ["integer", "null"]},
        },
        "$defs": {"of": {"type": "array", "items": {"type": "string", "minLength": 2}}},
    }
    for arguments in ({"when": None}, {"when": "now", "of": ["ab"], "n": None}, {"n": 2.0}, {}):
        assert parse(row_of(calls(called(arguments)), tools=tool(schema)))
    assert "properties.of" in fault_of(row_of(calls(called({"of": ["a"]})), tools=tool(schema))).rule
    assert "properties.n.type" in fault_of(row_of(calls(called({"n": "a"})), tools=tool(schema))).rule


def test_only_what_is_learned_as_right_has_to_fit() -> None:
    """A row with a reward may have a bad answer: that is what it teaches."""
    row = {"prompt": [USER], "completion": [calls(called({"unit": SECRET}))], "tools": TOOLS, "reward": -1}
    assert parse(row, "ppo").tools == TOOLS
    assert fault_of({key: value for key, value in row.items() if key != "reward"}).reason is Reason.CALL_DOES_NOT_FIT


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (row_of(ANSWER), "tools"),
        ({"messages": [USER, calls(called())]}, "tool_calls"),
        ({"messages": [USER, ANSWER, result(), ANSWER]}, "tool"),
        ({"messages": REASONED}, "reasoning_content"),
    ],
)
def test_a_mode_that_does_not_learn_them_refuses_by_name(row: dict[str, Any], kind: str) -> None:
    with pytest.raises(RowFault) as error:
        RowParser(replace(MODES["sft"].rows, takes=frozenset())).parse(1, row)
    assert error.value.reason is Reason.UNSUPPORTED_FIELD
    assert f"`{kind}`" in error.value.rule
    assert "does not learn" in error.value.rule
