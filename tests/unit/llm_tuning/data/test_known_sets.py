"""Rows of well-known data sets: the columns, or the Python of docs/other-rows.md, that their refusal names work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import examine_dataset
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.known_sets import PAGE, SETS, KnownSet
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Example
from llm_tuning.errors import in_words
from llm_tuning.modes import MODES
from llm_tuning.modes.preference_rows import kto_rows
from tests.support.known_rows import HERMES, HH_RLHF, OPEN_THOUGHTS, ROWS, TOOL_ACE, Row
from tests.support.other_rows import assistant, user

DOCS = Path(__file__).parents[4]
IDS = [re.sub(r"\W+", "-", known.title) for known in SETS]


def lines_of(section: str) -> str:
    """Return the Python of a section of the page, by the name that a link has for it."""
    for part in (DOCS / PAGE).read_text().split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        if re.sub(r"[^a-z0-9-]", "", title.lower().replace(" ", "-")) == section:
            return body.partition("```python\n")[2].partition("```")[0]
    raise AssertionError(f"{PAGE} has no section {section}")


def converted(section: str, rows: list[Row], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    monkeypatch.chdir(folder)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exec(compile(lines_of(section), section, "exec"), {})
    return [json.loads(line) for line in Path("converted.jsonl").read_text().splitlines()]


def said(example: Example) -> list[tuple[str, Any]]:
    """Return what is asked last, and the answer of each sequence with its reasoning or calls."""
    found: list[tuple[str, Any]] = []
    for conversation in example.sequences:
        *_, asked, answer = conversation.messages or []
        beside = answer.get("reasoning_content") or [call["function"] for call in answer.get("tool_calls", ())]
        found.append((asked["content"], (answer["content"], beside)))
    return found


PAIR = [("City 0?", ("Paris", [])), ("City 0?", ("Nowhere", []))]
THOUGHT = [("1+1 0", ("It is 2.", "Add them."))]
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
LEARNED: dict[str, list[tuple[str, Any]]] = {
    "xLAM (xlam-function-calling-60k)": [("Weather 0?", ("", [CALL]))],
    "Glaive (glaive-function-calling-v2)": [('{"t": 20}', ("It is 20.", []))],
    "s1K": THOUGHT,
    "s1K-1.1": THOUGHT,
    "OpenThoughts (metadata)": THOUGHT,
    "UltraFeedback": PAIR[:1],
    "distilabel": PAIR[:1],
    "HelpSteer": [("City 0?", ("Paris 0", []))],
    "Nectar": PAIR[:1],
    "Gemini's tuning (Vertex AI)": PAIR[:1],
} | dict.fromkeys(
    (
        *("HelpSteer2's preferences", "HelpSteer3", "SHP", "PKU-SafeRLHF", "Chatbot Arena"),
        "Gemini's preference tuning",
    ),
    PAIR,
)


def test_what_rows_hold_decides_the_modes() -> None:
    modes = {known.holds: known.modes() for known in SETS}
    assert modes == {"answers": ["sft"], "ratings": ["ppo", "dpo", "kto"], "pairs": ["dpo"]}


@pytest.mark.parametrize("known", SETS, ids=IDS)
def test_the_refusal_says_what_makes_the_rows_work(
    known: KnownSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ROWS[known.title]
    for mode in MODES:
        with pytest.raises(RowFault) as fault:
            RowParser(MODES[mode].rows).parse(1, rows[0])
        assert fault.value.reason is Reason.UNKNOWN_SHAPE or (known.title, mode) == ("HelpSteer", "sft")
        fix = in_words(fault.value.fix)
        if mode not in known.modes() and known.title != "HelpSteer":
            assert fix.startswith(f"set mode to {known.modes()[0]}"), "then the fix is for another mode"
        assert known.section in fix
        assert all(f"{own}={given}" in fix for own, given in known.columns.items()) or mode == "sft"
    if known.section:
        rows = converted(known.section, rows, tmp_path, monkeypatch)
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for mode in known.modes():
        form = kto_rows(threshold=3.0 if known.title != "Nectar" else -1.0) if mode == "kto" else MODES[mode].rows
        columns = dict(known.columns)
        report = examine_dataset(path, form=form, tokenizer_dir=None, max_length=100, columns=columns)
        assert report.ok, report.summary()
        example = RowParser(form, columns).parse(1, rows[0])
        assert example is not None
        assert said(example) == LEARNED[known.title]


@pytest.mark.parametrize(
    ("section", "rows", "refused", "words"),
    [
        ("calls-in-tags", HERMES, "a call of a tool stands in the text of an answer", "I look."),
        ("calls-of-toolace", TOOL_ACE, "a tool's result has no call before it", ""),
    ],
    ids=["Hermes", "ToolACE"],
)
def test_calls_in_texts(  # noqa: PLR0917
    section: str, rows: list[Row], refused: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = MODES["sft"].rows
    with pytest.raises(RowFault, match=refused) as fault:
        RowParser(form).parse(1, rows[0])
    assert section in fault.value.fix or section != "calls-in-tags"
    example = RowParser(form).parse(1, converted(section, rows, tmp_path, monkeypatch)[0])
    assert example is not None
    (conversation,) = example.sequences
    assert [message["role"] for message in conversation.messages or ()] == ["user", "assistant", "tool", "assistant"]
    called = (conversation.messages or [])[1]
    assert (called["content"], [call["function"] for call in called["tool_calls"]]) == (words, [CALL])
    (tool,) = conversation.tools or ()
    assert tool["function"]["parameters"]["type"] == "object"


def test_rows_of_gemini_with_more_than_text_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = rows = ROWS["Gemini's tuning (Vertex AI)"]
    called = {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {}}}]}
    converted_rows = converted(
        "turns-of-gemini", [first | {"contents": [*first["contents"], called]}, second], tmp_path, monkeypatch
    )
    assert capsys.readouterr().out == "rows left out: 1\n"
    (row,) = converted_rows
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert len(rows) == 3


def test_conversations_in_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = MODES["dpo"].rows
    with pytest.raises(RowFault, match="is a conversation written down as one text") as fault:
        RowParser(form).parse(1, HH_RLHF[0])
    assert f"{PAGE}#conversations-in-one-text" in fault.value.fix
    rows = converted("conversations-in-one-text", HH_RLHF, tmp_path, monkeypatch)
    example = RowParser(form).parse(1, rows[0])
    assert example is not None
    assert said(example) == [("France.", ("Paris", [])), ("France.", ("Nowhere", []))]
    assert [conversation.learn_from for conversation in example.sequences] == [3, 3]


@pytest.mark.parametrize(
    ("row", "mode", "fix"),
    [
        (
            {"Question": "q", "Complex_CoT": "I think", "Response": "a"},
            "sft",
            "set columns to prompt=Question,output=Response,reasoning_content=Complex_CoT where it belongs",
        ),
        (
            {"prompt": "q", "output": "a", "r1_reasoning": "I think"},
            "sft",
            "set columns to reasoning_content=r1_reasoning where",
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad one", "rationale": "It is better."},
            "dpo",
            "write it as `reasoning_content`",
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad one", "rationale": "It is better."},
            "sft",
            "for sft write the chosen answer",
        ),
        (
            {"messages": [user("q"), assistant("a")], "reasoning": "on"},
            "sft",
            "remove it where that is meant",
        ),
        (
            {"question": "q", "solution": "s", "answer": "a"},
            "sft",
            "set columns to prompt=question,output=solution or set columns to prompt=question,output=answer",
        ),
        ({"input": [user("q")], "output": "a"}, "sft", "set columns to prompt=input"),
        (
            {"messages": [user("q", functions=None), assistant("a", function_calls="f(x=1)")]},
            "sft",
            "write calls into the assistant's turns",
        ),
    ],
    ids=["medical-o1", "by its end", "of a pair", "of a pair, in sft", "Nemotron", "LIMO", "messages", "Dolci"],
)
def test_fields_of_others_are_refused_with_what_is_certain(row: Row, mode: str, fix: str) -> None:
    with pytest.raises(RowFault) as fault:
        RowParser(MODES[mode].rows).parse(1, row)
    assert in_words(fault.value.fix).startswith((fix, "declare the tools as `tools`, " + fix))
    for names in re.findall(r"set columns to (\S+)", in_words(fault.value.fix)):
        columns = dict(pair.split("=") for pair in names.split(","))
        assert RowParser(MODES[mode].rows, columns).parse(1, row)


def test_flags_with_such_a_name_change_nothing() -> None:
    row = {"prompt": "q", "output": "a", "requires_reasoning": True, "model_reasoning": "yes"}
    assert RowParser(MODES["sft"].rows).parse(1, row)


def test_tools_as_a_list_of_texts() -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    row = {"prompt": "q", "chosen": "good", "rejected": "bad one", "tools": [json.dumps(tool)]}
    example = RowParser(MODES["dpo"].rows).parse(1, row)
    assert example is not None
    assert [tool["function"]["name"] for tool in example.sequences[0].tools or ()] == ["find"]
    with pytest.raises(RowFault, match=r"`tools\[0\]` is text and no JSON"):
        RowParser(MODES["dpo"].rows).parse(1, row | {"tools": ["find"]})


def test_reasoning_in_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in OPEN_THOUGHTS))
    report = examine_dataset(path, form=MODES["sft"].rows, tokenizer_dir=None, max_length=100)
    assert [refused.reason for refused in report.refusals] == [Reason.REASONING_IN_TEXT]
    assert f"{PAGE}#reasoning-in-tags" in report.refusals[0].fix
    rows = converted("reasoning-in-tags", OPEN_THOUGHTS, tmp_path, monkeypatch)
    example = RowParser(MODES["sft"].rows).parse(1, rows[0])
    assert example is not None
    assert said(example) == THOUGHT
