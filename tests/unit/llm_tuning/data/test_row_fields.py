"""Every field that changes what should be learned is honoured or refuses its row by name, in every mode."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from llm_tuning.data import rows as rows_module
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.row_fields import FLAG_NAMES, KINDS, PREFIX_NAMES, SYSTEM_NAMES, TEXT_NAMES, FieldKind, plain
from llm_tuning.data.rows import RowForm
from llm_tuning.data.tool_turns import CALL_ROLES, RESULT_ROLES, TURN_FIELDS
from llm_tuning.modes import MODES

READ_ROLES = {*RESULT_ROLES, *CALL_ROLES}
SECRET = "sECRET-row-content"
USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
ROWS: dict[str, dict[str, Any]] = {
    "sft": {"messages": [USER, ASSISTANT]},
    "ppo": {"prompt": "q", "output": "a", "reward": 1},
    "dpo": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "kto": {"prompt": "q", "completion": "a", "label": True},
}
MATTERS: dict[str, Any] = {
    "label": False,
    "judgement": False,
    "left out": True,
    "cut": "length",
    "token ids": [1, 2],
    "masks": [0, 1],
    "train on input": True,
    "template": {"enable_thinking": False},
    "split": "test",
    "refusal": f"{SECRET} and more",
}
"""Where it is not any text."""
NOTHING = (None, "", "[]", "{}", [], {}, [None], {"type": None})
"""What a tools field holds where there are none."""


def fault_of(row: dict[str, Any], mode: str | RowForm) -> RowFault:
    with pytest.raises(RowFault) as fault:
        RowParser(MODES[mode].rows if isinstance(mode, str) else mode).parse(1, row)
    assert SECRET not in f"{fault.value} {fault.value.fix}"
    return fault.value


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        pytest.param(kind, mode, id=f"{kind.name}-{mode}")
        for kind in KINDS
        for mode in ROWS
        if kind.name not in MODES[mode].rows.takes
    ],
)
def test_a_field_of_a_row_refuses_it_by_its_name(kind: FieldKind, mode: str) -> None:
    form = MODES[mode].rows
    for own in kind.row:
        for spelt in (own, own.title().replace("_", "")):
            row = ROWS[mode] | {spelt: MATTERS.get(kind.name, SECRET)}
            for takes in (frozenset[str](), form.takes):
                if kind.name in takes and own in kind.read:
                    continue
                fault = fault_of(row, replace(form, takes=takes))
                assert (fault.reason, f"`{spelt}`" in fault.rule) == (Reason.UNSUPPORTED_FIELD, True)
                assert fault.fix


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_field_of_a_turn_refuses_its_row_by_its_name(kind: FieldKind) -> None:
    for name in set(kind.turn) - TURN_FIELDS:
        fault = fault_of({"messages": [USER, ASSISTANT | {name: MATTERS.get(kind.name, SECRET)}]}, "sft")
        assert (fault.reason, f"`{name}`" in fault.rule, fault.at) == (Reason.UNSUPPORTED_FIELD, True, "messages[1]")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_part_that_is_no_text_refuses_its_row_by_its_name(kind: FieldKind) -> None:
    for name in kind.parts:
        parts = [{"type": "text", "text": "q"}, {"type": name, name: SECRET}]
        fault = fault_of({"messages": [USER | {"content": parts}, ASSISTANT]}, "sft")
        assert (fault.reason, f"`{name}`" in fault.rule) == (Reason.UNSUPPORTED_FIELD, True)
        assert fault.at == "messages[0].content[1]"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_role_that_is_not_learned_refuses_its_row_by_its_name(kind: FieldKind) -> None:
    turns = [
        turn
        for name in set(kind.roles) - READ_ROLES
        for turn in ({"role": name, "content": "c"}, {"from": name, "value": "c"})
    ]
    for turn in turns:
        fault = fault_of({"messages": [USER, turn, ASSISTANT]}, "sft")
        assert fault.reason is Reason.UNSUPPORTED_FIELD
        assert f"`{turn.get('role', turn.get('from'))}`" in fault.rule


@pytest.mark.parametrize("value", NOTHING)
def test_an_empty_field_is_no_field_and_no_note(value: Any) -> None:
    names = [name for kind in KINDS if kind.name != "train on input" for name in kind.row]
    for mode, row in ROWS.items():
        parser = RowParser(MODES[mode].rows)
        assert parser.parse(1, dict.fromkeys([*names, "history", "system", "solution", "id"], value) | row)
        assert parser.ignored_fields == set()
    turn = ASSISTANT | dict.fromkeys([name for kind in KINDS for name in kind.turn], value)
    parser = RowParser(MODES["sft"].rows)
    assert parser.parse(1, {"messages": [USER, turn]})
    assert parser.ignored_fields == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", "billing"),
        ("labels", ["billing", "card"]),
        ("is_correct", True),
        ("is_valid", True),
        ("deleted", False),
        ("ignore", "case"),
        ("subset", "en"),
        ("split", "train"),
        ("train_on_input", False),
        ("correct", "B"),
        ("tokens", 17),
        ("id", 1),
        ("reward", 3),
        ("category", "open_qa"),
        ("score", 4.5),
        ("meta", {"label": False}),
    ],
)
def test_a_value_that_cannot_matter_is_a_note(name: str, value: Any) -> None:
    parser = RowParser(MODES["sft"].rows)
    assert parser.parse(1, {"messages": [USER, ASSISTANT], name: value})
    assert parser.ignored_fields == {name}


def test_no_name_means_two_things() -> None:
    for names in (
        [plain(name) for kind in KINDS for name in kind.row] + [*FLAG_NAMES, *SYSTEM_NAMES],
        [plain(name) for kind in KINDS for name in kind.turn] + [*FLAG_NAMES, *PREFIX_NAMES],
        [plain(name) for kind in KINDS for name in kind.parts],
        [plain(name) for kind in KINDS for name in kind.roles],
    ):
        assert sorted(names) == sorted(set(names))
    assert not TEXT_NAMES & {plain(name) for kind in KINDS for name in kind.row}


PREFERENCE = {"prompt": "q", "chosen": SECRET, "rejected": SECRET}


def test_a_refusal_names_what_each_mode_wants_the_asked_one_first() -> None:
    assert fault_of(PREFERENCE, "sft").fix == (
        "for sft write the chosen answer as `output`; {set:mode=dpo}, which learns from it; for ppo write each answer "
        "as a row of its own, with a reward; for kto write each answer as a row of its own, with `label` true or false"
    )
    assert fault_of(PREFERENCE, "ppo").fix.startswith("for ppo write each answer")
    assert fault_of(PREFERENCE, "sft").rule == "`chosen` belongs to preference data"


def test_a_mode_that_takes_such_rows_is_named_without_more_ado(monkeypatch: pytest.MonkeyPatch) -> None:
    form = replace(MODES["sft"].rows, mode="pairs", takes=frozenset(("preference",)))
    monkeypatch.setitem(rows_module.FORMS, "pairs", form)
    assert fault_of(PREFERENCE, "sft").fix.split("; ")[2] == "{set:mode=pairs}, which learns from it"
    assert RowParser(form).parse(1, {"prompt": "q", "output": "a", "margin": 2})
    with pytest.raises(RowFault, match="`rejected` beside prompt/output is not part of what would be learned"):
        RowParser(form).parse(1, {"prompt": "q", "output": "a", "rejected": "b"})


def test_a_field_of_the_modes_own_shapes_is_never_refused() -> None:
    shape = replace(MODES["sft"].rows.shapes[2], fields=("prompt", "output", "chosen"))
    form = RowForm(mode="own", shapes=(shape,), accepted="{prompt, output, chosen}")
    assert RowParser(form).parse(1, {"prompt": "q", "output": "a", "chosen": "b"})


NAMES = ("messages", "conversations", "prompt", "output", "completion", "instruction", "input", "text", "reward")
FURTHER = ("system", "history", "weight", "train", "label", "tools", "question", "answer", "context", "solution", "id")
VALUES: tuple[Any, ...] = (
    *(None, "", "a", "q", "[]", 0, 1, 0.5, True, False, [], {}, [[]], [{}], ["a"], {"0": "a"}, [["a", "b"]]),
    *([USER, ASSISTANT], [USER], [ASSISTANT | {"prefix": True}], [USER, ASSISTANT | {"weight": "x"}]),
    *([{"role": ["user"], "from": {}, "content": 3}], [{"human": "q", "assistant": "a"}], [[["a"]], {"type": []}]),
    json.loads("[" * 900 + "]" * 900),
    json.loads('{"a":' * 900 + "1" + "}" * 900),
)


@pytest.mark.parametrize("mode", ROWS)
@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_row_holds_it_is_an_example_or_a_refusal(mode: str, seed: int) -> None:
    chance = random.Random(seed)
    parser = RowParser(MODES[mode].rows)
    refusals: list[RowFault] = []
    for number in range(400):
        names = chance.sample((*NAMES, *FURTHER), chance.randint(0, 6))
        try:
            parser.parse(number, {name: chance.choice(VALUES) for name in names})
        except RowFault as fault:
            refusals.append(fault)
    assert refusals
    assert all(fault.rule and fault.fix for fault in refusals)
