"""Which rated answers of one prompt make pairs."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from llm_tuning.data.pairing import Pairing, PairingCounts, RatedAnswers, choose_pairs

Answer = tuple[int, int, float]
"""Prompt, answer, rating."""


def pair(answers: list[Answer], pairing: Pairing) -> tuple[set[tuple[Answer, Answer]], PairingCounts]:
    rated = RatedAnswers(pairing)
    for prompt, answer, rating in answers:
        rated.add(prompt=prompt, answer=answer, rating=rating)
    found = [(answers[made.chosen], answers[made.rejected], made.difference) for made in rated.pairs()]
    assert all(one[0] == other[0] and difference > 0 for one, other, difference in found)
    assert rated.counts.pairs == len(found)
    return {(one, other) for one, other, _ in found}, rated.counts


@pytest.mark.parametrize("seed", range(20))
def test_the_widest_pairs_of_a_prompt_are_chosen(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        ratings = sorted((chance.choice((0, 0.1, 0.2, 0.3, 1, 2)) for _ in range(chance.randint(1, 12))), reverse=True)
        pairing = Pairing(chance.choice((0, 0.1, 1)), chance.randint(1, 12))
        every = [at for at in combinations(range(len(ratings)), 2) if pairing.differ(ratings[at[0]], ratings[at[1]])]
        widest = sorted(every, key=lambda at: (ratings[at[1]] - ratings[at[0]], at[0], -at[1]))
        assert choose_pairs(ratings, pairing) == widest[: pairing.max_pairs_per_prompt]


@pytest.mark.parametrize(
    ("high", "low", "least", "differ"),
    [
        (1, 1, 0, False),
        ((0.1 + 0.2 + 0.3) / 3, 0.2, 0, False),
        (1, 0.999, 0, True),
        (0.3, 0.2, 0.1, True),
        (0.3, 0.21, 0.1, False),
        (0, 1, 0, False),
    ],
)
def test_ratings_that_differ_by_the_least_difference_make_a_pair(
    high: float, low: float, least: float, differ: bool
) -> None:
    assert Pairing(least).differ(high, low) is differ


@pytest.mark.parametrize("seed", range(5))
def test_pairs_and_their_order_do_not_depend_on_the_order_of_the_rows(seed: int) -> None:
    chance = random.Random(seed)
    answers = [
        (chance.choice((1, 2**63, 2**64 - 1, 7)), answer, float(chance.randint(0, 3)))
        for answer in chance.sample(range(2**62), 60)
    ]
    orders = []
    for _ in range(3):
        chance.shuffle(answers)
        rated = RatedAnswers(Pairing(max_pairs_per_prompt=5))
        for prompt, answer, rating in answers:
            rated.add(prompt=prompt, answer=answer, rating=rating)
        orders.append([(answers[made.chosen], answers[made.rejected]) for made in rated.pairs()])
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 20


def test_prompts_without_a_pair_are_counted() -> None:
    answers = [(1, 1, 5.0), (2, 2, 3.0), (2, 3, 3.0), (3, 4, 1.0), (3, 5, 2.0), (4, 6, 1.0), (4, 6, 1.0)]
    found, counts = pair(answers, Pairing())
    assert found == {((3, 5, 2.0), (3, 4, 1.0))}
    assert (counts.prompts, counts.one_answer, counts.tied, counts.pairs) == (4, 2, 1, 1)


def test_an_answer_that_is_rated_twice_has_its_mean_and_never_a_pair_with_itself() -> None:
    answers = [(1, 8, 0.0), (1, 8, 4.0), (1, 9, 3.0)]
    for order in (answers, answers[::-1]):
        rated = RatedAnswers(Pairing())
        for prompt, answer, rating in order:
            rated.add(prompt=prompt, answer=answer, rating=rating)
        (made,) = rated.pairs()
        assert (order[made.chosen][1], order[made.rejected][1], made.difference) == (9, 8, 1.0)
        assert rated.counts.averaged == 1


def test_a_prompt_with_thousands_of_answers_takes_no_time() -> None:
    ratings = sorted(np.random.default_rng(0).normal(size=20_000).tolist(), reverse=True)
    assert choose_pairs(ratings, Pairing())[0] == (0, 19_999)
