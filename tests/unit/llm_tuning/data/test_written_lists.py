"""Messages that somebody wrote down as text: learned as they stand they would teach JSON, in whatever file they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.data.cells import read_cells
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.modes import MODES

ASKED, ANSWER = {"role": "user", "content": "sECRET"}, {"role": "assistant", "content": "sECRET"}
SHAREGPT = {"from": "human", "value": "sECRET"}
PARTS = [{"type": "text", "text": "sECRET"}, {"type": "image_url", "image_url": {"url": "sECRET"}}]
WRITTEN = {
    "json": json.dumps([ASKED]),
    "indented": "\n" + json.dumps([ASKED, ANSWER], indent=2),
    "content first": json.dumps([{"content": "sECRET", "role": "user"}]),
    "sharegpt": json.dumps([SHAREGPT]),
    "one message": json.dumps(ANSWER),
    "python": str([ASKED, ANSWER]),
    "numpy": str([ASKED, ANSWER]).replace("}, {", "}\n {"),
    "with more": json.dumps([ASKED | {"id": 1, "tool_calls": None}]),
    "parts": json.dumps(PARTS),
}
ROWS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("sft", {"prompt": "q", "output": "a"}, ("prompt", "output")),
    ("sft", {"prompt": "q", "completion": "a"}, ("prompt", "completion")),
    ("sft", {"instruction": "q", "input": "i", "output": "a"}, ("instruction", "input", "output")),
    ("sft", {"text": "a"}, ("text",)),
    ("ppo", {"prompt": "q", "output": "a", "reward": 1}, ("prompt", "output")),
    ("kto", {"prompt": "q", "completion": "a", "label": True}, ("prompt", "completion")),
    ("dpo", {"prompt": "q", "chosen": "a", "rejected": "b"}, ("prompt", "chosen", "rejected")),
    ("dpo", {"chosen": "a", "rejected": "b"}, ("chosen", "rejected")),
    ("dpo", {"instruction": "q", "chosen": "a", "rejected": "b"}, ("instruction", "chosen")),
]


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_messages_as_the_text_of_a_field_are_refused(written: str) -> None:
    for mode, row, names in ROWS:
        for name in names:
            with pytest.raises(RowFault) as error:
                RowParser(MODES[mode].rows).parse(1, row | {name: written})
            fault = error.value
            assert (fault.reason, f"`{name}` holds" in fault.rule) == (Reason.AMBIGUOUS, True), (mode, name)
            assert "json.loads" in fault.fix
            assert "sECRET" not in f"{fault} {fault.fix}"
    with pytest.raises(RowFault, match="as text"):
        read_cells({"prompt": written, "completion": "a"}, ())


@pytest.mark.parametrize("text", [WRITTEN["parts"], str(PARTS)])
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_parts_as_the_text_of_a_turn_are_refused(text: str, role: str) -> None:
    turns = [{"role": name, "content": text if name == role else "a"} for name in ("system", "user", "assistant")]
    with pytest.raises(RowFault, match="`content` holds the parts of a text as text"):
        RowParser(MODES["sft"].rows).parse(1, {"messages": turns})


def test_a_text_that_is_meant_so_can_be_said() -> None:
    """By the remedy of the refusal, to the letter; and what a tool gave is its own text, whatever it looks like."""
    for written in WRITTEN.values():
        if "text" in written:
            message = {"role": "assistant", "content": [{"type": "text", "text": written}]}
        else:
            message = {"role": "assistant", "content": written}
        row = {"prompt": "q", "completion": [message]}
        example = RowParser(MODES["sft"].rows).parse(1, row)
        assert example is not None
        assert (example.sequences[0].messages or [])[1]["content"] == written
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": WRITTEN["parts"]},
        {"role": "assistant", "content": "a"},
    ]
    assert RowParser(MODES["sft"].rows).parse(1, {"messages": turns, "tools": [{"name": "f"}]})


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}]',
        "[1, 2]",
        "{}",
        '{"role": "admin", "name": "x"}',
        '{"type": "object", "properties": {"text": {"type": "string"}}}',
        '[{"type": "fruit", "name": "apple"}]',
        'Parse this: [{"role": "user", "content": "x"}]',
        '[{"role": "user", "content": "x"}] has one message',
        '{"content": "x", "value": 3}',
    ],
)
def test_other_json_is_a_text_like_any_other(text: str) -> None:
    for row in (
        {"prompt": text, "output": text},
        {"messages": [ASKED | {"content": text}, ANSWER | {"content": text}]},
    ):
        assert RowParser(MODES["sft"].rows).parse(1, row)
    assert read_cells({"prompt": text}, ()) == {"prompt": text}
