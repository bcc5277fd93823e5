"""The held-out split is seeded, disjoint and complete, and no prompt is on both sides."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llm_tuning.data.splitting import PromptGroups, prompt_key, split, split_rows
from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from tests.support.rows import as_version_1


def prompts(*numbers: int) -> NDArray[np.uint64]:
    return np.array([prompt_key(None, str(number)) for number in numbers], dtype=np.uint64)


def messages(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


@pytest.mark.parametrize("n_rows", [20, 21, 99, 1000])
@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
def test_rows_of_different_prompts_are_held_out_to_the_row(n_rows: int, fraction: float) -> None:
    training, held_out = split(prompts(*range(n_rows)), fraction, 42)
    assert sorted([*training, *held_out]) == list(range(n_rows))
    assert len(held_out) == max(1, round(n_rows * fraction))
    assert training.dtype == held_out.dtype == np.int64
    assert all(np.diff(part).min(initial=1) > 0 for part in (training, held_out))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("repeats", [[6] * 40, [1] * 30 + [50], [2] * 10, [10, 10], [19, 1], list(range(1, 30))])
def test_no_prompt_is_on_both_sides(repeats: list[int], seed: int) -> None:
    keys = prompts(*(number for number, count in enumerate(repeats) for _ in range(count)))
    np.random.default_rng(seed).shuffle(keys)
    training, held_out = split(keys, 0.05, seed)
    assert len(training) + len(held_out) == len(keys)
    assert len(held_out) >= 1
    assert len(held_out) <= max(round(len(keys) * 0.05), min(repeats))
    assert not set(keys[training]) & set(keys[held_out])


def test_the_order_of_the_rows_does_not_matter() -> None:
    keys = prompts(*(number // 3 for number in range(90)))
    _, held_out = split(keys, 0.2, 7)
    order = np.random.default_rng(1).permutation(90)
    _, again = split(keys[order], 0.2, 7)
    assert sorted(keys[held_out]) == sorted(keys[order][again])


@pytest.mark.parametrize(("n_rows", "fraction"), [(0, 0.5), (2, 0.5), (19, 0.5), (1000, 0.0)])
def test_few_rows_or_no_fraction_hold_nothing_out(n_rows: int, fraction: float) -> None:
    for training, held_out in (split(prompts(*range(n_rows)), fraction, 1), split_rows(n_rows, fraction, 1)):
        assert training.tolist() == list(range(n_rows))
        assert held_out.tolist() == []


@pytest.mark.parametrize("few", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("seed", range(8))
def test_rows_of_both_kinds_are_on_both_sides(few: int, seed: int) -> None:
    keys = prompts(*range(100))
    good = np.arange(100) >= few
    training, held_out = split(keys, 0.05, seed, good=good)
    assert sorted([*training, *held_out]) == list(range(100))
    assert len(held_out) == 5
    assert len(set(good[training])) == 2 or few == 1
    assert len(set(good[held_out])) == 2 or few == 1
    plain = split(keys, 0.05, seed)[1]
    assert len(set(held_out) ^ set(plain)) <= 2, "one prompt is exchanged for another at most"
    if len(set(good[plain])) == 2 and few > 5:
        assert held_out.tolist() == plain.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_prompts_stay_whole_where_kinds_are_spread(seed: int) -> None:
    keys = prompts(*(number // 3 for number in range(120)))
    good = np.arange(120) // 3 % 8 != 0
    training, held_out = split(keys, 0.06, seed, good=good)
    assert not set(keys[training]) & set(keys[held_out])
    assert len(set(good[training])) == len(set(good[held_out])) == 2
    assert len(held_out) == 6


def test_one_prompt_holds_nothing_out() -> None:
    training, held_out = split(prompts(*[1] * 100), 0.05, 1)
    assert (len(training), len(held_out)) == (100, 0)


def test_the_seed_decides() -> None:
    keys = prompts(*range(40))
    assert split(keys, 0.1, 42)[1].tolist() == split(keys, 0.1, 42)[1].tolist()
    assert len({tuple(split(keys, 0.1, seed)[1].tolist()) for seed in range(20)}) > 15
    held = np.zeros(40)
    for seed in range(400):
        held[split(keys, 0.1, seed)[1]] += 1
    assert held.min() > 15, "some prompts are never held out"
    assert held.max() < 75


SAME = [
    (messages("Hi", "one"), messages("Hi", "two"), 0),
    (messages("Hi", "one"), messages(" Hi\n", "one"), 0),
    (messages("Hi  there", "one"), messages("Hi there", "one"), 0),
    (messages("Hi", "one", system=""), messages("Hi", "two"), 0),
    (messages("Hi", "one", "More", "two"), messages("Hi", "one", "More", "three"), 0),
    (messages("Hi", "one", "More", "two"), messages("Hi", "other", "Less", "three"), 1),
]
OTHER = [
    (messages("Hi", "one"), messages("Ho", "one"), 0),
    (messages("Hi", "one", system="Be kind."), messages("Hi", "one"), 0),
    (messages("Hi", "one", "More", "two"), messages("Hi", "other", "More", "two"), 0),
    ([{"role": "user", "content": "a"}] * 2, [{"role": "tool", "content": "a"}] * 2, 0),
]


@pytest.mark.parametrize(("one", "other", "learn_from"), SAME)
def test_the_prompt_is_what_is_asked(one: list[dict[str, str]], other: list[dict[str, str]], learn_from: int) -> None:
    assert prompt_key(one, learn_from=learn_from) == prompt_key(other, learn_from=learn_from)


@pytest.mark.parametrize(("one", "other", "learn_from"), OTHER)
def test_another_prompt(one: list[dict[str, str]], other: list[dict[str, str]], learn_from: int) -> None:
    assert prompt_key(one, learn_from=learn_from) != prompt_key(other, learn_from=learn_from)


def test_texts_are_their_own_prompts() -> None:
    assert prompt_key(None, "a b") == prompt_key(None, " a  b") != prompt_key(None, "a c")


def grouped(*rows: list[dict[str, str]], learn_from: int = 0) -> list[int]:
    """Numbers of the groups that these rows fall into, in order of first appearance."""
    groups = PromptGroups()
    for row in rows:
        groups.add(row, learn_from=learn_from)
    seen: dict[int, int] = {}
    return [seen.setdefault(key, len(seen)) for key in groups.keys().tolist()]


EXPORTED_AFTER_EVERY_TURN = [
    messages("Hi", "one"),
    messages("Hi", "one", "More", "two"),
    messages("Hi", "one", "More", "two", "And", "three"),
]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_beginning_of_a_conversation_stays_with_the_whole(order: tuple[int, ...]) -> None:
    rows = [EXPORTED_AFTER_EVERY_TURN[at] for at in order]
    assert grouped(*rows, messages("Ho", "one")) == [0, 0, 0, 1]


def test_two_ends_of_one_beginning_stay_together_only_where_the_beginning_is_a_row() -> None:
    ends = [messages("Hi", "one", "More", "two"), messages("Hi", "one", "Less", "three")]
    assert grouped(*ends) == [0, 1]
    assert grouped(*ends, messages("Hi", "another answer")) == [0, 0, 0]


def test_an_answer_that_is_not_learned_ties_nothing() -> None:
    assert grouped(messages("Hi", "one", "More", "two"), learn_from=3) == [0]
    groups = PromptGroups()
    groups.add(messages("Hi", "one"))
    groups.add(messages("Hi", "one", "More", "two"), learn_from=3)
    assert len(set(groups.keys().tolist())) == 2


def test_the_key_is_the_same_on_every_machine() -> None:
    assert prompt_key(messages("Hi", "one")) == 0xAA2F34FDE86D0972


def write(path: Path, count: int) -> None:
    ids, learned = np.arange(3, dtype=np.int32), np.array([False, True, True])
    with TokenRowsWriter(path) as writer:
        for number in range(count):
            writer.append(ids, learned, row_number=number, messages=messages(f"question {number % 7}", f"a {number}"))


def test_rows_on_disk_keep_their_prompts(tmp_path: Path) -> None:
    write(tmp_path / "rows", 70)
    rows = TokenRows.open(tmp_path / "rows")
    training, held_out = rows.hold_out(0.05, 3)
    assert (rows.count_prompts(), rows.count_prompts(held_out), rows.count_prompts(training)) == (7, 1, 6)


def test_a_run_that_the_version_before_began_keeps_its_split(tmp_path: Path) -> None:
    """Its rows have no prompts. Its checkpoints have seen its training rows: another split would hold those out."""
    write(tmp_path / "rows", 40)
    marker = as_version_1(tmp_path / "rows")
    rows = TokenRows.open(tmp_path / "rows")
    assert rows.prompts is None
    assert rows.count_prompts() is None
    assert rows.hold_out(0.1, 42)[1].tolist() == [7, 18, 32, 39], "as the version before held out"
    (tmp_path / "rows/rows.json").write_text(json.dumps(marker | {"version": 3}))
    assert not TokenRows.is_whole(tmp_path / "rows")


def test_a_million_rows_take_seconds() -> None:
    keys = np.random.default_rng(0).integers(0, 1 << 63, 1_000_000, dtype=np.uint64)
    assert len(split(keys, 0.05, 1)[1]) == 50_000
