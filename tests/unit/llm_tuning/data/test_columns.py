"""`dataset.columns`: the file's own names for fields, strictly."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Example
from llm_tuning.errors import InputError
from llm_tuning.modes import MODES

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def parse(row: dict[str, Any], mode: str = "sft", **columns: str) -> Example:
    example = RowParser(MODES[mode].rows, columns).parse(1, row)
    assert example is not None
    return example


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "question", "output": "answer"}),
        ({"output": "q", "prompt": "a"}, {"prompt": "output", "output": "prompt"}),
        ({"input": "q", "output": "a"}, {"prompt": "input"}),
        ({"question": "q", "answer": "a", "prompt": None}, {"prompt": "question", "output": "answer"}),
        ({"chat": TURNS}, {"messages": "chat"}),
        (
            {"chat": [{"who": "human", "said": "q"}, {"who": "gpt", "said": "a"}]},
            {"messages": "chat", "role": "who", "content": "said"},
        ),
    ],
)
def test_the_row_is_read_by_its_own_names(row: dict[str, Any], columns: dict[str, str]) -> None:
    assert parse(row, **columns).sequences[0].messages == TURNS


def test_a_column_with_dots_and_blanks() -> None:
    row = {"What is asked?": "q", "the.answer": "a"}
    assert parse(row, prompt="What is asked?", output="the.answer").sequences[0].messages == TURNS


def test_a_field_that_no_column_can_drop_is_still_refused() -> None:
    with pytest.raises(RowFault, match="`images` belongs to images"):
        parse({"question": "q", "answer": "a", "images": ["a.png"]}, prompt="question", output="answer")


def test_columns_decide_between_two_shapes() -> None:
    row = {"instruction": "q", "output": "a", "prompt": "### q", "text": "other"}
    assert parse(row, instruction="instruction", output="output").sequences[0].messages == TURNS
    assert parse(row, text="text").sequences[0].text == "other"


@pytest.mark.parametrize("mode", ["sft", "ppo", "kto"])
@pytest.mark.parametrize("name", ["answer", "response", "completion", "output", "target"])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_turns_and_their_answer_beside_them(mode: str, name: str, field: str) -> None:
    """Left out, as other texts are, it would leave turns without an answer: the columns that are proposed do work."""
    row = {field: TURNS[:1], name: "a", "label": True, "reward": 1}
    row = {own: value for own, value in row.items() if own != {"sft": "label", "ppo": "label"}.get(mode)}
    with pytest.raises(RowFault) as fault:
        parse(row, mode)
    if mode == "ppo":
        return  # where a conversation is no row, and the other columns are proposed already
    assert fault.value.fix.startswith(f"{{set:dataset.columns=prompt={field},output={name}}}")
    assert parse(row, mode, prompt=field, output=name).sequences[0].messages == TURNS
    whole = row | {field: [*TURNS, TURNS[0]], name: "b"}
    with pytest.raises(RowFault) as fault:
        parse(whole, mode)
    assert f"prompt={field},output={name}" in fault.value.fix


def test_columns_decide_on_the_chosen_answer() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert parse(row, output="chosen").sequences[0].messages == TURNS


def test_the_reward_of_ppo() -> None:
    assert parse({"prompt": "q", "output": "a", "score": 2}, "ppo", reward="score").number == 2


@pytest.mark.parametrize(
    ("row", "columns", "reason", "words"),
    [
        ({"question": "q"}, {"prompt": "question", "output": "answer"}, Reason.MISSING_FIELD, "`answer` is missing"),
        ({"Question": "q", "answer": "a"}, {"prompt": "question"}, Reason.MISSING_FIELD, "`question` is missing"),
        (
            {"prompt": "p", "question": "q", "output": "a"},
            {"prompt": "question"},
            Reason.AMBIGUOUS,
            "`prompt` is there beside `question`",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}]},
            {"role": "who"},
            Reason.MISSING_FIELD,
            "a message has no `who`",
        ),
        (
            {"messages": [{"role": "user", "who": "user", "content": "q"}]},
            {"role": "who"},
            Reason.AMBIGUOUS,
            "`role` of a message is there beside `who`",
        ),
    ],
)
def test_what_a_row_lacks(row: dict[str, Any], columns: dict[str, str], reason: Reason, words: str) -> None:
    with pytest.raises(RowFault, match=words) as fault:
        parse(row, **columns)
    assert fault.value.reason is reason
    assert fault.value.fix


def test_names_that_the_form_does_not_know_are_all_told() -> None:
    with pytest.raises(InputError) as error:
        RowParser(MODES["sft"].rows, {"promt": "a", "reward": "b", "output": "c", "input": "c"})
    promt, reward, twice = map(str, error.value.problems)
    assert promt == "dataset.columns: columns has no field `promt` to name; did you mean prompt?"
    assert "columns has no field `reward` to name; the fields of sft rows are messages, conversations, prompt" in reward
    assert twice == "dataset.columns: `c` stands for `output` and `input`; name a column once"
