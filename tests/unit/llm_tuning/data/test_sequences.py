"""A conversation that becomes several sequences, through counts, files, groups of prompts, report and sample."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import check_dataset
from llm_tuning.data.report import Report
from llm_tuning.data.sample import render_sample
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.modes import MODES

WriteLines = Callable[[Sequence[Any]], Path]
FORM = MODES["sft"].rows
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: the think block of the last answer is gone once another turn follows."""


def chat(turns: int, topic: int = 0) -> dict[str, Any]:
    contents = [text for turn in range(turns) for text in (f"Question {topic}.{turn}?", f"Answer {topic}.{turn}")]
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]}


@pytest.fixture
def base(tokenizer_dir: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "chat_template.jinja").write_text(REWRITES)
    return folder


def check(path: Path, base: Path, out: Path, **more: Any) -> Report:
    return check_dataset(path, form=FORM, tokenizer_dir=base, out=out, **({"max_length": 1000} | more))


def test_rows_files_and_report(base: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    conversations = [chat(3), chat(1, 1), chat(2, 2)]
    report = check(write_lines(conversations), base, tmp_path / "rows")
    rows = TokenRows.open(tmp_path / "rows")
    assert len(rows) == 3
    assert [len(row.sequences) for row in rows] == [3, 1, 2]
    for row, conversation in enumerate(conversations):
        for part in range(len(rows[row].sequences)):
            messages = conversation["messages"][: 2 * part + 2]
            assert rows.messages(row, part) == messages
            assert rows.place_of(int(rows.sequences_of_row(row)[part])) == (row, part)
            assert not rows[row].sequences[part].learned[: rows.prompt_tokens(row, part)].any()
            assert rows[row].sequences[part].learned[rows.prompt_tokens(row, part)]
    tokens = report.tokens
    assert tokens is not None
    assert tokens.lengths is not None
    assert (tokens.sequences, tokens.answers, tokens.answers_cut) == (6, 6, 0)
    assert tokens.several_sequences.rows == [1, 3]
    assert tokens.lengths.total == rows.lengths.sum() == rows.sequence_lengths.sum()
    assert tokens.lengths.max == rows.sequence_lengths.max()
    assert tokens.learned == rows.learned_counts.sum()
    assert tokens.rows_learning_end == 3
    said = report.summary()
    assert "Answers: 3 rows are 6 sequences with 6 learned answers" in said
    assert (
        "the template rewrites earlier turns: the answers of rows 1 and 3 are learned in sequences of their own" in said
    )


def test_answers_behind_the_cut(base: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    report = check(write_lines([chat(20), chat(1, 1)]), base, tmp_path / "rows", max_length=200)
    rows = TokenRows.open(tmp_path / "rows")
    tokens = report.tokens
    assert tokens is not None
    assert tokens.answers + tokens.answers_cut == 21
    assert tokens.answers_cut > 5
    assert tokens.truncated.rows == [1]
    assert rows.sequence_learned_counts.min() > 0
    assert f"and {tokens.answers_cut} whole answers" in report.summary()


def test_rows_of_one_prompt_stay_together_by_the_conversation_as_it_was_written(
    base: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    """Another beginning with the same last question is another prompt; the same one with another end is not."""
    other_end = chat(2)
    other_end["messages"][-1]["content"] = "Another answer"
    rows = [chat(2), other_end, chat(2, 1)]
    check(write_lines(rows), base, tmp_path / "rows")
    keys = TokenRows.open(tmp_path / "rows").prompts
    assert keys is not None
    assert keys[0] == keys[1] != keys[2]


def test_a_row_with_some_answers_only(base: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    row = {"prompt": chat(2)["messages"][:3], "completion": [{"role": "assistant", "content": "the answer"}]}
    check(write_lines([row, row]), base, tmp_path / "rows")
    rows = TokenRows.open(tmp_path / "rows")
    assert [len(row.sequences) for row in rows] == [1, 1]


def test_the_sample_shows_each_sequence(base: Path, write_lines: WriteLines) -> None:
    text = render_sample(write_lines([chat(2)] * 2), form=FORM, tokenizer_dir=base)
    assert text.count("Question 0.0?") == 2
    assert text.count(">>>") == 2
    for answer in ("Answer 0.0", "Answer 0.1"):
        assert f">>><think>\n\n</think>\n\n{answer}<|im_end|><<<" in text
