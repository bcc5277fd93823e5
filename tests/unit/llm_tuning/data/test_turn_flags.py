"""Which turns and rows are learned, as their authors mark them, and what each mark refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Conversation
from llm_tuning.data.sample import render_sample
from llm_tuning.modes import MODES

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
FLAGS = ("train", "training", "loss", "weight", "loss_weight", "Train", "lossWeight")
NO, YES = (False, 0, 0.0, "false", "0"), (True, 1, 1.0, "True", "1")


def parse(row: dict[str, Any], mode: str = "sft") -> Conversation | None:
    """Return the first sequence of the row, None where the row is left out."""
    parser = RowParser(MODES[mode].rows)
    example = parser.parse(1, row)
    assert parser.counts["left out"] == (example is None)
    return example.sequences[0] if example is not None else None


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", NO)
def test_a_turn_marked_so_is_seen_and_not_learned(flag: str, value: Any) -> None:
    found = parse({"messages": [USER, ASSISTANT | {flag: value}, USER, ASSISTANT | {flag: True}]})
    assert found is not None
    assert (found.messages, found.not_learned) == ([USER, ASSISTANT, USER, ASSISTANT], {1})


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", [*YES, None, ""])
def test_a_turn_marked_as_learned_is_like_one_without_a_mark(flag: str, value: Any) -> None:
    assert parse({"messages": [USER | {flag: False}, ASSISTANT | {flag: value}]}) == Conversation([USER, ASSISTANT])


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", NO)
def test_a_row_marked_so_is_left_out(flag: str, value: Any) -> None:
    assert parse({"messages": [USER, ASSISTANT], flag: value}) is None
    assert parse({"text": "t", flag: value}) is None
    assert parse({"prompt": "q", "output": "a", "reward": 1, flag: value}, "ppo") is None


def test_a_row_of_which_no_turn_is_learned_is_left_out() -> None:
    marked = ASSISTANT | {"weight": 0}
    assert parse({"messages": [USER, marked, USER, marked]}) is None
    assert parse({"prompt": [USER], "completion": [marked]}) is None


def test_what_comes_after_the_last_learned_turn_is_left_out() -> None:
    parser = RowParser(MODES["sft"].rows)
    row = {"messages": [USER, ASSISTANT | {"train": 0}, USER, ASSISTANT, USER, ASSISTANT | {"train": 0}]}
    example = parser.parse(1, row)
    assert example is not None
    assert example.sequences[0] == Conversation([USER, ASSISTANT, USER, ASSISTANT], not_learned=frozenset({1}))
    assert parser.counts["trimmed"] == 1


def test_marks_in_a_prompt_of_messages() -> None:
    prompt = [USER, ASSISTANT | {"weight": 0}, USER]
    found = parse({"prompt": prompt, "completion": [ASSISTANT | {"weight": 0}, USER, ASSISTANT]})
    assert found is not None
    assert (found.learn_from, found.learned_turns()) == (3, [5])


def test_a_prefix_begins_the_next_turn_and_is_not_learned() -> None:
    begun = {"role": "assistant", "content": "It is", "prefix": True}
    found = parse({"messages": [USER, ASSISTANT, USER, begun, {"role": "assistant", "content": " 4."}]})
    assert found is not None
    assert found.messages == [USER, ASSISTANT, USER, {"role": "assistant", "content": "It is 4."}]
    assert found.prefixes == {3: 5}


def test_prefixes_follow_each_other_and_marks_move_with_their_turns() -> None:
    begun = {"role": "assistant", "content": "a", "partial": True}
    row = {"messages": [USER, begun, begun, ASSISTANT | {"train": False}, USER, ASSISTANT], "system": "s"}
    found = parse(row)
    assert found is not None
    assert [message["content"] for message in found.messages or ()] == ["s", "q", "aaa", "q", "a"]
    assert (found.prefixes, found.not_learned) == ({2: 2}, {2})


@pytest.mark.parametrize("completion", ["b", [{"role": "assistant", "content": "b"}]])
@pytest.mark.parametrize("mode", ["sft", "ppo"])
def test_a_prefix_at_the_end_of_a_prompt_begins_the_completion(completion: Any, mode: str) -> None:
    prompt = [USER, ASSISTANT, USER, ASSISTANT | {"prefix": True}]
    found = parse({"prompt": prompt, "completion": completion, "reward": 1}, mode)
    assert found is not None
    assert [message["content"] for message in found.messages or ()] == ["q", "a", "q", "ab"]
    assert (found.learn_from, found.prefixes, found.learned_turns()) == (3, {3: 1}, [3])


REFUSED: list[tuple[dict[str, Any], Reason, str]] = [
    ({"messages": [USER | {"train": True}, ASSISTANT]}, Reason.UNSUPPORTED_FIELD, "no turn of the assistant"),
    ({"messages": [USER, ASSISTANT | {"weight": 2}]}, Reason.UNSUPPORTED_FIELD, "`weight` must be 1 or true"),
    ({"messages": [USER, ASSISTANT | {"train": "maybe"}]}, Reason.UNSUPPORTED_FIELD, "`train` must be 1 or true"),
    ({"messages": [USER, ASSISTANT], "loss": 1.37}, Reason.UNSUPPORTED_FIELD, "`loss` must be 1 or true"),
    (
        {"messages": [USER, ASSISTANT | {"train": 1, "weight": 0}]},
        Reason.AMBIGUOUS,
        "`train` says learned, and `weight`",
    ),
    ({"messages": [USER, ASSISTANT | {"prefix": True}]}, Reason.NO_ASSISTANT_TURN, "nothing is left to learn"),
    (
        {"messages": [USER, ASSISTANT | {"prefix": True}, USER, ASSISTANT]},
        Reason.NO_ASSISTANT_TURN,
        "nothing is left to learn",
    ),
    ({"messages": [USER | {"prefix": True}, ASSISTANT]}, Reason.UNSUPPORTED_FIELD, "`prefix` must be true"),
    ({"messages": [USER, ASSISTANT | {"prefix": "It is"}]}, Reason.UNSUPPORTED_FIELD, "`prefix` must be true"),
    (
        {"messages": [USER, ASSISTANT | {"prefix": True, "train": True}, ASSISTANT]},
        Reason.UNSUPPORTED_FIELD,
        "`prefix` must be true",
    ),
    (
        {"prompt": [USER, ASSISTANT | {"train": True}, USER], "completion": "a"},
        Reason.UNSUPPORTED_FIELD,
        "a turn of the prompt is marked as learned",
    ),
    ({"prompt": [USER, ASSISTANT], "completion": "a"}, Reason.AMBIGUOUS, "`prompt` ends with a turn of the assistant"),
    (
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "a", "train": False}]}]},
        Reason.UNSUPPORTED_FIELD,
        "a part of a turn is marked apart",
    ),
]


@pytest.mark.parametrize(("row", "reason", "rule"), REFUSED)
def test_marks_that_say_something_else_are_refused(row: dict[str, Any], reason: Reason, rule: str) -> None:
    with pytest.raises(RowFault) as fault:
        parse(row)
    assert fault.value.reason is reason
    assert rule in fault.value.rule
    assert fault.value.fix


BEGUN = {"role": "assistant", "content": "It is", "prefix": True}
MARKED: list[tuple[dict[str, Any], list[str]]] = [
    ({"messages": [USER, ASSISTANT | {"content": "bad", "train": False}, USER, ASSISTANT]}, ["a"]),
    ({"messages": [USER, ASSISTANT | {"content": "one"}, USER, ASSISTANT | {"content": "bad", "loss": 0}]}, ["one"]),
    ({"messages": [USER, BEGUN, ASSISTANT | {"content": " four."}]}, [" four."]),
    ({"prompt": [USER, BEGUN], "completion": " four."}, [" four."]),
    (
        {"instruction": "q", "output": "Nine.", "system": "s", "history": [["What?", "Tea."]]},
        ["Tea.", "Nine."],
    ),
]


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize(("row", "learned"), MARKED)
def test_what_is_learned_is_what_is_marked(
    row: dict[str, Any], learned: list[str], with_base: bool, tokenizer_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "row.jsonl"
    path.write_text(json.dumps(row))
    text = render_sample(path, form=MODES["sft"].rows, tokenizer_dir=tokenizer_dir if with_base else None)
    found = re.findall(r">>>(.*?)<<<", text, flags=re.DOTALL)
    assert [part.removesuffix("<|im_end|>").removesuffix("\n\n") for part in found] == learned
