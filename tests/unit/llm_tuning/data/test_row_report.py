"""What a check says of rows left out, of fields that nothing uses, and of few bad rows among many good ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api.flags import FLAG_WORDS
from llm_tuning.data.check import DatasetRefused, check_dataset, examine_dataset
from llm_tuning.data.report import Report
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.splitting import PromptGroups
from llm_tuning.data.tally import DuplicateCounter
from llm_tuning.modes import MODES

WriteLines = Callable[[Sequence[Any]], Path]
USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}


def check(path: Path, mode: str = "sft") -> Report:
    return check_dataset(path, form=MODES[mode].rows, tokenizer_dir=None, max_length=100)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {n}", "output": f"answer {n}", "reward": n} for n in range(count)]


@pytest.mark.parametrize("mode", ["sft", "ppo"])
def test_rows_marked_as_not_learned_are_counted_and_noted(write_lines: WriteLines, mode: str) -> None:
    report = check(write_lines([*rows(3), rows(1)[0] | {"weight": 0}, rows(1)[0] | {"train": False}]), mode)
    assert (report.rows, report.kept, report.refused, report.rows_left_out) == (5, 3, 0, 2)
    assert "rows that are marked as not learned are left out: 2" in report.notes
    assert not any("weight" in note or "train" in note for note in report.notes)


def test_a_file_of_which_nothing_is_learned_is_refused(write_lines: WriteLines) -> None:
    with pytest.raises(DatasetRefused, match="holds 0 usable rows; a run needs at least 2"):
        check(write_lines([row | {"weight": 0} for row in rows(3)]))


def test_every_unused_field_is_noted_in_a_stable_order(write_lines: WriteLines) -> None:
    more = {f"meta_{n:02}": n for n in range(30)} | {"empty": "", "null": None, "tools": "[]"}
    report = check(write_lines([{"prompt": "q", "output": "a"} | more, {"prompt": "r", "output": "a", "zeta": 1}]))
    names = [*(f"meta_{n:02}" for n in range(30)), "zeta"]
    assert report.ignored_fields == names
    assert f"fields that are not used: {', '.join(names)}" in report.notes


def test_a_note_has_no_end_of_fields(write_lines: WriteLines) -> None:
    report = check(write_lines([row | {f"field {n} of {i}": 1 for n in range(400)} for i, row in enumerate(rows(2))]))
    assert len(report.ignored_fields) == 801
    (note,) = [note for note in report.notes if note.startswith("fields")]
    assert note.endswith(" and 301 more")


def test_few_bad_rows_among_many_say_how_the_others_are_trained_on(write_lines: WriteLines) -> None:
    path = write_lines([*rows(18), {"prompt": "q", "output": ""}, {"prompt": "", "output": "a"}])
    report = examine_dataset(path, form=MODES["sft"].rows, tokenizer_dir=None, max_length=100, words=FLAG_WORDS)
    assert [problem.fix for problem in report.problems] == [
        "give a text or remove the row; or use --skip_invalid_rows to train on the other 18"
    ] * 2
    path = write_lines([*rows(17), {"prompt": "q", "output": ""}, {"prompt": "", "output": "a"}])
    with pytest.raises(DatasetRefused) as refused:
        check(path)
    assert "skip" not in str(refused.value)


@pytest.mark.parametrize(
    ("output", "warned"),
    [
        ("I am {{name}}, made by {{ author }}.", True),
        ("{{user.name}}", True),
        ("{% raw %}{{{% endraw %}", False),
        ("{name}", False),
        ("set {{1, 2}, {3}}", False),
    ],
)
def test_placeholders_are_warned_of(write_lines: WriteLines, output: str, warned: bool) -> None:
    report = check(write_lines([*rows(2), {"prompt": "Who are you?", "output": output}]))
    said = [warning for warning in report.warnings if "placeholders" in warning]
    text = "{{name}} placeholders are learned as they stand: fill them in if they stand for something (row 3)"
    assert said == [text] * warned


@pytest.mark.parametrize(
    ("row", "warned"),
    [
        ({"prompt": "How much?", "output": "NaN"}, True),
        ({"prompt": "#N/A", "output": "Five."}, True),
        ({"text": " <noinput>\n"}, True),
        ({"prompt": "Is there any?", "output": "None"}, False),
        ({"prompt": "What is 0/0?", "output": "It is nan."}, False),
    ],
)
def test_texts_that_stand_for_a_missing_value_are_warned_of(
    write_lines: WriteLines, row: dict[str, str], warned: bool
) -> None:
    others = [{"text": "first"}, {"text": "second"}] if "text" in row else rows(2)
    said = [warning for warning in check(write_lines([*others, row])).warnings if "missing" in warning]
    text = (
        "a text that is `nan`, `#N/A`, `<noinput>` or the like and nothing else is learned as it stands: "
        "remove such rows if a value is missing there (row 3)"
    )
    assert said == [text] * warned


@pytest.mark.parametrize(
    ("prompt", "warned"),
    [
        ("\n\nHuman: hi\n\nAssistant:", True),
        ("USER: hi ASSISTANT:", True),
        ("Below is an instruction.\n\n### Instruction:\nhi\n\n### Response:\n", True),
        ("User: hi\nAssistant: ", True),
        ("<human>: hi\n<bot>:", True),
        ("Write to the assistant: she is new", False),
        ("Q: 1+1\nA:", False),
        ("List the following:", False),
        ("Name a response: Assistant", False),
    ],
)
def test_prompts_that_are_rendered_without_markers_are_warned_of(
    write_lines: WriteLines, prompt: str, warned: bool
) -> None:
    report = check(write_lines([*rows(2), {"prompt": prompt, "output": "a"}]))
    said = [warning for warning in report.warnings if "rendered already" in warning]
    assert len(said) == warned
    assert all("give the plain question" in text and "(row 3)" in text for text in said)


def test_the_place_of_an_image_is_warned_of(write_lines: WriteLines) -> None:
    rows_of_images = [{"prompt": "<image>What is it?", "output": f"{n}"} for n in range(2)]
    report = check(write_lines([*rows(2), *rows_of_images]))
    assert (
        "`<image>` stands for an image that is not seen in training: leave such rows out (2 rows, the first is row 3)"
        in report.warnings
    )


def test_rows_of_which_other_turns_are_learned_are_no_duplicates() -> None:
    counter = DuplicateCounter()
    messages = [USER, ASSISTANT, USER, ASSISTANT]
    marks: list[dict[str, Any]] = [{}, {"not_learned": frozenset({1})}, {"prefixes": {3: 1}}, {"prefixes": {3: 1}}]
    for number, more in enumerate(marks, 1):
        counter.add(Example(number, (Conversation(messages, **more),)))
    assert counter.result().rows == [4]


def test_an_answer_that_is_not_learned_ties_no_rows_together() -> None:
    longer = [USER, ASSISTANT, {"role": "user", "content": "r"}, ASSISTANT]
    for not_learned, groups in ((frozenset[int](), 1), (frozenset({1}), 2)):
        prompts = PromptGroups()
        prompts.add(longer, not_learned=not_learned)
        prompts.add([USER, ASSISTANT])
        assert len(set(prompts.keys().tolist())) == groups
