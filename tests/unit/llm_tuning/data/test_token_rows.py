"""Rows on disk come back as they were written, and a write that was killed is never taken for whole."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from tests.support.rows import as_version_1

MESSAGES = [{"role": "user", "content": "q é\n"}, {"role": "assistant", "content": "a 🙂"}]


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.bool_)


def write(path: Path) -> None:
    with TokenRowsWriter(path) as writer:
        writer.append(ids(5, 6, 7), flags(0, 0, 1), row_number=1, number=0.5, messages=MESSAGES)
        writer.append(ids(8, 9), flags(0, 1), row_number=4, text="t \u2028 x")
        writer.append(ids(1), flags(0), row_number=2**40, number=-1e300, messages=MESSAGES[:1])


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    write(tmp_path / "rows")
    rows = TokenRows.open(tmp_path / "rows")
    assert len(rows) == 3
    assert rows.lengths.tolist() == [3, 2, 1]
    assert (rows.lengths.dtype, rows.learned_counts.dtype, rows.numbers.dtype) == (np.int32, np.int32, np.float64)
    assert rows.learned_counts.tolist() == [1, 1, 0]
    assert rows.row_numbers.tolist() == [1, 4, 2**40]
    assert [row.input_ids.tolist() for row in rows] == [[5, 6, 7], [8, 9], [1]]
    assert (rows[0].input_ids.dtype, rows[0].learned.dtype) == (np.int32, np.bool_)
    assert rows[0].learned.tolist() == [False, False, True]
    assert (rows[0].number, rows[2].number, rows[-1].row_number) == (0.5, -1e300, 2**40)
    assert math.isnan(rows[1].number)
    assert (rows.messages(0), rows.text(0)) == (MESSAGES, None)
    assert (rows.messages(1), rows.text(1)) == (None, "t \u2028 x")
    assert rows.messages(2) == MESSAGES[:1]
    with pytest.raises(IndexError):
        rows[3]


def test_rows_are_read_only_views(tmp_path: Path) -> None:
    write(tmp_path / "rows")
    with pytest.raises(ValueError, match="read-only"):
        TokenRows.open(tmp_path / "rows")[0].input_ids[0] = 1


def test_no_rows_are_whole_too(tmp_path: Path) -> None:
    with TokenRowsWriter(tmp_path / "rows"):
        pass
    assert len(TokenRows.open(tmp_path / "rows")) == 0


@pytest.mark.parametrize(
    ("row", "learned"), [(ids(1, 2), flags(0)), (ids(), flags()), (ids(1, 2), flags(1, 1))], ids=str
)
def test_rows_that_cannot_be_are_refused(tmp_path: Path, row: np.ndarray, learned: np.ndarray) -> None:
    with pytest.raises(ValueError, match="as many learned flags"), TokenRowsWriter(tmp_path / "rows") as writer:
        writer.append(row, learned, row_number=1, text="")


def test_rows_that_lost_bytes_or_their_marker_are_not_whole(tmp_path: Path) -> None:
    assert not TokenRows.is_whole(tmp_path / "rows")
    write(tmp_path / "rows")
    os.truncate(tmp_path / "rows" / "learned.bin", 2)
    assert not TokenRows.is_whole(tmp_path / "rows")
    write(tmp_path / "rows")
    (tmp_path / "rows" / "rows.json").write_text("{")
    assert not TokenRows.is_whole(tmp_path / "rows")


def test_an_error_while_writing_leaves_no_folder(tmp_path: Path) -> None:
    def fail_after_a_row() -> None:
        with TokenRowsWriter(tmp_path / "rows") as writer:
            writer.append(ids(5, 6), flags(0, 1), row_number=1, text="x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_a_row()
    assert not (tmp_path / "rows").exists()


def test_rows_of_several_sequences_come_back_in_their_parts(tmp_path: Path) -> None:
    with TokenRowsWriter(tmp_path / "rows") as writer:
        writer.append(ids(5, 6, 7), flags(0, 0, 1), row_number=1, messages=MESSAGES)
        writer.append_sequence(ids(5, 8), flags(0, 1), text="other")
        writer.append(ids(9, 9), flags(0, 1), row_number=2, number=2.0, text="one")
        writer.append(ids(1, 2), flags(0, 1), row_number=3, text="two")
        writer.append_sequence(ids(1, 3), flags(0, 1), text="three")
        writer.append_sequence(ids(1, 4, 5), flags(0, 1, 1), text="four")
    rows = TokenRows.open(tmp_path / "rows")
    assert len(rows) == 3
    assert rows.lengths.tolist() == [5, 2, 7]
    assert rows.learned_counts.tolist() == [2, 1, 4]
    parts = [[sequence.input_ids.tolist() for sequence in row.sequences] for row in rows]
    assert parts == [[[5, 6, 7], [5, 8]], [[9, 9]], [[1, 2], [1, 3], [1, 4, 5]]]
    assert [sequence.learned.tolist() for sequence in rows[0].sequences] == [[False, False, True], [False, True]]
    assert rows[-1].input_ids.tolist() == [1, 2, 1, 3, 1, 4, 5]
    assert (rows.messages(0), rows.text(0, 1), rows.text(2, 2)) == (MESSAGES, "other", "four")
    assert rows.row_numbers.tolist() == [1, 2, 3]
    assert rows.count_prompts() == 3
    with pytest.raises(IndexError):
        rows.text(1, 1)


def test_rows_of_a_run_that_the_version_before_began_are_read(tmp_path: Path) -> None:
    write(tmp_path / "rows")
    now = TokenRows.open(tmp_path / "rows")
    want = [(row.input_ids.tolist(), row.learned.tolist(), row.row_number) for row in now], now.numbers.tolist()
    as_version_1(tmp_path / "rows")
    then = TokenRows.open(tmp_path / "rows")
    rows, numbers = [(row.input_ids.tolist(), row.learned.tolist(), row.row_number) for row in then], then.numbers
    assert (rows, str(numbers.tolist())) == (want[0], str(want[1]))
    assert (then.lengths.tolist(), then.learned_counts.tolist()) == ([3, 2, 1], [1, 1, 0])
    assert (then.messages(0), then.text(1), len(then[1].sequences)) == (MESSAGES, "t \u2028 x", 1)
    with (tmp_path / "rows/rewards.bin").open("ab") as file:
        file.write(b"x")
    assert not TokenRows.is_whole(tmp_path / "rows")
