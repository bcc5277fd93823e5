"""Which rank is told to be slow, and when."""

from __future__ import annotations

import pytest

from llm_tuning.run.slow_ranks import SlowRanks


def told(*steps: tuple[list[float], int]) -> list[str | None]:
    """What is news, of so many steps each."""
    ranks, news = SlowRanks(lambda rank: f"rank {rank}"), []
    for seconds, times in steps:
        for _ in range(times):
            if ranks.step(seconds, [100] * len(seconds)):
                news.append(ranks.told)
    return news


EVEN, SLOW = [1.0, 1.1, 0.9, 1.0], [1.0, 1.1, 10.0, 0.9]


def test_a_rank_ten_times_slower_is_told_once_with_its_time_and_the_others() -> None:
    (message,) = told((SLOW, 40))
    assert message == (
        "rank 2 is slow: it takes 10 s for its own part of a step, the others 1 s in the median, and they wait for it "
        "in each"
    )


def test_it_is_told_that_it_keeps_up_again() -> None:
    assert told((SLOW, 20), (EVEN, 60))[1:] == [None]


def test_between_the_two_limits_nothing_changes() -> None:
    between = [1.0, 1.0, 2.5, 1.0]
    assert told((between, 60)) == []
    assert len(told((SLOW, 20), (between, 60))) == 1


@pytest.mark.parametrize(
    "steps",
    [
        [(EVEN, 100)],
        [([5.0], 50)],  # alone
        [([1.0, 20.0, 1.0, 1.0], 4)],  # too few steps
        [([0.01, 0.1], 150)],  # 15 s: a hiccup
        [([0.0, 10.0], 50)],  # a time that is not known
        [(EVEN, 30), ([1.0, 9.0, 1.0, 1.0], 1), (EVEN, 30)],  # one step
        [(EVEN, 30), ([1.0, 90.0, 1.0, 1.0], 1), (EVEN, 30)],  # a long one
    ],
)
def test_nobody_is_told_without_reason(steps: list[tuple[list[float], int]]) -> None:
    assert told(*steps) == []


def test_of_two_ranks_the_other_is_the_measure_and_another_slow_one_is_other_news() -> None:
    news = told(([0.1, 1.0], 60), ([1.0, 0.1], 200))
    assert [message and message.split(" is slow")[0] for message in news] == ["rank 1", None, "rank 0"]


def test_the_rank_that_has_the_longest_row_of_each_step_is_not_slow_and_a_slow_one_is_told_beside_it() -> None:
    ranks = SlowRanks(lambda rank: f"rank {rank}")
    tokens = [4000, 800, 600, 500]
    assert not any(ranks.step([count / 1000 for count in tokens], tokens) for _ in range(60))
    assert any(ranks.step([4.0, 0.8, 6.0, 0.5], tokens) for _ in range(60))
    assert ranks.told is not None
    assert ranks.told.startswith("rank 2 is slow")


def test_a_rank_with_few_tokens_is_not_slow_though_each_takes_it_longer() -> None:
    ranks = SlowRanks(lambda rank: f"rank {rank}")
    assert not any(ranks.step([1.0, 1.0, 0.9], [900, 800, 20]) for _ in range(60))
