"""Holding a run to its KL, on one weight whose KL is known: the square of its distance from the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm_tuning.data.token_rows import TokenRows
from llm_tuning.trainers.kl_target import BACKTRACKS, KL_TOKENS, KlTarget, rows_to_measure
from tests.support.rows import write_rows


def _held(good: float, now: float, target_kl: float) -> tuple[float, KlTarget]:
    weight = torch.nn.Parameter(torch.tensor([good]))
    kl_target = KlTarget([weight], lambda: float(weight.detach().square()), target_kl)
    weight.data.fill_(now)
    kl_target.hold(step=7)
    return float(weight.detach()), kl_target


def test_within_the_target_the_weights_stay_and_are_remembered():
    weight, state = _held(0.1, 0.4, 0.25)
    assert weight == pytest.approx(0.4)
    assert state.within[0].item() == pytest.approx(0.4)
    assert state.kl == pytest.approx(0.16)
    assert state.stopped_early is None


def test_above_it_the_first_halving_within_is_taken(caplog: pytest.LogCaptureFixture):
    weight, state = _held(0.4, 1.0, 0.37)
    # halfway 0.7 (KL 0.49) is still above, a quarter of the way 0.55 (0.3025) is within
    assert weight == pytest.approx(0.55)
    assert state.kl == pytest.approx(0.3025)
    assert state.stopped_early == "TargetKl"
    assert "stopped at step 7: the KL to the start policy was 1 nats a token, above ppo.targetKl 0.37" in caplog.text


def test_where_no_halving_is_within_all_of_the_stretch_is_given_up():
    weight, state = _held(0.1, 1e6, 0.25)
    assert 1e6 * 0.5**BACKTRACKS > 0.5
    assert weight == pytest.approx(0.1)
    assert state.kl == pytest.approx(0.01)
    assert state.stopped_early == "TargetKl"


def test_a_kl_that_is_no_number_is_not_within():
    weight, state = _held(0.1, float("nan"), 0.25)
    assert weight == pytest.approx(0.1)
    assert state.stopped_early == "TargetKl"


@pytest.mark.parametrize(("lengths", "want"), [([20] * 400, KL_TOKENS // 12), ([20] * 5, 5), ([9000] * 3, 1)])
def test_rows_to_measure_fit_the_bound_but_are_at_least_one(tmp_path: Path, lengths: list[int], want: int):
    rows: TokenRows = write_rows(tmp_path / "rows", lengths)  # of each 60 % is learned
    chosen = rows_to_measure(rows, np.arange(len(rows)), seed=1)
    assert len(chosen) == want
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, rows_to_measure(rows, np.arange(len(rows)), seed=1))
    if len(lengths) == 400:
        assert not np.array_equal(chosen, rows_to_measure(rows, np.arange(len(rows)), seed=2))
        assert chosen.max() > 300, "a choice over all rows, not the first ones"
