"""Fields of a call or of a tool by other names: none is lost, for a call without its arguments would be learned so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.data.faults import Reason
from llm_tuning.data.parser import RowParser
from llm_tuning.modes import MODES
from tests.support.tool_turns import ANSWER, SECRET, SHAREGPT, TOOLS, called, calls, fault_of, parse, row_of, tool

ANY = tool({"type": "object", "properties": {"city": {"type": "string"}}})
"""A tool that may be called without arguments: nothing but the name of the field tells that some were meant."""
GIVEN = {"city": SECRET}
ARGUMENT_NAMES = ("parameters", "params", "args", "kwargs", "input", "tool_input", "Arguments", "arguments_json", "x")


def wrapped(**fields: Any) -> dict[str, Any]:
    return row_of(calls({"type": "function", "function": {"name": "get_weather", **fields}}), tools=ANY)


def bare(**fields: Any) -> dict[str, Any]:
    return row_of(calls({"name": "get_weather", **fields}), tools=ANY)


def beside(**fields: Any) -> dict[str, Any]:
    """A call whose arguments stand beside `function`, and not in it."""
    return row_of(calls({"type": "function", "function": {"name": "get_weather"}, **fields}), tools=ANY)


def beside_whole(**fields: Any) -> dict[str, Any]:
    """A call with an id and with arguments, where they are read, and something beside `function`."""
    return row_of(calls({"id": "call_1", "function": called()["function"], **fields}), tools=ANY)


def old(**fields: Any) -> dict[str, Any]:
    called_so = {"name": "get_weather", **fields}
    return row_of({"role": "assistant", "content": None, "function_call": called_so}, tools=ANY)


def sharegpt(**fields: Any) -> dict[str, Any]:
    text = json.dumps({"name": "get_weather", **fields})
    return {"conversations": [SHAREGPT[0], {"from": "function_call", "value": text}], "tools": ANY}


@pytest.mark.parametrize("form", [wrapped, bare, beside, old, sharegpt])
@pytest.mark.parametrize("name", [*ARGUMENT_NAMES, "arguments"])
@pytest.mark.parametrize("value", [GIVEN, json.dumps(GIVEN), {"city": False}], ids=["object", "text", "false"])
def test_arguments_by_a_name_that_is_not_read_refuse_their_row(form: Any, name: str, value: Any) -> None:
    if name == "arguments" and form is not beside:
        return  # that is where they are read
    fault = fault_of(form(**{name: value}))
    assert fault.reason is Reason.NOT_A_CALL
    assert f"{name}`" in fault.rule
    assert "`arguments`" in fault.fix


@pytest.mark.parametrize("name", ["parameters", "args", "input"])
def test_other_arguments_beside_the_arguments_refuse_their_row(name: str) -> None:
    fault = fault_of(wrapped(**{"arguments": {"city": "Rome"}, name: GIVEN}))
    assert (fault.reason, f"{name}`" in fault.rule) == (Reason.AMBIGUOUS, True)
    assert "keep" in fault.fix
    assert fault_of(beside_whole(**{name: GIVEN})).reason is Reason.AMBIGUOUS
    assert fault_of(beside_whole(arguments=GIVEN)).reason is Reason.AMBIGUOUS


@pytest.mark.parametrize("name", ["parameters", "args", "input"])
def test_a_copy_of_the_arguments_changes_nothing(name: str) -> None:
    plain = parse(wrapped(arguments={"city": "Rome"}))
    assert parse(wrapped(**{"arguments": {"city": "Rome"}, name: '{"city": "Rome"}'})) == plain
    assert parse(wrapped(**{"arguments": {}, name: {}})) == parse(wrapped())


@pytest.mark.parametrize("name", ["result", "results", "output", "response", "return_value", "observation"])
def test_what_a_tool_gave_in_its_call_refuses_the_row(name: str) -> None:
    for form in (wrapped, bare, beside, beside_whole):
        arguments = {"arguments": {"city": "Rome"}} if form in (wrapped, bare) else {}
        fault = fault_of(form(**arguments, **{name: SECRET}))
        assert (fault.reason, f"{name}`" in fault.rule) == (Reason.UNSUPPORTED_FIELD, True)
        assert "role tool" in fault.fix


def test_what_else_a_call_has_is_named_in_a_note() -> None:
    call = called() | {"index": 0, "status": "completed"}
    call["function"] |= {"description": "d", "thought_signature": "s"}
    parser = RowParser(MODES["sft"].rows)
    assert parser.parse(1, row_of(calls(call), ANSWER) | {"messages": row_of(calls(call))["messages"]})
    names = ("status", "function.description", "function.thought_signature")
    assert parser.ignored_fields == {f"messages[].tool_calls[].{name}" for name in names}
    parser = RowParser(MODES["sft"].rows)
    assert parser.parse(1, row_of(calls(called())))
    assert parser.ignored_fields == set()


@pytest.mark.parametrize("name", ["input_schema", "inputSchema", "schema", "args_schema", "params", "arguments"])
def test_a_schema_by_another_name_is_to_be_written_as_parameters(name: str) -> None:
    """Anthropic's name, and that of MCP: put into the description, as other fields, it would be no schema."""
    schema = TOOLS[0]["function"]["parameters"]
    fault = fault_of(row_of(ANSWER, tools=[{"name": "get_weather", "description": "d", name: schema}]))
    assert (fault.reason, f"`{name}`" in fault.rule) == (Reason.UNSUPPORTED_FIELD, True)
    assert fault.fix.startswith("write it as `parameters`")
    returned = fault_of(row_of(ANSWER, tools=tool(schema, returns={"type": "object"})))
    assert "`parameters`" not in returned.fix
