"""Held-out scores and parity probes against values computed another way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from llm_tuning.trainers.evaluate import Measured, evaluate_policy
from llm_tuning.trainers.micro_batches import MicroBatches, pad
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.ppo import reward_weighted
from llm_tuning.trainers.probe_choice import (
    MAX_PROBE_TOKENS,
    MAX_PROBES,
    MAX_TOKENS_OF_A_KIND,
    Chosen,
    choose_probes,
)


@pytest.fixture
def rows(tmp_path: Path) -> TokenRows:
    random = np.random.default_rng(0)
    with TokenRowsWriter(tmp_path / "rows") as writer:
        for number, length in enumerate((5, 17, 9, 30)):
            ids = random.integers(4, 500, length).astype(np.int32)
            learned = np.arange(length) >= length // 2
            writer.append(ids, learned, row_number=number, number=float(number), text="")
    return TokenRows.open(tmp_path / "rows")


def row_scores(model: torch.nn.Module, rows: TokenRows, i: int) -> tuple[float, int, int]:
    """Log-likelihood, tokens and right tokens of one row, one position at a time."""
    row = rows[i]
    logits = model(input_ids=torch.tensor(row.input_ids[None].astype(np.int64))).logits[0]
    loglik, right, count = 0.0, 0, 0
    for t in range(1, len(row.input_ids)):
        if row.learned[t]:
            target = int(row.input_ids[t])
            loglik += float(torch.distributions.Categorical(logits=logits[t - 1]).log_prob(torch.tensor(target)))
            right += int(logits[t - 1].argmax()) == target
            count += 1
    return loglik, count, right


@pytest.mark.parametrize("max_tokens", [8, 64, 4096])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
@torch.no_grad()
def test_scores_are_those_of_the_rows_one_by_one(tiny_base: Path, rows: TokenRows, max_tokens: int, flat: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base).requires_grad_(False)
    at = np.array([1, 3, 0])
    policy = Policy(model, device="cpu", dtype=torch.float32)
    measured: list[Measured] = []
    scores = evaluate_policy(
        policy, MicroBatches(rows, max_tokens, flat, "cpu"), at, lambda found: measured.append(found) or {"seen": 1.0}
    )
    assert scores.as_dict()["seen"] == 1.0
    each = [row_scores(model, rows, int(i)) for i in at]
    tokens = sum(count for _, count, _ in each)
    loss = -sum(loglik for loglik, _, _ in each) / tokens
    assert (scores.tokens, scores.rows) == (tokens, 3)
    assert scores.loss == pytest.approx(loss, abs=1e-5)
    assert scores.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert scores.token_accuracy == pytest.approx(sum(right for _, _, right in each) / tokens)
    rewards = np.array([1.0, 3.0, 0.0])
    z = (rewards - rewards.mean()) / rewards.std()
    means = np.array([loglik / count for loglik, count, _ in each])
    mean_loglik_R = measured[0].loglik / measured[0].tokens
    assert reward_weighted(mean_loglik_R, torch.from_numpy(rewards)) == pytest.approx(
        float((z * means).mean()), abs=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
def test_each_sequence_of_a_row_is_measured_by_itself(tiny_base: Path, tmp_path: Path, flat: bool) -> None:
    random, learned = np.random.default_rng(1), np.arange(8) >= 3
    ids = random.integers(4, 500, (5, 8)).astype(np.int32)
    with TokenRowsWriter(tmp_path / "pairs") as writer, TokenRowsWriter(tmp_path / "alone") as alone:
        for number, (one, other) in enumerate(((0, 1), (2, 3))):
            writer.append(ids[one], learned, row_number=number, text="")
            writer.append_sequence(ids[other], learned, text="")
        for number in range(4):
            alone.append(ids[number], learned, row_number=number, text="")
    pairs, rows = TokenRows.open(tmp_path / "pairs"), TokenRows.open(tmp_path / "alone")
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_base), device="cpu", dtype=torch.float32)
    measured: list[Measured] = []
    for of, at in ((pairs, np.array([1, 0])), (rows, np.array([2, 3, 0, 1]))):
        evaluate_policy(policy, MicroBatches(of, 64, flat, "cpu"), at, lambda found: measured.append(found) or {})
    assert measured[0].tokens.tolist() == measured[1].tokens.tolist() == [5.0] * 4
    assert measured[0].loglik.tolist() == pytest.approx(measured[1].loglik.tolist(), abs=1e-4)


@torch.no_grad()
def test_no_evaluation_makes_logits_of_every_position(tiny_base: Path, rows: TokenRows) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base).requires_grad_(False)
    policy = Policy(model, device="cpu", dtype=torch.float32)
    model.forward = None  # what makes them
    learned = int(rows.learned_counts.sum())
    assert evaluate_policy(policy, MicroBatches(rows, 4096, True, "cpu"), np.arange(4)).tokens == learned


def test_whole_rows_are_probed_before_cut_ones_and_at_most_32(tmp_path: Path) -> None:
    rows = write_sequences(tmp_path / "rows", [[MAX_PROBE_TOKENS + 1], [10], [MAX_PROBE_TOKENS], [400], [5]])
    cut = [Chosen(0, MAX_PROBE_TOKENS), Chosen(3, MAX_PROBE_TOKENS)]
    assert choose_probes(rows, np.array([0, 3, 1, 2])) == [Chosen(1, 10), Chosen(2, MAX_PROBE_TOKENS), *cut]
    many = write_sequences(tmp_path / "many", [[9]] * 100)
    assert len(choose_probes(many, np.arange(100))) == MAX_PROBES


def test_of_a_row_of_several_sequences_one_that_fits_is_probed(tmp_path: Path) -> None:
    rows = write_sequences(tmp_path / "rows", [[9, 40, 300], [7], [300, 400]])
    assert [probe.number for probe in choose_probes(rows, np.arange(3))] == [1, 3, 5]
    assert rows.place_of(1) == (0, 1)


def test_rows_with_tools_calls_and_reasoning_are_probed_whole_though_they_are_long(tmp_path: Path) -> None:
    """Their prompts are what a server may render otherwise; two of each kind are enough."""
    asked, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {}, "name": "f"}}]}
    tools = [{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}]
    kinds = {
        "plain": ([asked, said], None),
        "tools": ([asked, call], tools),
        "calls": ([asked, call, asked, said], tools),
        "reasoning": ([asked, said | {"reasoning_content": "."}], None),
    }
    order = [*["plain"] * 40, *["tools"] * 3, "calls", "reasoning", "calls", *["reasoning"] * 2]
    lengths = {"plain": 9, "tools": MAX_PROBE_TOKENS + 9, "calls": MAX_TOKENS_OF_A_KIND, "reasoning": 700}
    with TokenRowsWriter(tmp_path / "rows") as writer:
        for kind in order:
            ids, (messages, given) = np.ones(lengths[kind], np.int32), kinds[kind]
            writer.append(ids, np.arange(len(ids)) > 3, row_number=0, messages=messages, tools=given)
    rows = TokenRows.open(tmp_path / "rows")
    chosen = choose_probes(rows, np.arange(len(rows)))
    assert len(chosen) == MAX_PROBES
    first = [(order[probe.number], probe.tokens) for probe in chosen[:6]]
    assert first == [(kind, lengths[kind]) for kind in ("tools", "tools", "calls", "reasoning", "calls", "reasoning")]
    assert all(probe.tokens == 9 for probe in chosen[6:])


def test_sequences_of_a_row_are_scored_apart_and_count_once(tiny_base: Path, tmp_path: Path) -> None:
    """However they are cut into passes: a row of many sequences may be longer than a pass takes."""
    rows = write_sequences(tmp_path / "rows", [[9, 40, 17], [30], [12, 21]])
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_base), device="cpu", dtype=torch.float32)
    alone = [policy.score(pad([rows.sequence(number)]))[0].double().sum() for number in range(6)]
    for flat in (True, False):
        for tokens in (16, 64, 4096):
            batches = MicroBatches(rows, tokens, flat, "cpu")
            cut = batches.cut(np.arange(3))
            assert sorted(np.concatenate(cut).tolist()) == list(range(6))
            assert max(len(batches.lay(at).input_ids.flatten()) for at in cut) <= max(tokens, 40)
            scores = evaluate_policy(policy, batches, np.arange(3))
            assert scores.loss == pytest.approx(-float(sum(alone)) / scores.tokens, abs=1e-6)
            whole = batches.cut(np.arange(3), whole_rows=True)
            assert [sorted(batches.lay(at).rows.tolist()) for at in whole] == [
                sorted(set(rows.rows_of(at).tolist())) for at in whole
            ]
            assert sum(len(set(rows.rows_of(at).tolist())) for at in whole) == 3, "no row is in two of them"


def write_sequences(path: Path, lengths: list[list[int]]) -> TokenRows:
    """Rows of sequences of these lengths; the second half of each is learned."""
    random = np.random.default_rng(0)
    with TokenRowsWriter(path) as writer:
        for number, row in enumerate(lengths, start=1):
            for part, length in enumerate(row):
                ids = random.integers(4, 200, length).astype(np.int32)
                learned = np.arange(length) >= max(1, length // 2)
                if part == 0:
                    writer.append(ids, learned, row_number=number, text="")
                else:
                    writer.append_sequence(ids, learned, text="")
    return TokenRows.open(path)
