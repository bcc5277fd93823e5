"""Percentiles, reward spread and duplicates against plain computations over all values."""

from __future__ import annotations

import random
import statistics
from collections import Counter

import numpy as np
import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.report import Report
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.splitting import PromptGroups
from llm_tuning.data.tally import MAX_DISTINCT_FAULTS, DuplicateCounter, Tally, lengths_of
from llm_tuning.modes import MODES


@pytest.mark.parametrize("seed", range(10))
def test_percentiles_are_exact_nearest_ranks(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [int(chance.lognormvariate(4, 1)) + 1 for _ in range(chance.randint(1, 500))]
    found = lengths_of(Counter(lengths))
    assert found is not None
    for percent, value in ((50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99)):
        assert value == np.percentile(lengths, percent, method="inverted_cdf")
    assert (found.max, found.total) == (max(lengths), sum(lengths))


def test_no_lengths_have_no_percentiles() -> None:
    assert lengths_of(Counter()) is None


def example(number: int, text: str, reward: float = 0.0) -> Example:
    return Example(number, (Conversation([{"role": "user", "content": text}]),), reward)


def test_duplicates_are_counted_exactly_and_listed() -> None:
    counter = DuplicateCounter()
    for number, text in enumerate(["a", "b", "a", "a", "c", "b"], 1):
        counter.add(example(number, text))
    counter.add(example(7, "a", reward=1.0))  # another reward: not the same row
    counter.add(Example(8, (Conversation(text="a"),)))
    found = counter.result()
    assert (found.count, found.rows, found.exact) == (3, [3, 4, 6], True)


def test_a_text_split_otherwise_over_messages_is_no_duplicate() -> None:
    counter = DuplicateCounter()
    for number, (prompt, answer) in enumerate((("ab", "c"), ("a", "bc")), 1):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        counter.add(Example(number, (Conversation(messages),)))
    assert counter.result().count == 0


@pytest.mark.parametrize("order", ["together", "apart"])
def test_beyond_the_limit_duplicates_are_estimated_from_a_fair_sample(order: str) -> None:
    counter = DuplicateCounter(max_digests=500)
    texts = [str(i // 2 if order == "together" else i % 5000) for i in range(10_000)]
    for number, text in enumerate(texts):
        counter.add(example(number, text))
        assert len(counter._digests) <= 500
    found = counter.result()
    assert not found.exact
    assert found.count == pytest.approx(5000, rel=0.2)


def test_the_reward_spread_matches_two_passes() -> None:
    chance = random.Random(0)
    rewards = [1e6 + chance.gauss(0, 1) for _ in range(1000)]
    tally = Tally(MODES["ppo"].rows, 100, with_tokens=False, prompts=PromptGroups())
    for number, reward in enumerate(rewards):
        tally.keep(example(number, str(number), reward), None)
    report = Report(path="x", mode="ppo")
    tally.write(report)
    assert report.rewards is not None
    assert report.rewards.mean == pytest.approx(statistics.fmean(rewards), rel=1e-12)
    assert report.rewards.std == pytest.approx(statistics.pstdev(rewards), rel=1e-6)
    assert (report.rewards.min, report.rewards.max) == (min(rewards), max(rewards))


def test_refused_rows_are_counted_in_full_and_listed_in_part() -> None:
    tally = Tally(MODES["ppo"].rows, 100, with_tokens=False, prompts=PromptGroups())
    for number in range(1000):
        tally.refuse(number, RowFault(Reason.EMPTY_FIELD, "`output` is empty", "fill it"))
    for number in range(3 * MAX_DISTINCT_FAULTS):
        tally.refuse(number, RowFault(Reason.NOT_TEXT, f"rule {number}", "fix"))
    report = Report(path="x", mode="sft")
    tally.write(report)
    assert report.refused == 1000 + 3 * MAX_DISTINCT_FAULTS
    assert len(report.refusals) == MAX_DISTINCT_FAULTS
    assert report.refusals[0].count == 1000
    assert report.refusals[0].rows == list(range(20))
