"""How rows are laid in a micro-batch."""

from __future__ import annotations

import numpy as np

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.trainers.micro_batches import flatten, pad


def make_row(length: int, *, learned_from: int = 1) -> TokenRow:
    ids = np.arange(10, 10 + length, dtype=np.int32)
    return TokenRow(ids, np.arange(length) >= learned_from, float("nan"), 0)


def test_padding_is_on_the_right_and_never_learned() -> None:
    batch = pad([make_row(3), make_row(5, learned_from=3)])
    assert batch.input_ids.tolist() == [[10, 11, 12, 0, 0], [10, 11, 12, 13, 14]]
    assert batch.labels.tolist() == [[-100, 11, 12, -100, -100], [-100, -100, -100, 13, 14]]


def test_rows_laid_end_to_end_never_learn_the_first_token_of_a_row() -> None:
    batch = flatten([make_row(2), make_row(3)])
    assert batch.input_ids.tolist() == [[10, 11, 10, 11, 12]]
    assert batch.labels.tolist() == [[-100, 11, -100, 11, 12]]
    assert batch.row_lengths == [2, 3]


def test_rows_of_two_sequences_are_two_of_a_batch() -> None:
    ids = np.arange(10, 17, dtype=np.int32)
    learned = np.array([0, 0, 1, 0, 1, 1, 1], dtype=np.bool_)
    rows = [TokenRow(ids, learned, float("nan"), 0, (3, 4)), make_row(2)]
    padded, flat = pad(rows), flatten(rows)
    assert padded.input_ids.tolist() == [[10, 11, 12, 0], [13, 14, 15, 16], [10, 11, 0, 0]]
    assert padded.labels.tolist() == [[-100, -100, 12, -100], [-100, 14, 15, 16], [-100, 11, -100, -100]]
    assert flat.row_lengths == [3, 4, 2]
    assert flat.input_ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 10, 11]]
