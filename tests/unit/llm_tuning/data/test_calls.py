"""Calls and tools as keys, as a template gets them and as a request has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.data.calls import for_request, for_template, key_text, tools_key
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.splitting import PromptGroups, prompt_key
from llm_tuning.data.tally import DuplicateCounter

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "description": None, "parameters": None}}
OTHER: dict[str, Any] = {"type": "function", "function": {"name": "g", "description": None, "parameters": None}}


def called(name: str = "f", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"arguments": arguments, "name": name}}


def turn(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)} | more


ASKED = {"role": "user", "content": "q"}
RESULT = {"role": "tool", "content": "42"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (turn(called(x=1)), turn(called(x=2))),
        (turn(called(x=1)), turn(called("g", x=1))),
        (turn(called()), turn(called(), called())),
        (turn(called()), turn(called(), reasoning_content="why")),
        (ANSWER, ANSWER | {"reasoning_content": "why"}),
        (RESULT, RESULT | {"name": "f"}),
    ],
)
def test_turns_that_say_other_things_have_other_prompts_and_are_no_duplicates(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert key_text(one) != key_text(other)
    keys = {prompt_key([ASKED, each, ANSWER]) for each in (one, other)}
    assert len(keys) == 2
    counter = DuplicateCounter()
    for number, each in enumerate((one, other, one)):
        counter.add(Example(number, (Conversation([ASKED, each, ANSWER]),)))
    assert counter.result().rows == [2]


def test_ids_of_calls_and_the_order_of_arguments_are_not_what_a_prompt_says() -> None:
    one = turn(called(x=1, y=2) | {"id": "call_abc"})
    assert key_text(one) == key_text(turn(called(y=2, x=1) | {"id": "call_def"}))


def test_tools_are_part_of_the_prompt() -> None:
    rows = [[TOOL], [OTHER], [TOOL, OTHER], None]
    assert len({prompt_key([ASKED, ANSWER], tools=tools) for tools in rows}) == 4
    assert prompt_key([ASKED, ANSWER], tools=None) == prompt_key([ASKED, ANSWER])
    groups = PromptGroups()
    for tools in (*rows, [TOOL]):
        groups.add([ASKED, ANSWER], tools=tools)
    keys = groups.keys().tolist()
    assert len(set(keys)) == 4
    assert keys[0] == keys[4]
    counter = DuplicateCounter()
    for number, tools in enumerate((*rows, [TOOL])):
        counter.add(Example(number, (Conversation([ASKED, ANSWER], tools=tools),)))
    assert counter.result().rows == [4]
    assert tools_key([]) == tools_key(None) == ""


def test_a_template_gets_reasoning_by_each_name_that_a_server_gives() -> None:
    messages = [ASKED, ANSWER | {"reasoning_content": "why"}]
    assert for_template(messages)[1] == ANSWER | {"reasoning_content": "why", "reasoning": "why"}
    twice = for_template([*messages, *messages], thinking_from=3)
    assert ["thinking" in message for message in twice] == [False, False, False, True]
    assert for_template([ASKED, ANSWER]) == [ASKED, ANSWER]
    assert "reasoning" not in messages[1], "the row's own messages stay as they are"


def test_a_request_has_texts_of_arguments_and_ids() -> None:
    messages = [
        ASKED,
        turn(called(city="Z\u00fcrich", n=1), called("g"), reasoning_content="why"),
        RESULT,
        RESULT,
        turn(called() | {"id": "x"}),
        RESULT | {"tool_call_id": "x"},
    ]
    sent = for_request(messages)
    first, second = sent[1]["tool_calls"]
    assert first["function"] == {"name": "f", "arguments": '{"city": "Z\u00fcrich", "n": 1}'}
    assert second["function"] == {"name": "g", "arguments": "{}"}
    assert sent[1]["reasoning"] == "why"
    assert sent[1]["content"] is None, "as a server answers it"
    assert "reasoning_content" not in sent[1]
    assert [sent[2]["tool_call_id"], sent[3]["tool_call_id"]] == [first["id"], second["id"]]
    assert sent[4]["tool_calls"][0]["id"] == sent[5]["tool_call_id"] == "x"
    assert sent[0] == ASKED
    assert json.loads(json.dumps(sent)) == sent
    assert "id" not in messages[1]["tool_calls"][0]
