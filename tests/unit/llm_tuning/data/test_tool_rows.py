"""Tools, calls, results and reasoning as other projects write them, to one form; and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Conversation
from llm_tuning.data.tools import ToolReader
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


def without_ids(conversation: Conversation) -> list[dict[str, Any]]:
    messages = []
    for message in conversation.messages or []:
        kept = {name: value for name, value in message.items() if name not in ("tool_call_id", "name")}
        if "tool_calls" in kept:
            kept["tool_calls"] = [{k: v for k, v in call.items() if k != "id"} for call in kept["tool_calls"]]
        messages.append(kept)
    return messages


CALLS_AS_TEXT = [
    '<tool_call>\n{"arguments": {"city": "sECRET-row-content"}, "name": "get_weather"}\n</tool_call>',
    'I look. <functioncall> {"name": "get_weather", "arguments": \'{"city": "sECRET-row-content"}\'}',
    '[{"name": "get_weather", "arguments": {"city": "sECRET-row-content"}}]',
    '{"name": "get_weather", "parameters": {"city": "sECRET-row-content"}}',
]
ONE_FORM = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [called(id=None)]},
    {"role": "tool", "content": "21"},
    ANSWER,
]
SHAREGPT = [
    {"from": "human", "value": USER["content"]},
    {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": {"city": "Paris"}})},
    {"from": "observation", "value": "21"},
    {"from": "gpt", "value": ANSWER["content"]},
]
OLD = {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
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


REASONED = [USER, ANSWER | {"reasoning_content": "It is July."}]


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


def row_of(*turns: dict[str, Any], tools: Any = TOOLS, **more: Any) -> dict[str, Any]:
    return {"messages": [USER, *turns], "tools": tools} | more


def tool(parameters: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "get_weather", "parameters": parameters} | more}]


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
    (row_of(ANSWER, tools=[SECRET]), Reason.NOT_TOOLS, "a tool must be an object"),
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
    (row_of(ANSWER | {"reasoning": [SECRET]}), Reason.NOT_TEXT, "`reasoning` must be text"),
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
