"""Every accepted shape becomes the same internal form; everything else has a reason, a rule and a fix."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Example
from llm_tuning.modes import MODES

SECRET = "sECRET-row-content"
USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def parse(row: Any, mode: str = "sft") -> Example:
    example = RowParser(MODES[mode].rows).parse(1, row)
    assert example is not None
    return example


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "q", "output": "a"}, [USER, ASSISTANT]),
        ({"prompt": "q", "output": "a", "reward": "ignored"}, [USER, ASSISTANT]),
        ({"prompt": "q", "completion": "a"}, [USER, ASSISTANT]),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ({"prompt": [USER], "completion": "a"}, [USER, ASSISTANT]),
        ({"messages": [SYSTEM, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ({"messages": [USER, ASSISTANT], "prompt": None, "text": None}, [USER, ASSISTANT]),
        ({"messages": [USER, ASSISTANT | {"name": None, "weight": 1}]}, [USER, ASSISTANT]),
        ({"messages": [SYSTEM | {"content": ""}, USER, ASSISTANT]}, [SYSTEM | {"content": ""}, USER, ASSISTANT]),
        ({"instruction": "q", "output": "a"}, [USER, ASSISTANT]),
        ({"instruction": "q", "input": "", "output": "a"}, [USER, ASSISTANT]),
        ({"instruction": "q", "input": "x", "output": "a"}, [USER | {"content": "q\n\nx"}, ASSISTANT]),
        ({"instruction": "q", "input": "<noinput>", "output": "a"}, [USER, ASSISTANT]),
        ({"instruction": "q", "input": "nan", "output": "a"}, [USER, ASSISTANT]),
        ({"instruction": "q", "input": math.nan, "output": "a"}, [USER, ASSISTANT]),
        ({"instruction": "<NA>", "input": "q", "output": "a"}, [USER, ASSISTANT]),
        ({"instruction": "q", "input": "None", "output": "a"}, [USER | {"content": "q\n\nNone"}, ASSISTANT]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER, ASSISTANT]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "chatgpt", "value": "a"},
                ]
            },
            [SYSTEM, USER, ASSISTANT],
        ),
        ({"conversations": [USER, ASSISTANT]}, [USER, ASSISTANT]),
        (
            {"conversations": [{"from": "human", "value": "q", "role": None}, ASSISTANT | {"from": None}]},
            [USER, ASSISTANT],
        ),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER, ASSISTANT]),
        ({"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]}, [USER, ASSISTANT]),
        ({"conversations": [{"role": "user", "value": "q"}, {"role": "assistant", "value": "a"}]}, [USER, ASSISTANT]),
        ({"messages": [USER | {"content": [{"type": "text", "text": "q"}]}, ASSISTANT]}, [USER, ASSISTANT]),
        ({"messages": [USER | {"content": [{"type": "text", "value": "q"}]}, ASSISTANT]}, [USER, ASSISTANT]),
        ({"messages": [USER | {"content": [{"text": "q", "image_url": None}]}, ASSISTANT]}, [USER, ASSISTANT]),
        ({"messages": [USER | {"content": ["q", {"text": "r"}]}, ASSISTANT]}, [USER | {"content": "q\nr"}, ASSISTANT]),
    ],
)
def test_conversations_of_every_shape(row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    example = parse(row)
    assert (example.sequences[0].messages, example.sequences[0].text) == (messages, None)
    assert math.isnan(example.number)


def test_text_rows_stay_text() -> None:
    example = parse({"text": " once upon "})
    assert (example.sequences[0].text, example.sequences[0].messages) == (" once upon ", None)


def test_a_prompt_of_messages_is_context_only() -> None:
    prompt = [USER, ASSISTANT, USER]
    example = parse({"prompt": prompt, "completion": [ASSISTANT, USER, ASSISTANT]})
    assert example.sequences[0].learn_from == 3
    assert example.sequences[0].messages == [*prompt, ASSISTANT, USER, ASSISTANT]


def test_messages_after_the_last_answer_are_left_out_and_counted() -> None:
    parser = RowParser(MODES["sft"].rows)
    example = parser.parse(1, {"messages": [USER, ASSISTANT, USER]})
    assert example is not None
    assert example.sequences[0].messages == [USER, ASSISTANT]
    assert parser.counts["trimmed"] == 1


@pytest.mark.parametrize(
    ("row", "reward"),
    [
        ({"reward": 1}, 1.0),
        ({"reward": -0.5, "rating": None}, -0.5),
        ({"rating": 3}, 3.0),
        ({"reward": None, "rating": 0}, 0.0),
        ({"reward": 2, "rating": 2.0}, 2.0),
        ({"reward": Decimal("0.25")}, 0.25),
    ],
)
def test_rewards_of_ppo_rows(row: dict[str, Any], reward: float) -> None:
    assert parse({"prompt": "q", "output": "a"} | row, "ppo").number == reward
    assert parse({"prompt": "q", "completion": "a"} | row, "ppo").number == reward


@pytest.mark.parametrize(
    ("row", "reason", "rule"),
    [
        ({"reward": None}, Reason.MISSING_REWARD, "`reward` is null"),
        ({}, Reason.MISSING_REWARD, "`reward` is missing"),
        ({"reward": True}, Reason.REWARD_NOT_A_NUMBER, "got true or false"),
        ({"reward": "0.5"}, Reason.REWARD_NOT_A_NUMBER, "got text"),
        ({"rating": [1]}, Reason.REWARD_NOT_A_NUMBER, "`rating` must be a finite number, got a list"),
        ({"reward": math.nan}, Reason.REWARD_NOT_FINITE, "got NaN"),
        ({"reward": math.inf}, Reason.REWARD_NOT_FINITE, "got an infinite number"),
        ({"reward": 10**400}, Reason.REWARD_NOT_FINITE, "got an infinite number"),
        ({"reward": -1e308}, Reason.REWARD_NOT_FINITE, "must be between -1e+100 and 1e+100, got -1e+308"),
        ({"reward": 5, "rating": 1}, Reason.AMBIGUOUS, "`reward` and `rating` differ"),
    ],
)
def test_rewards_that_are_no_finite_number(row: dict[str, Any], reason: Reason, rule: str) -> None:
    with pytest.raises(RowFault) as fault:
        parse({"prompt": "q", "output": "a"} | row, "ppo")
    assert fault.value.reason is reason
    assert rule in fault.value.rule


REFUSED: list[tuple[dict[str, Any], Reason, str]] = [
    ({"output": SECRET}, Reason.MISSING_FIELD, "`prompt` is missing"),
    ({"prompt": SECRET}, Reason.MISSING_FIELD, "`output` is missing"),
    ({"prompt": None, "output": SECRET}, Reason.NULL_FIELD, "`prompt` is null"),
    ({"prompt": SECRET, "output": None}, Reason.NULL_FIELD, "`output` is null"),
    ({"prompt": "", "output": SECRET}, Reason.EMPTY_FIELD, "`prompt` is empty"),
    ({"prompt": SECRET, "output": " \n"}, Reason.EMPTY_FIELD, "`output` is empty"),
    ({"prompt": SECRET, "output": 3}, Reason.NOT_TEXT, "`output` must be text, got a number"),
    ({"prompt": SECRET, "output": math.nan}, Reason.NOT_TEXT, "`output` must be text, got a number"),
    ({"prompt": SECRET, "output": {"text": SECRET}}, Reason.NOT_TEXT, "got an object"),
    ({"prompt": True, "output": SECRET}, Reason.NOT_TEXT, "got true or false"),
    ({"prompt": SECRET, "output": "\ud83d"}, Reason.NOT_UNICODE, "half of a character"),
    ({"prompt": [USER], "completion": [USER]}, Reason.NO_ASSISTANT_TURN, "`completion` has no assistant turn"),
    ({"instruction": SECRET, "input": 3, "output": "a"}, Reason.NOT_TEXT, "`input` must be text"),
    ({"text": ""}, Reason.EMPTY_FIELD, "`text` is empty"),
    ({"question": SECRET, "answer": SECRET}, Reason.UNKNOWN_SHAPE, "none of the shapes of sft rows"),
    ({}, Reason.UNKNOWN_SHAPE, "none of the shapes"),
    ({"messages": []}, Reason.NOT_MESSAGES, "an empty list"),
    ({"messages": SECRET}, Reason.NOT_MESSAGES, "must be a list of messages, got text"),
    ({"messages": [SECRET]}, Reason.NOT_MESSAGES, "a message must be an object, got text"),
    ({"messages": [{"name": "human", "value": SECRET}]}, Reason.NOT_MESSAGES, "has no `role`"),
    ({"messages": [{"role": "bot", "content": SECRET}]}, Reason.UNKNOWN_ROLE, "one of system, user, assistant"),
    ({"messages": [{"role": "user", "from": "gpt", "content": SECRET}]}, Reason.AMBIGUOUS, "`role` and `from`"),
    ({"messages": [{"role": "user", "value": "b", "content": SECRET}]}, Reason.AMBIGUOUS, "`content` and `value`"),
    ({"messages": [{"role": [SECRET], "content": SECRET}]}, Reason.UNKNOWN_ROLE, "one of system"),
    ({"messages": [{"role": "user"}]}, Reason.MISSING_FIELD, "`content` is missing"),
    ({"messages": [{"role": "user", "content": {"text": SECRET}}]}, Reason.NOT_TEXT, "`content` must be text"),
    ({"messages": [{"role": "user", "content": [3]}]}, Reason.NOT_TEXT, "a part of a text must be an object"),
    ({"messages": [{"role": "user", "content": [{"type": SECRET}]}]}, Reason.NOT_TEXT, "a `type` that is not text"),
    ({"messages": [{"role": "user", "content": []}]}, Reason.EMPTY_FIELD, "`content` is empty"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, Reason.EMPTY_FIELD, "`content` is empty"),
    ({"messages": [USER, ASSISTANT | {"tool_calls": [{}]}]}, Reason.NOT_A_CALL, "a call has no `name`"),
    ({"messages": [USER, ASSISTANT | {"tool_use": [{}]}]}, Reason.UNSUPPORTED_FIELD, "`tool_use`"),
    ({"messages": [USER, ASSISTANT | {"weight": 0.5}]}, Reason.UNSUPPORTED_FIELD, "`weight` must be 1 or true"),
    ({"prompt": {"0": SECRET}, "output": {"0": SECRET}}, Reason.COLUMNS_NOT_ROWS, "holds columns, not rows"),
    ({"instruction": " ", "input": "", "output": SECRET}, Reason.EMPTY_FIELD, "`instruction` and `input` are empty"),
    (
        {"instruction": "nan", "input": "<noinput>", "output": SECRET},
        Reason.EMPTY_FIELD,
        "`instruction` and `input` are",
    ),
    ({"messages": [USER, ASSISTANT], "tools": [{}]}, Reason.NOT_TOOLS, "a tool has no `name`"),
    ({"messages": [USER, SYSTEM, ASSISTANT]}, Reason.SYSTEM_NOT_FIRST, "must come first"),
    ({"messages": [SYSTEM, USER]}, Reason.NO_ASSISTANT_TURN, "no assistant turn"),
    ({"messages": [SYSTEM]}, Reason.NO_ASSISTANT_TURN, "no assistant turn"),
    ({"messages": [ASSISTANT, USER, ASSISTANT]}, Reason.NO_USER_TURN, "start with a user turn"),
    ({"messages": [SYSTEM, ASSISTANT]}, Reason.NO_USER_TURN, "start with a user turn"),
    ({"conversations": [{"from": "bot", "value": SECRET}]}, Reason.UNKNOWN_ROLE, "`from` of a message"),
    ({"conversations": [{"from": "human", "value": None}]}, Reason.NULL_FIELD, "`value` is null"),
]


@pytest.mark.parametrize(("row", "reason", "rule"), REFUSED)
def test_refused_rows_say_rule_and_fix_and_never_their_text(row: dict[str, Any], reason: Reason, rule: str) -> None:
    with pytest.raises(RowFault) as error:
        parse(row)
    fault = error.value
    assert fault.reason is reason
    assert rule in fault.rule
    assert fault.fix
    assert SECRET not in f"{fault} {fault.fix} {fault.at}"


def test_every_reason_of_a_parsed_row_has_a_case() -> None:
    later = {
        Reason.NOT_JSON,
        Reason.TRUNCATED_ROW,
        Reason.NOT_UTF8,
        Reason.ROW_TOO_LARGE,
        Reason.NOT_AN_OBJECT,
        Reason.NOT_CSV,
        Reason.DUPLICATE_FIELD,
        Reason.MIXED_SHAPES,
        Reason.TEMPLATE_REFUSES,
        Reason.ALREADY_RENDERED,
        Reason.REASONING_IN_TEXT,
        Reason.NOTHING_TO_LEARN,
        Reason.EQUAL_SIDES,
        Reason.PROMPTS_DIFFER,
        Reason.MISSING_LABEL,
        Reason.LABEL_NOT_A_FLAG,
        Reason.TOKEN_WITHOUT_EMBEDDING,
        Reason.BROKEN_SCHEMA,  # these in test_tool_rows.py
        Reason.UNKNOWN_TOOL,
        Reason.CALL_DOES_NOT_FIT,
        Reason.RESULT_WITHOUT_CALL,
        Reason.CALL_WITHOUT_RESULT,
    }
    rewards = {Reason.MISSING_REWARD, Reason.REWARD_NOT_A_NUMBER, Reason.REWARD_NOT_FINITE}
    assert {reason for _, reason, _ in REFUSED} | later | rewards == set(Reason)


def test_the_place_inside_a_row_is_named() -> None:
    with pytest.raises(RowFault) as fault:
        parse({"messages": [USER, {"role": "bot", "content": "a"}]})
    assert fault.value.at == "messages[1]"


@pytest.mark.parametrize("field", ["prompt", "messages", "conversations", "instruction"])
def test_a_pair_with_a_prompt_behind_pairs_without_is_said_to_be_another_shape(field: str) -> None:
    """It has what it is asked, so "add `prompt`" is no advice."""
    chat = [{"role": "user", "content": "q"}]
    parser = RowParser(MODES["dpo"].rows)
    parser.parse(1, {side: [*chat, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")})
    row = {field: "q" if field in ("prompt", "instruction") else chat, "chosen": "a", "rejected": "b"}
    with pytest.raises(RowFault, match=f"has the shape {field}/chosen/rejected, but the first rows have chosen/rej"):
        parser.parse(2, row)
    with pytest.raises(RowFault, match="are answers without what was asked"):
        parser.parse(3, {"chosen": "a", "rejected": "b"})


def test_the_first_row_with_a_shape_decides_and_other_shapes_are_refused() -> None:
    parser = RowParser(MODES["sft"].rows)
    with pytest.raises(RowFault, match="`output` is missing"):
        parser.parse(1, {"prompt": "q"})
    parser.parse(2, {"prompt": "q", "completion": "a"})
    assert parser.shape is not None
    assert parser.shape.name == "prompt/completion"
    with pytest.raises(RowFault, match="has the shape text, but the first rows have prompt/completion") as fault:
        parser.parse(3, {"text": "t"})
    assert fault.value.reason is Reason.MIXED_SHAPES
    with pytest.raises(RowFault, match="`completion` is null"):
        parser.parse(4, {"prompt": "q", "completion": None})
    with pytest.raises(RowFault, match="has the shapes prompt/completion and text") as fault:
        parser.parse(5, {"prompt": "q", "completion": "a", "text": "t"})
    assert fault.value.reason is Reason.AMBIGUOUS


def test_conversations_are_no_ppo_rows() -> None:
    with pytest.raises(RowFault, match="none of the shapes of ppo rows"):
        parse({"messages": [USER, ASSISTANT], "reward": 1}, "ppo")


def test_fields_that_nothing_uses_are_named() -> None:
    parser = RowParser(MODES["ppo"].rows)
    parser.parse(1, {"prompt": "q", "output": "a", "reward": 1, "id": 7, "note": None, "list": [], "tools": "[]"})
    assert parser.ignored_fields == {"id"}
    parser.parse(2, {"prompt": "q", "output": "a", "reward": 1, "id": 7, "note": "n", "list": [], "tools": "[]"})
    assert parser.ignored_fields == {"id", "note"}
    for number in range(100):
        parser.parse(number, {"prompt": "q", "output": "a", "reward": 1, f"field{number}": 1})
    assert len(parser.ignored_fields) == 102
    parser = RowParser(MODES["sft"].rows)
    parser.parse(1, {"messages": [USER | {"name": "x", "weight": None}, ASSISTANT | {"train": True}], "reward": 1})
    assert parser.ignored_fields == {"messages[].name", "reward"}
    parts = [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}, "annotations": []}]
    parser.parse(2, {"messages": [USER | {"content": parts}, ASSISTANT]})
    assert parser.ignored_fields == {"messages[].name", "reward", "messages[].content[].cache_control"}
