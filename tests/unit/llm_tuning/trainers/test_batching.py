"""Which rows a step sees, and how they are cut into passes."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from llm_tuning.trainers.batching import PASS_COST, StepBatches, full_batches, token_budget_batches

LENGTHS = np.clip(np.random.default_rng(0).lognormal(5, 0.8, 103), 30, 800).astype(np.int32)


def step_sets(batches: list[StepBatches], epoch: int) -> list[set[int]]:
    """The rows of each step over all ranks."""
    return [set(np.concatenate(shares).tolist()) for shares in zip(*(b.epoch(epoch) for b in batches), strict=True)]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dealt", "balanced"])
def test_two_ranks_see_in_each_step_what_one_sees_with_the_double_batch(lengths: np.ndarray | None) -> None:
    two = [StepBatches(103, batch_size=4, grad_accum=1, seed=7, rank=r, world=2, lengths=lengths) for r in range(2)]
    one = [StepBatches(103, batch_size=8, grad_accum=1, seed=7)]
    for epoch in range(3):
        assert step_sets(two, epoch) == step_sets(one, epoch)


def test_eight_by_one_sees_the_same_steps_as_one_by_eight() -> None:
    eight = StepBatches(50, batch_size=8, grad_accum=1, seed=3)
    accumulated = StepBatches(50, batch_size=1, grad_accum=8, seed=3)
    for a, b in zip(eight.epoch(1), accumulated.epoch(1), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_takes_every_row_once_the_last_incomplete_step_included() -> None:
    chosen = np.arange(100, 121)
    batches = StepBatches(chosen, batch_size=4, grad_accum=2, seed=1)
    steps = batches.epoch(0)
    assert [len(step) for step in steps] == [8, 8, 5]
    assert len(batches) == 3
    assert sorted(np.concatenate(steps)) == chosen.tolist()


def test_epochs_and_seeds_differ_in_order_and_repeat_exactly() -> None:
    batches = StepBatches(40, batch_size=8, grad_accum=1, seed=1)
    first, second = (np.concatenate(batches.epoch(e)) for e in (0, 1))
    assert not np.array_equal(first, second)
    again = StepBatches(40, batch_size=8, grad_accum=1, seed=1)
    np.testing.assert_array_equal(np.concatenate(again.epoch(1)), second)
    other = StepBatches(40, batch_size=8, grad_accum=1, seed=2)
    assert not np.array_equal(np.concatenate(other.epoch(0)), first)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dealt", "balanced"])
def test_every_rank_takes_as_many_steps_though_its_last_share_is_empty(lengths: np.ndarray | None) -> None:
    ranks = [StepBatches(9, batch_size=2, grad_accum=1, seed=0, rank=r, world=4, lengths=lengths) for r in range(4)]
    shares = [rank.epoch(0) for rank in ranks]
    assert {len(share) for share in shares} == {2}
    assert sorted(len(share[1]) for share in shares) == [0, 0, 0, 1]


def test_with_lengths_no_rank_gets_all_the_long_rows() -> None:
    ranks = [StepBatches(96, batch_size=8, grad_accum=1, seed=0, rank=r, world=2, lengths=LENGTHS) for r in range(2)]
    for a, b in zip(ranks[0].epoch(0), ranks[1].epoch(0), strict=True):
        assert abs(int(LENGTHS[a].sum()) - int(LENGTHS[b].sum())) <= int(LENGTHS[np.concatenate([a, b])].max())


def test_max_steps_decides_where_it_is_set() -> None:
    batches = StepBatches(20, batch_size=8, grad_accum=1, seed=0)
    assert batches.total_steps(4, None) == 12
    assert batches.total_steps(4, 5) == 5
    assert batches.total_steps(1, 50) == 50


def check_cut(cut: list[np.ndarray], rows: int) -> None:
    assert sorted(np.concatenate(cut).tolist()) == list(range(rows))


@pytest.mark.parametrize("budget", [1, 100, 800, 2048, 10**6])
def test_padded_passes_keep_to_the_budget_unless_one_row_alone_is_longer(budget: int) -> None:
    cut = token_budget_batches(LENGTHS, budget)
    check_cut(cut, len(LENGTHS))
    for batch in cut:
        padded = len(batch) * int(LENGTHS[batch].max())
        assert padded <= budget or len(batch) == 1
    assert int(LENGTHS[cut[0]].max()) == int(LENGTHS.max()), "the largest pass comes first"


def test_at_most_max_rows_go_into_a_pass() -> None:
    cut = token_budget_batches(LENGTHS, 10**6, max_rows=3, pass_cost=10**6)
    check_cut(cut, len(LENGTHS))
    assert len(cut) == 35
    assert max(len(batch) for batch in cut) == 3


def least_work(lengths: list[int], budget: int) -> int:
    """By trying every cut of the sorted rows."""
    ordered = sorted(lengths, reverse=True)
    best = 10**9
    for cuts in range(2 ** (len(ordered) - 1)):
        at = [0, *(i + 1 for i in range(len(ordered) - 1) if cuts >> i & 1), len(ordered)]
        parts = [ordered[a:b] for a, b in pairwise(at)]
        if all(part[0] * len(part) <= budget or len(part) == 1 for part in parts):
            best = min(best, sum(part[0] * len(part) + PASS_COST for part in parts))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_of_the_sorted_rows_is_less_work(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(10, 400, 9)
    cut = token_budget_batches(lengths, 900)
    work = sum(len(batch) * int(lengths[batch].max()) + PASS_COST for batch in cut)
    assert work == least_work(lengths.tolist(), 900)


@pytest.mark.parametrize("budget", [100, 900, 4096])
def test_full_passes_keep_to_the_budget_in_sum(budget: int) -> None:
    cut = full_batches(LENGTHS, budget)
    check_cut(cut, len(LENGTHS))
    for batch in cut:
        assert int(LENGTHS[batch].sum()) <= budget or len(batch) == 1
    # first fit is never worse than 1.7 of the best possible, and that is never less than the sum
    too_long = budget < LENGTHS
    assert len(cut) <= too_long.sum() + 1.7 * (LENGTHS[~too_long].sum() / budget) + 1


def test_no_rows_make_no_passes() -> None:
    nothing = np.array([], dtype=np.int32)
    assert token_budget_batches(nothing, 100) == []
    assert full_batches(nothing, 100) == []


def test_rows_of_a_whole_data_set_are_cut_quickly_and_into_full_passes() -> None:
    """An evaluation cuts all held-out rows at once, and first fit over thousands of open passes takes minutes."""
    lengths = np.clip(np.random.default_rng(1).lognormal(5, 0.8, 50_000), 30, 800).astype(np.int32)
    began = time.process_time()
    passes = full_batches(lengths, 2048)
    assert time.process_time() - began < 5
    assert sorted(np.concatenate(passes).tolist()) == list(range(50_000))
    assert max(int(lengths[at].sum()) for at in passes) <= 2048
    assert len(passes) <= 1.02 * lengths.sum() / 2048
