"""Fields by the names that other projects have for them: what is before, beside and after a row's own texts."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.row_fields import ANSWERS_TO_TEXT, BESIDE, HISTORY, LABELS_OF_TEXT, SYSTEM
from llm_tuning.data.rows import Conversation
from llm_tuning.errors import in_words
from llm_tuning.modes import MODES

Row = dict[str, Any]
ASKED: Row = {"prompt": "q", "output": "a"}
USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}


def learned(row: Row, columns: dict[str, str] | None = None) -> Conversation:
    example = RowParser(MODES["sft"].rows, columns).parse(1, row)
    assert example is not None
    return example.sequences[0]


def texts(row: Row, columns: dict[str, str] | None = None) -> list[str]:
    return [message["content"] for message in learned(row, columns).messages or ()]


def fault_of(row: Row) -> RowFault:
    with pytest.raises(RowFault) as fault:
        RowParser(MODES["sft"].rows).parse(1, row)
    return fault.value


def columns_of(fix: str) -> list[dict[str, str]]:
    """Return the columns that a fix names, in its order."""
    named = [part.split(" ")[0] for part in in_words(fix).split("set columns to ")[1:]]
    return [dict(pair.split("=") for pair in names.split(",")) for names in named]


@pytest.mark.parametrize("name", HISTORY)
@pytest.mark.parametrize("turns", [[["q0", "a0"]], [USER | {"content": "q0"}, ASSISTANT | {"content": "a0"}]])
def test_turns_before_the_prompt_by_any_name(name: str, turns: Any) -> None:
    assert texts(ASKED | {name: turns}) == ["q0", "a0", "q", "a"]
    assert texts(ASKED | {name: []}) == ["q", "a"]


def test_a_history_that_ends_with_a_question_is_refused() -> None:
    fault = fault_of(ASKED | {"chat_history": [USER]})
    assert (fault.reason, fault.fix) == (Reason.AMBIGUOUS, "end it with the assistant's turn before the prompt")


def test_two_histories_are_refused() -> None:
    fault = fault_of(ASKED | {"history": [["q0", "a0"]], "chat_history": [["q1", "a1"]]})
    assert (fault.reason, "`history` and `chat_history`" in fault.rule) == (Reason.AMBIGUOUS, True)


@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_message_by_any_name(name: str) -> None:
    assert texts(ASKED | {name: "s"}) == ["s", "q", "a"]


@pytest.mark.parametrize("name", BESIDE)
def test_what_belongs_to_the_question_or_corrects_the_answer_is_no_note(name: str) -> None:
    row = ASKED | {name: "something else"}
    fault = fault_of(row)
    assert (fault.reason, f"`{name}`" in fault.rule) == (Reason.AMBIGUOUS, True)
    assert texts(row, columns_of(fault.fix)[0]) == ["q", "a"]
    assert texts(ASKED | {"prompt": f"something else: {name}", name: "something else"})[1] == "a"


@pytest.mark.parametrize("name", ANSWERS_TO_TEXT)
def test_what_is_made_of_a_text_is_no_note(name: str) -> None:
    row = {"text": "write a function", name: "def f(): ..."}
    answer, text = columns_of(fault_of(row).fix)
    assert texts(row, answer) == ["write a function", "def f(): ..."]
    assert learned(row, text).text == "write a function"


@pytest.mark.parametrize("name", LABELS_OF_TEXT)
def test_a_label_of_a_text_is_no_note(name: str) -> None:
    row = {"text": "a good film", name: "praise"}
    assert texts(row, columns_of(fault_of(row).fix)[0]) == ["a good film", "praise"]
    for value in (0, 1, False, True, [0, 3]):
        fault = fault_of({"text": "a good film", name: value})
        assert (fault.reason, "write it as text" in fault.fix) == (Reason.AMBIGUOUS, True)
        assert fault.fix.endswith(", or remove it to learn the text alone")


def test_a_text_that_a_template_made_of_the_same_row_is_no_other_shape() -> None:
    row = {"instruction": "Say it", "input": "louder", "output": "IT"}
    template = (
        "Below is an instruction.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
    )
    assert texts(row | {"text": template.format(**row)}) == ["Say it\n\nlouder", "IT"]
    for changed in row:
        fault = fault_of(row | {"text": template.format(**row | {changed: "another"})})
        assert fault.reason is Reason.AMBIGUOUS


@pytest.mark.parametrize(
    ("role", "meant"),
    [("developer", "system"), ("User", "user"), ("prompter", "user"), ("model", "assistant"), ("Chatbot", "assistant")],
)
def test_a_role_of_another_program_is_said_in_our_word(role: str, meant: str) -> None:
    turn = {"role": role, "content": "x"}
    assert fault_of({"messages": [turn, USER, ASSISTANT]}).fix == f"write `{meant}`"
    assert fault_of({"conversations": [turn, USER, ASSISTANT]}).fix == f"write `{meant}`"


@pytest.mark.parametrize(
    "row",
    [
        {"conversation_id": 1, "chat": {"turn_1": {"Human": "q", "MOSS": "a"}}},
        {"message": "fix it", "old_contents": "a", "new_contents": "b"},
    ],
)
def test_a_field_that_is_no_list_is_not_proposed_as_messages(row: Row) -> None:
    assert "did you mean" not in fault_of(row).fix


@pytest.mark.parametrize("asked", ["prompt", "question", "chat_history"])
def test_a_question_in_messages_is_not_proposed_without_its_answer(asked: str) -> None:
    row = {asked: [USER, ASSISTANT, USER], "response": "learn this"}
    assert "messages=" not in in_words(fault_of(row).fix)
