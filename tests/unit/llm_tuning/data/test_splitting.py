"""The held-out split is seeded, disjoint and complete."""

from __future__ import annotations

import numpy as np
import pytest

from llm_tuning.data.splitting import split


@pytest.mark.parametrize("n_rows", [20, 21, 99, 1000])
@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
def test_parts_are_disjoint_and_complete(n_rows: int, fraction: float) -> None:
    training, held_out = split(n_rows, fraction, 42)
    assert sorted([*training, *held_out]) == list(range(n_rows))
    assert len(held_out) == max(1, round(n_rows * fraction))
    assert training.dtype == held_out.dtype == np.int64
    assert all(np.diff(part).min(initial=1) > 0 for part in (training, held_out))


@pytest.mark.parametrize(("n_rows", "fraction"), [(0, 0.5), (2, 0.5), (19, 0.5), (1000, 0.0)])
def test_few_rows_or_no_fraction_hold_nothing_out(n_rows: int, fraction: float) -> None:
    training, held_out = split(n_rows, fraction, 1)
    assert training.tolist() == list(range(n_rows))
    assert held_out.tolist() == []


def test_the_seed_decides() -> None:
    assert split(40, 0.1, 42)[1].tolist() == split(40, 0.1, 42)[1].tolist() == [7, 18, 32, 39]
    assert split(40, 0.1, 43)[1].tolist() != split(40, 0.1, 42)[1].tolist()
