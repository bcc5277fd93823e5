"""Rows of more than one sequence, as preference data has them, through parser, tokenizer, counts, files and sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import DatasetRefused, check_dataset
from llm_tuning.data.report import Report
from llm_tuning.data.rows import RowForm, Shape
from llm_tuning.data.sample import render_sample
from llm_tuning.data.shapes import prompt_and
from llm_tuning.data.token_rows import TokenRows

WriteLines = Callable[[Sequence[Any]], Path]

CHOSEN, REJECTED = prompt_and("chosen"), prompt_and("rejected")
PAIRS = RowForm(
    mode="pairs",
    shapes=(
        Shape("preference", ("prompt", "chosen", "rejected"), lambda row: (*CHOSEN(row), *REJECTED(row))),
        Shape("prompt/chosen", ("prompt", "chosen"), CHOSEN),
    ),
    accepted="{prompt, chosen, rejected}",
)
ROWS = [{"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"rather bad {n}"} for n in range(4)]


def check(path: Path, base: Path, out: Path, **more: Any) -> Report:
    return check_dataset(path, form=PAIRS, tokenizer_dir=base, max_length=200, out=out, **more)


def test_both_sequences_of_a_pair_are_tokenised_counted_and_kept(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    report = check(write_lines(ROWS), tokenizer_dir, tmp_path / "rows")
    rows = TokenRows.open(tmp_path / "rows")
    assert (report.kept, len(rows), report.shape, report.mode) == (4, 4, "preference", "pairs")
    assert [len(row.sequences) for row in rows] == [2] * 4
    assert [rows.messages(3, part)[-1]["content"] for part in (0, 1)] == ["good 3", "rather bad 3"]  # type: ignore[index]
    assert report.tokens is not None
    assert report.tokens.lengths is not None
    assert report.tokens.lengths.total == rows.lengths.sum()
    assert report.tokens.learned == rows.learned_counts.sum()
    assert report.tokens.rows_learning_end == 4
    for chosen, rejected in (row.sequences for row in rows):
        assert not chosen.learned[0]
        assert not rejected.learned[0]
        assert len(chosen.input_ids) < len(rejected.input_ids)


def test_a_pair_that_differs_in_its_second_sequence_only_is_no_duplicate(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    rows = [ROWS[0], ROWS[0] | {"rejected": "worse"}, ROWS[0]]
    report = check(write_lines(rows), tokenizer_dir, tmp_path / "rows")
    assert report.duplicates.rows == [3]


@pytest.mark.parametrize("at_fault", ["chosen", "rejected"])
def test_a_pair_with_one_bad_sequence_is_refused_whole(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines, at_fault: str
) -> None:
    rows = [*ROWS, ROWS[0] | {at_fault: " "}]
    with pytest.raises(DatasetRefused, match=f"row 5.*`{at_fault}` is empty"):
        check(write_lines(rows), tokenizer_dir, tmp_path / "refused")
    report = check(write_lines(rows), tokenizer_dir, tmp_path / "rows", skip_invalid_rows=True)
    assert (report.kept, report.refused, len(TokenRows.open(tmp_path / "rows"))) == (4, 1, 4)


def test_a_sequence_cut_before_its_answer_takes_its_pair_along(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    long = [{"role": "user", "content": "word " * 300}]
    rows = [*ROWS, {"prompt": long, "chosen": "a", "rejected": "b"}]
    report = check(write_lines(rows), tokenizer_dir, tmp_path / "rows", skip_invalid_rows=True)
    assert (report.kept, report.refusals[0].reason, report.refusals[0].rows) == (4, "NothingToLearn", [5])


def test_the_sample_shows_both(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    text = render_sample(write_lines(ROWS), form=PAIRS, tokenizer_dir=tokenizer_dir)
    assert text.count("question 0") == 2
    assert ">>>good 0" in text
    assert ">>>rather bad 0" in text
