"""Tools, calls, results and reasoning as other projects write them, to one form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Conversation
from llm_tuning.data.tools import ToolReader
from llm_tuning.modes import MODES
from tests.support.tool_turns import (
    ANSWER,
    CALLS_AS_TEXT,
    CLOCK,
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


def without_ids(conversation: Conversation) -> list[dict[str, Any]]:
    messages = []
    for message in conversation.messages or []:
        kept = {name: value for name, value in message.items() if name not in ("tool_call_id", "name")}
        if "tool_calls" in kept:
            kept["tool_calls"] = [{k: v for k, v in call.items() if k != "id"} for call in kept["tool_calls"]]
        messages.append(kept)
    return messages


ONE_FORM = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [called(id=None)]},
    {"role": "tool", "content": "21"},
    ANSWER,
]
FORMS: dict[str, dict[str, Any]] = {
    "OpenAI": {"messages": [USER, calls(called('{"city": "Paris"}')), result(tool_call_id="call_1"), ANSWER]},
    "arguments as an object": {"messages": [USER, calls(called()), result(tool_call_id="call_1"), ANSWER]},
    "content is empty": {"messages": [USER, calls(called(), content=""), result(tool_call_id="call_1"), ANSWER]},
    "no content": {"messages": [USER, {"role": "assistant", "tool_calls": [called()]}, result(), ANSWER]},
    "a call without function": {
        "messages": [USER, calls({"name": "get_weather", "arguments": {"city": "Paris"}}), result(), ANSWER]
    },
    "calls as text": {"messages": [USER, calls() | {"tool_calls": json.dumps([called()])}, result(), ANSWER]},
    "nulls beside": {
        "messages": [
            USER | {"tool_calls": None, "tool_call_id": None, "name": None, "reasoning_content": None},
            calls(called(), function_call=None, refusal=None, reasoning=None),
            result(tool_call_id="call_1", tool_calls=[]),
            ANSWER | {"tool_calls": []},
        ]
    },
    "result in parts": {"messages": [USER, calls(called()), result([{"type": "text", "text": "21"}]), ANSWER]},
    "functions": {
        "messages": [USER, OLD, {"role": "function", "name": "get_weather", "content": "21"}, ANSWER],
        "functions": [WEATHER],
    },
    "ShareGPT": {"conversations": SHAREGPT, "tools": json.dumps([WEATHER])},
    "ShareGPT, a list of calls": {
        "conversations": [
            SHAREGPT[0],
            SHAREGPT[1] | {"value": json.dumps([{"name": "get_weather", "arguments": {"city": "Paris"}}])},
            *SHAREGPT[2:],
        ],
        "tools": json.dumps(TOOLS),
    },
    "choice": {
        "messages": [USER, calls(called()), result(), ANSWER],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
    },
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_every_form_becomes_one(row: dict[str, Any]) -> None:
    given = row if "tools" in row or "functions" in row else row | {"tools": TOOLS}
    parser = RowParser(MODES["sft"].rows)
    example = parser.parse(1, given)
    assert example is not None
    (conversation,) = example.sequences
    assert without_ids(conversation) == ONE_FORM
    assert conversation.tools == TOOLS
    assert parser.ignored_fields == set()


def test_calls_and_declarations_have_the_order_in_which_vllm_hands_them_on() -> None:
    scrambled = {"function": {"parameters": PARAMETERS, "description": "d", "name": "get_weather"}, "type": "function"}
    conversation = parse({"messages": [USER, calls(called())], "tools": [scrambled, CLOCK["function"] | {}]})
    assert conversation.tools is not None
    (call,) = (conversation.messages or [])[1]["tool_calls"]
    assert [*call, *call["function"]] == ["id", "function", "type", "arguments", "name"]
    assert [*conversation.tools[0], *conversation.tools[0]["function"]] == [
        "type",
        "function",
        "name",
        "description",
        "parameters",
    ]
    assert conversation.tools[1] == CLOCK, "what is not given is null, as a server has it"


def test_ids_and_names_are_kept_and_need_not_be_there() -> None:
    messages = [USER, calls(called(id="a"), called(id="b")), result("1", tool_call_id="b"), result("2"), ANSWER]
    conversation = parse({"messages": messages, "tools": TOOLS})
    assert [call["id"] for call in (conversation.messages or [])[1]["tool_calls"]] == ["a", "b"]
    assert (conversation.messages or [])[2]["tool_call_id"] == "b"
    assert "tool_call_id" not in (conversation.messages or [])[3]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER | {"reasoning_content": "It is July."}]},
        {"messages": [USER, ANSWER | {"reasoning": "It is July."}]},
        {"messages": [USER, ANSWER | {"thinking": "It is July."}]},
        {"messages": [USER, ANSWER | {"reasoning": "It is July.", "reasoning_content": "It is July."}]},
        {"prompt": USER["content"], "output": ANSWER["content"], "reasoning_content": "It is July."},
        {"prompt": USER["content"], "completion": ANSWER["content"], "reasoning": "It is July."},
        {"instruction": USER["content"], "output": ANSWER["content"], "thinking": "It is July."},
    ],
)
def test_reasoning_is_of_its_answer(row: dict[str, Any]) -> None:
    assert parse(row).messages == REASONED


def test_reasoning_may_have_a_column_of_its_own() -> None:
    row = {"prompt": USER["content"], "output": ANSWER["content"], "cot": "It is July."}
    assert parse(row, reasoning_content="cot").messages == REASONED
    assert "{set:dataset.columns=reasoning_content=cot}" in fault_of(row).fix


def test_reasoning_beside_a_call() -> None:
    (_, turn) = parse({"messages": [USER, calls(called(), reasoning_content="Look.")], "tools": TOOLS}).messages or []
    assert list(turn) == ["role", "content", "reasoning_content", "tool_calls"]


def test_keywords_that_are_null_are_those_of_other_tools_in_parquet() -> None:
    merged = PARAMETERS | {"properties": PARAMETERS["properties"] | {"other": None}, "enum": None, "title": None}
    merged["properties"] = {
        name: {"type": "string", "description": None, "items": None} | (value or {}) if value else None
        for name, value in merged["properties"].items()
    }
    conversation = parse(row_of(calls(called()), tools=tool({k: v for k, v in merged.items() if k != "enum"})))
    assert conversation.tools is not None
    properties = conversation.tools[0]["function"]["parameters"]["properties"]
    assert set(properties) == set(PARAMETERS["properties"])
    assert "description" not in properties["unit"]


def test_a_call_that_is_wrong_on_purpose_is_context() -> None:
    wrong = calls(called({"unit": "mph"}), train=False)
    conversation = parse(row_of(wrong, result("no such unit"), calls(called()), result(), ANSWER))
    assert conversation.not_learned == {1}


def test_rows_with_the_same_tools_share_them() -> None:
    reader = ToolReader()
    assert reader.read(TOOLS, "tools") is reader.read(json.loads(json.dumps(TOOLS)), "tools")
    text = json.dumps([WEATHER])
    assert reader.read(text, "tools") is reader.read(text, "tools")
    for _ in range(2):
        with pytest.raises(RowFault, match="has no `name`"):
            reader.read([{}], "tools")


def test_what_is_kept_of_declarations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_tuning.data.tools._MOST_CHARACTERS", 2000)
    reader = ToolReader()
    for number in range(50):
        reader.read(tool(PARAMETERS, description=f"number {number}"), "tools")
    assert len(reader._sets) < 10


PAIRS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": [USER], "chosen": [calls(called())], "rejected": [ANSWER], "tools": TOOLS},
    "OpenAI": {
        "input": {"messages": [USER], "tools": TOOLS, "parallel_tool_calls": True},
        "preferred_output": [calls(called('{"city": "Paris"}'))],
        "non_preferred_output": [ANSWER],
    },
    "a wrong call is rejected": {
        "prompt": [USER],
        "chosen": [calls(called())],
        "rejected": [calls(called({"unit": "mph"}, name="no_tool"))],
        "tools": json.dumps([WEATHER]),
    },
    "after a result": {
        "prompt": [USER, calls(called()), result()],
        "chosen": [ANSWER | {"reasoning_content": "It is July."}],
        "rejected": [ANSWER],
        "tools": TOOLS,
    },
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_both_sides_of_a_pair_have_the_tools(row: dict[str, Any]) -> None:
    example = RowParser(MODES["dpo"].rows).parse(1, row)
    assert example is not None
    assert [conversation.tools for conversation in example.sequences] == [TOOLS, TOOLS]
    assert len({conversation.learn_from for conversation in example.sequences}) == 1


def test_the_chosen_and_the_good_answer_have_to_fit() -> None:
    wrong = [calls(called({"unit": "mph"}))]
    assert fault_of(PAIRS["prompt"] | {"chosen": wrong}, "dpo").reason is Reason.CALL_DOES_NOT_FIT
    labelled = {"prompt": [USER], "completion": wrong, "tools": TOOLS}
    assert fault_of(labelled | {"label": True}, "kto").reason is Reason.CALL_DOES_NOT_FIT
    assert parse(labelled | {"label": False}, "kto").tools == TOOLS


def test_reasoning_beside_a_pair_is_of_neither() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "reasoning": SECRET}
    assert fault_of(row, "dpo").reason is Reason.AMBIGUOUS


TEXTS_LIKE_CALLS = [
    "A call of get_weather is written as JSON.",
    "The tag <tool_call> begins one.",
    '{"name": "Paris", "arguments": []}',
    '[{"name": "get_weather"}]',
    "[]",
]


@pytest.mark.parametrize("text", TEXTS_LIKE_CALLS, ids=range(len(TEXTS_LIKE_CALLS)))
def test_an_answer_in_words_is_no_call(text: str) -> None:
    assert (parse(row_of(ANSWER | {"content": text})).messages or [])[-1]["content"] == text


@pytest.mark.parametrize("text", CALLS_AS_TEXT, ids=range(len(CALLS_AS_TEXT)))
def test_calls_as_text_are_learned_as_such_without_tools_of_the_row_and_in_answers_not_learned(text: str) -> None:
    said = ANSWER | {"content": text}
    assert parse({"messages": [USER, said]}).tools is None
    marked = parse(row_of(said | {"train": False}, USER, ANSWER))
    assert (marked.messages or [])[1] == said
