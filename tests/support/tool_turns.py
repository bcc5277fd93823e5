"""Rows with tools and calls, and what the parser makes of one: for the tests of those forms and of their refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.data.faults import RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Conversation
from llm_tuning.modes import MODES

SECRET = "sECRET-row-content"
USER = {"role": "user", "content": "How warm is it?"}
ANSWER = {"role": "assistant", "content": "It is warm."}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Name of the town"},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "minimum": 1},
        "places": {"type": "array", "items": {"type": "object", "properties": {"lat": {"type": "number"}}}},
    },
    "required": ["city"],
}
WEATHER = {"name": "get_weather", "description": "Weather of a place.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": WEATHER}]
CLOCK = {"type": "function", "function": {"name": "clock", "description": None, "parameters": None}}


def called(arguments: Any = None, *, name: str = "get_weather", id: str | None = "call_1") -> dict[str, Any]:
    arguments = {"city": "Paris"} if arguments is None else arguments
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return call if id is None else {"id": id} | call


def calls(*given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(given)} | more


def result(content: Any = "21", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content} | more


def parse(row: dict[str, Any], mode: str = "sft", **columns: str) -> Conversation:
    example = RowParser(MODES[mode].rows, columns).parse(1, row)
    assert example is not None
    return example.sequences[0]


def fault_of(row: dict[str, Any], mode: str = "sft") -> RowFault:
    with pytest.raises(RowFault) as error:
        parse(row, mode)
    fault = error.value
    assert fault.fix
    assert SECRET not in f"{fault} {fault.fix} {fault.at}"
    return fault


def row_of(*turns: dict[str, Any], tools: Any = TOOLS, **more: Any) -> dict[str, Any]:
    return {"messages": [USER, *turns], "tools": tools} | more


def tool(parameters: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "get_weather", "parameters": parameters} | more}]


CALLS_AS_TEXT = [
    '<tool_call>\n{"arguments": {"city": "sECRET-row-content"}, "name": "get_weather"}\n</tool_call>',
    'I look. <functioncall> {"name": "get_weather", "arguments": \'{"city": "sECRET-row-content"}\'}',
    '[{"name": "get_weather", "arguments": {"city": "sECRET-row-content"}}]',
    '{"name": "get_weather", "parameters": {"city": "sECRET-row-content"}}',
]
"""What looks like a call and is text."""
SHAREGPT = [
    {"from": "human", "value": USER["content"]},
    {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": {"city": "Paris"}})},
    {"from": "observation", "value": "21"},
    {"from": "gpt", "value": ANSWER["content"]},
]
OLD = {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
REASONED = [USER, ANSWER | {"reasoning_content": "It is July."}]
