"""Turns and rows that say more than one text, or say it without a role: nothing is taken for the other."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.row_fields import KINDS
from llm_tuning.errors import in_words
from llm_tuning.modes import MODES

SECRET = "sECRET"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def fault_of(row: dict[str, Any], mode: str = "sft") -> RowFault:
    with pytest.raises(RowFault) as error:
        RowParser(MODES[mode].rows).parse(1, row)
    assert SECRET not in f"{error.value} {error.value.fix}"
    return error.value


@pytest.mark.parametrize("name", ["text", "message", "body", "corrected", "edited_content", "revisedText"])
def test_a_further_text_of_a_turn_is_a_copy_or_refuses_its_row(name: str) -> None:
    for turns in ([USER, ANSWER | {name: SECRET}], [USER | {name: SECRET}, ANSWER]):
        fault = fault_of({"messages": turns})
        assert (fault.reason, fault.rule) == (Reason.AMBIGUOUS, f"`content` and `{name}` of a message differ")
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", name: SECRET}]
    assert "`value` and" in fault_of({"conversations": sharegpt}).rule
    for same in ("a", " a\n", "", None, 3):
        assert RowParser(MODES["sft"].rows).parse(1, {"messages": [USER, ANSWER | {name: same}]})


def test_a_mark_of_a_row_means_the_same_on_a_turn() -> None:
    """One kind, one list of names: what refuses a row beside its turns refuses it on one of them."""
    for kind in KINDS:
        if kind.name in ("judgement", "left out", "cut"):
            assert set(kind.turn) == set(kind.row), kind.name


@pytest.mark.parametrize("name", ["dialog", "conversation", "conversations", "messages", "turns", "data"])
def test_turns_without_roles_are_not_taken_for_columns(name: str) -> None:
    row = {name: ["hello", "hi", "bye"], "act": [1, 2, 1], "emotion": [0, 0, 0]}
    fault = fault_of(row)
    assert f"`{name}` holds turns without their roles" in fault.rule
    assert fault.fix.startswith('write {"messages": [{"role": "user"')
    assert fault_of({"prompt": ["q", "r"], "output": ["a", "b"]}).reason is Reason.COLUMNS_NOT_ROWS


@pytest.mark.parametrize("answers", ["responses", "completions", "outputs", "generations", "candidates"])
@pytest.mark.parametrize("rated", ["scores", "rewards", "ratings", "rm_scores"])
@pytest.mark.parametrize("mode", ["sft", "ppo", "dpo", "kto"])
def test_rated_answers_in_lists_are_to_be_rows(mode: str, answers: str, rated: str) -> None:
    fault = fault_of({"prompt": "q", answers: [SECRET, "b", "c"], rated: [1, 2.5, 0]}, mode)
    assert fault.rule == f"`{answers}` holds 3 answers, and `{rated}` rates each of them"
    assert 'a row for each: {"prompt": ..., "output": ..., "reward": ...}' in fault.fix
    assert ("set mode to dpo" in in_words(fault.fix)) == (mode == "sft")


@pytest.mark.parametrize("field", ["prompt", "output", "completion"])
def test_a_single_message_is_to_be_put_into_a_list(field: str) -> None:
    row = {"prompt": "q", "output" if field == "output" else "completion": "a"}
    message = USER if field == "prompt" else ANSWER
    fault = fault_of(row | {field: message})
    assert (fault.rule, fault.fix) == (
        f"`{field}` must be text or a list of messages, got a single message",
        "put it into a list: [{...}]",
    )
    assert RowParser(MODES["sft"].rows).parse(1, row | {field: [message]})


def test_an_empty_list_is_no_shape_where_another_one_is_given() -> None:
    parser = RowParser(MODES["sft"].rows)
    assert parser.parse(1, {"messages": [], "prompt": "q", "output": "a"})
    assert parser.shape is not None
    assert (parser.shape.name, parser.ignored_fields) == ("prompt/output", set())
    assert "`messages` must be a list of messages, got an empty list" in fault_of({"messages": []}).rule
