"""Rows of one answer that is good or bad, by its label or its rating."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.data.cells import CellRow
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import RowForm
from llm_tuning.errors import InputError, in_words
from llm_tuning.modes import MODES
from llm_tuning.modes.preference_rows import kto_rows
from tests.support.other_rows import CHAT, Row, assistant, user

SECRET = "sECRET"
SEVERAL = [*CHAT, user("And then?"), assistant("Pay it.")]
LABELLED: list[tuple[str, Row, list[Row], int]] = [
    ("TRL, texts", {"prompt": "q", "completion": "a", "label": True}, [user("q"), assistant("a")], 1),
    (
        "TRL, messages",
        {"prompt": [user("q")], "completion": [assistant("a")], "label": True},
        [user("q"), assistant("a")],
        1,
    ),
    ("prompt/output", {"prompt": "q", "output": "a", "label": True}, [user("q"), assistant("a")], 1),
    ("messages", {"messages": SEVERAL, "label": True}, SEVERAL, 3),
    ("LLaMA-Factory, kto_en_demo", {"messages": CHAT, "label": True}, CHAT, 1),
    (
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": True},
        [user("q"), assistant("a")],
        1,
    ),
    (
        "Alpaca",
        {"instruction": "q", "input": "", "output": "a", "kto_tag": True, "system": "s"},
        [{"role": "system", "content": "s"}, user("q"), assistant("a")],
        2,
    ),
    (
        "a system and a history",
        {"prompt": "q", "completion": "a", "label": True, "system": "s", "history": [["p", "b"]]},
        [{"role": "system", "content": "s"}, user("p"), assistant("b"), user("q"), assistant("a")],
        4,
    ),
]


@pytest.mark.parametrize(
    ("row", "messages", "learned"), [case[1:] for case in LABELLED], ids=[case[0] for case in LABELLED]
)
def test_the_label_is_that_of_the_last_answer(row: Row, messages: list[Row], learned: int) -> None:
    name = next(name for name in ("label", "kto_tag") if name in row)
    for label, number in ((True, 1.0), (False, 0.0)):
        example = RowParser(kto_rows()).parse(1, row | {name: label})
        assert example is not None
        (conversation,) = example.sequences
        assert (conversation.messages, conversation.learned_turns()) == (messages, [learned])
        assert example.number == number


@pytest.mark.parametrize(("label", "number"), [(1, 1), (0, 0), (1.0, 1), ("true", 1), ("False", 0), ("1", 1)])
def test_ways_to_write_a_label(label: Any, number: float) -> None:
    example = RowParser(kto_rows()).parse(1, {"prompt": "q", "completion": "a", "label": label})
    assert example is not None
    assert example.number == number


def test_labels_of_a_csv() -> None:
    row = CellRow({"prompt": "q", "completion": "a", "label": "0"})
    example = RowParser(kto_rows()).parse(1, row)
    assert example is not None
    assert example.number == 0
    rated = RowParser(kto_rows(threshold=3)).parse(1, CellRow({"prompt": "q", "output": "a", "reward": "3.5"}))
    assert rated is not None
    assert rated.number == 1


@pytest.mark.parametrize(("reward", "number"), [(4, 1), (3.99, 0), (-1, 0), (5, 1)])
@pytest.mark.parametrize("name", ["reward", "rating"])
def test_a_rating_is_good_from_the_threshold_on(reward: float, number: float, name: str) -> None:
    example = RowParser(kto_rows(threshold=4)).parse(1, {"prompt": "q", "output": "a", name: reward})
    assert example is not None
    assert example.number == number


ROW: Row = {"prompt": "q", "completion": "a"}
REFUSED: list[tuple[str, Row, Reason, str, str]] = [
    ("no label", ROW, Reason.MISSING_LABEL, "`label` is missing", "set mode to sft"),
    ("null", ROW | {"label": None}, Reason.MISSING_LABEL, "`label` is empty", "true (a good answer)"),
    ("a class", ROW | {"label": SECRET}, Reason.LABEL_NOT_A_FLAG, "`label` must be true or 1", "threshold"),
    ("a score", ROW | {"label": 4}, Reason.LABEL_NOT_A_FLAG, "got a number", "`reward`"),
    ("-1", ROW | {"label": -1}, Reason.LABEL_NOT_A_FLAG, "`label` must be", ""),
    ("a list", ROW | {"label": [True]}, Reason.LABEL_NOT_A_FLAG, "got a list", ""),
    ("two labels", ROW | {"label": True, "kto_tag": False}, Reason.AMBIGUOUS, "`label` and `kto_tag` say", "keep"),
    ("a rating", ROW | {"reward": 3}, Reason.MISSING_LABEL, "`reward` rates the answer", "threshold"),
    ("a rating as text", ROW | {"reward": "3"}, Reason.REWARD_NOT_A_NUMBER, "`reward` must be", "quotes"),
    ("a judgement", ROW | {"thumbs_up": False}, Reason.MISSING_LABEL, "`label`", "set columns to label=thumbs_up"),
    (
        "a pair",
        {"prompt": "q", "chosen": SECRET, "rejected": SECRET},
        Reason.UNSUPPORTED_FIELD,
        "`chosen` belongs to preference data",
        "write each answer as a row of its own, with `label`",
    ),
    ("plain text", {"text": SECRET, "label": 1}, Reason.UNKNOWN_SHAPE, "has none of the shapes of kto", "{prompt"),
    ("no answer", {"messages": [user("q")], "label": True}, Reason.NO_ASSISTANT_TURN, "no assistant turn", ""),
    ("other names", {"question": "q", "answer": "a", "label": 1}, Reason.UNKNOWN_SHAPE, "", "prompt=question"),
    ("an empty answer", ROW | {"completion": " ", "label": 1}, Reason.EMPTY_FIELD, "`completion` is empty", ""),
]


@pytest.mark.parametrize(
    ("row", "reason", "rule", "fix"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused_and_how(row: Row, reason: Reason, rule: str, fix: str) -> None:
    with pytest.raises(RowFault) as fault:
        RowParser(kto_rows()).parse(1, row)
    assert SECRET not in f"{fault.value} {fault.value.fix}"
    assert fault.value.reason is reason
    assert rule in in_words(fault.value.rule)
    assert fix in in_words(fault.value.fix)
    assert fault.value.fix


def test_a_label_and_a_rating_that_say_different_things() -> None:
    row = ROW | {"label": True, "reward": 1}
    assert RowParser(kto_rows()).parse(1, row)
    with pytest.raises(RowFault, match="`label` and `reward` say different things"):
        RowParser(kto_rows(threshold=2)).parse(1, row)
    assert RowParser(kto_rows(threshold=1)).parse(1, row)


@pytest.mark.parametrize(
    ("label", "other"),
    [(True, {"is_correct": False}), (False, {"thumbs_up": True}), (True, {"labels": 0}), (0, {"Accepted": "true"})],
    ids=["is_correct", "thumbs_up", "labels", "Accepted"],
)
def test_two_fields_that_say_the_same_and_disagree(label: Any, other: Row) -> None:
    row, (name,) = ROW | {"label": label} | other, other
    with pytest.raises(RowFault, match=f"`label` and `{name}` say different things") as fault:
        RowParser(kto_rows()).parse(1, row)
    assert in_words(fault.value.fix).endswith(f"set columns to label=label to leave `{name}` out")
    assert RowParser(kto_rows(), {"label": "label"}).parse(1, row)
    assert RowParser(kto_rows()).parse(1, row | {"label": not label}), "they agree"
    with pytest.raises(RowFault, match=f"`reward` and `{name}` say different things"):
        RowParser(kto_rows(threshold=3)).parse(1, ROW | other | {"reward": 5 if label else 1})


def test_what_is_no_judgement_beside_a_label() -> None:
    assert RowParser(kto_rows()).parse(1, ROW | {"label": True, "labels": None, "is_correct": None, "valid": 7})


@pytest.mark.parametrize("name", ["thumbs_down", "is_bad", "incorrect", "isWrong", "downvoted", "toxic", "is_rejected"])
def test_a_flag_of_bad_answers_is_not_taken_for_the_label(name: str) -> None:
    """True of them is a bad answer, which would be learned as a good one."""
    for own in ("label", "kto_tag"):
        with pytest.raises(InputError, match=f"`{name}` is true of a bad answer by its name") as error:
            RowParser(kto_rows(), {own: name})
        assert "write the opposite" in error.value.problems[0].fix
    assert RowParser(kto_rows(), {"completion": name})


@pytest.mark.parametrize("name", ["rank", "Ranking", "perplexity", "toxicity_score"])
@pytest.mark.parametrize("form", [MODES["ppo"].rows, MODES["dpo"].rows, kto_rows(threshold=3)], ids=lambda f: f.mode)
def test_a_number_that_is_lowest_for_the_best_answer_is_not_taken_for_the_reward(form: RowForm, name: str) -> None:
    """The worst answer would be learned as the best one."""
    for own in ("reward", "rating"):
        with pytest.raises(InputError, match=f"`{name}` is lowest for the best answer by its name") as error:
            RowParser(form, {own: name})
        assert "write its negative" in error.value.problems[0].fix
    assert RowParser(form, {"output": name})


@pytest.mark.parametrize(("value", "number"), [(1, 1), (0, 0), (True, 1), ("false", 0)])
def test_labels_are_proposed_as_the_label(value: Any, number: float) -> None:
    row = {"prompt": "q", "completion": "a", "labels": value}
    with pytest.raises(RowFault, match="`label` is missing") as fault:
        RowParser(kto_rows()).parse(1, row)
    assert in_words(fault.value.fix) == "set columns to label=labels"
    example = RowParser(kto_rows(), {"label": "labels"}).parse(1, row)
    assert example is not None
    assert example.number == number


def test_a_judgement_named_as_the_label() -> None:
    parser = RowParser(kto_rows(), {"label": "thumbs_up", "completion": "answer"})
    example = parser.parse(1, {"prompt": "q", "answer": "a", "thumbs_up": False})
    assert example is not None
    assert example.number == 0
