"""The formulas of dpo and kto on small tensors: values and gradients in closed form, and what scores say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from llm_tuning.modes.dpo import DPO, LossType
from llm_tuning.modes.kto import KtoSpec
from llm_tuning.trainers.dpo import Dpo, dpo_loss, pair_scores, wins
from llm_tuning.trainers.kto import Kto, kto_loss, label_scores
from llm_tuning.trainers.mismatched import mismatched
from llm_tuning.trainers.output_tokens import sums_of

CHANGES = torch.tensor([[1.5, -0.5], [-2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
TOKENS = torch.tensor([[3, 5], [4, 2], [1, 1]])
BETA = 0.3


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def slopes(loss_type: LossType, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the losses, and their gradients by the changes."""
    changes = CHANGES.clone().requires_grad_()
    loss = dpo_loss(changes, TOKENS, loss_type=loss_type, beta=BETA, label_smoothing=smoothing)
    loss.sum().backward()
    assert changes.grad is not None
    return loss.detach(), changes.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("normed", [False, True], ids=["sigmoid", "sigmoid_norm"])
def test_the_gradient_of_sigmoid_is_that_of_the_paper(normed: bool, smoothing: float) -> None:
    """[DPO] section 4: beta sigmoid(-beta h), away from the start policy; a flipped pair pulls the other way."""
    per_token = TOKENS if normed else torch.ones_like(TOKENS)
    h = CHANGES[:, 0] / per_token[:, 0] - CHANGES[:, 1] / per_token[:, 1]
    loss, got = slopes("sigmoid_norm" if normed else "sigmoid", smoothing)
    want = -(1 - smoothing) * sigmoid(BETA * h).log() - smoothing * sigmoid(-BETA * h).log()
    torch.testing.assert_close(loss, want)
    slope = -BETA * ((1 - smoothing) * sigmoid(-BETA * h) - smoothing * sigmoid(BETA * h))
    torch.testing.assert_close(got, torch.stack([slope / per_token[:, 0], -slope / per_token[:, 1]], 1))
    assert loss[2] == pytest.approx(math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ipo_draws_the_distance_of_means_to_one_over_two_beta(smoothing: float) -> None:
    h = CHANGES[:, 0] / TOKENS[:, 0] - CHANGES[:, 1] / TOKENS[:, 1]
    target = 1 / (2 * BETA)
    loss, got = slopes("ipo", smoothing)
    torch.testing.assert_close(loss, (1 - smoothing) * (h - target) ** 2 + smoothing * (-h - target) ** 2)
    slope = 2 * (h - (1 - 2 * smoothing) * target)
    torch.testing.assert_close(got, torch.stack([slope / TOKENS[:, 0], -slope / TOKENS[:, 1]], 1))


def test_the_gradient_of_kto_has_its_sign_weight_and_point() -> None:
    changes = torch.tensor([0.5, 3.0, 0.5, -2.0], dtype=torch.float64, requires_grad=True)
    good = torch.tensor([True, True, False, False])
    kl = 0.8
    loss = kto_loss(changes, good, kl=kl, beta=BETA, desirable_weight=1.5, undesirable_weight=0.5)
    loss.sum().backward()
    at = BETA * (changes.detach() - kl)
    want = torch.where(good, 1.5 * (1 - sigmoid(at)), 0.5 * (1 - sigmoid(-at)))
    torch.testing.assert_close(loss.detach(), want)
    slope = BETA * sigmoid(at) * sigmoid(-at)
    torch.testing.assert_close(changes.grad, torch.where(good, -1.5 * slope, 0.5 * slope))


def test_sums_are_by_sequence_and_pass_the_gradient_on() -> None:
    numbers = torch.arange(6.0, requires_grad=True)
    sums = sums_of(numbers, np.array([2, 1, 3]))
    assert sums.tolist() == [1.0, 2.0, 12.0]
    (sums * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert numbers.grad is not None
    assert numbers.grad.tolist() == [1.0, 1.0, 10.0, 100.0, 100.0, 100.0]


def test_a_pair_at_zero_is_half_won() -> None:
    assert wins(torch.tensor([0.1, 0.0, -2.0])).tolist() == [1.0, 0.5, 0.0]


def test_the_scores_of_pairs() -> None:
    scores = pair_scores(CHANGES, TOKENS.double(), beta=BETA)
    assert scores["reward_accuracy"] == pytest.approx(0.5)
    assert scores["reward_margin"] == pytest.approx(BETA * (2.0 - 3.0 + 0.0) / 3)
    assert scores["chosen_change"] == pytest.approx(-0.5 / 3)
    assert scores["rejected_change"] == pytest.approx(0.5 / 3)
    assert (scores["short_accuracy"], scores["short_pairs"]) == (1.0, 1.0)
    margins, longer = np.array([2.0, -3.0, 0.0]), np.array([-2.0, 2.0, 0.0])
    assert scores["length_correlation"] == pytest.approx(np.corrcoef(margins, longer)[0, 1])


def test_what_pairs_cannot_say_of_length_is_left_out() -> None:
    start_policy = pair_scores(torch.full((4, 2), 1e-7).double(), torch.tensor([[2.0, 1.0]] * 4), beta=BETA)
    assert not {"short_accuracy", "short_pairs", "length_correlation"} & start_policy.keys()
    assert start_policy["reward_accuracy"] == 0.5


def test_a_model_that_only_learned_to_be_longer_is_told() -> None:
    """Its margins are the differences of lengths; one that learned the answers is not suspected."""
    random = np.random.default_rng(0)
    tokens = torch.from_numpy(random.integers(5, 60, (100, 2)) + np.array([12, 0])).double()
    longer = pair_scores(torch.stack([tokens[:, 0] - tokens[:, 1], torch.zeros(100)], 1), tokens, beta=BETA)
    assert longer["reward_accuracy"] > 0.6
    assert longer["length_correlation"] == pytest.approx(1)
    counts = {"tokens": 100 * 90.0, "rows": 100.0}
    warning = Dpo.warning(object.__new__(Dpo), longer | counts)
    assert warning is not None
    assert f"{longer['reward_accuracy']:.0%}: the model has learned to be longer rather than better" in warning
    better = pair_scores(torch.stack([torch.ones(100), -tokens[:, 1]], 1).double(), tokens, beta=BETA)
    assert Dpo.warning(object.__new__(Dpo), better | counts) is None


def test_answers_that_became_far_less_likely_are_told() -> None:
    """Pairs won by making both sides unlikely; by little, or by a few tokens given up, is no fall."""

    def warning(change: float, tokens: int) -> str | None:
        scores = {"chosen_change": change, "reward_accuracy": 1.0, "tokens": 2 * 10 * tokens, "rows": 10}
        return Dpo.warning(object.__new__(Dpo), scores)

    said = warning(-60.0, 40)
    assert said is not None
    assert "the held-out chosen answers have become 60 nats less likely than at the start (1.5 a token)" in said
    assert "a higher dpo.beta" in said
    assert warning(-60.0, 400) is None, "0.15 nats a token"
    assert warning(-6.0, 4) is None
    assert warning(60.0, 40) is None


def test_good_answers_that_became_far_less_likely_are_told() -> None:
    kto = object.__new__(Kto)
    kto.settings = KtoSpec(beta=0.5)

    def warning(**scores: float) -> str | None:
        return kto.warning({"tokens": 400, "rows": 10, "reward_margin": 1.0, **scores})

    said = warning(desirable_reward=-30.0)
    assert said is not None
    assert "the held-out good answers have become 60 nats less likely than at the start (1.5 a token)" in said
    assert "a higher kto.beta" in said
    assert warning(desirable_reward=-3.0) is None
    assert warning(desirable_reward=1.0, undesirable_reward=-30.0) is None, "as it should be"


def test_every_score_has_its_title() -> None:
    scores = pair_scores(CHANGES, TOKENS.double(), beta=BETA)
    assert scores.keys() == {score.name for score in DPO.scores}


def test_the_scores_of_labels() -> None:
    changes = torch.tensor([2.0, 0.2, -1.0, 1.0], dtype=torch.float64)
    good = torch.tensor([True, True, False, False])
    scores = label_scores(changes, good, kl=0.5, beta=BETA)
    assert scores == {
        "label_accuracy": 0.5,
        "desirable_reward": pytest.approx(BETA * 1.1),
        "undesirable_reward": pytest.approx(0),
        "reward_margin": pytest.approx(BETA * 1.1),
    }
    assert label_scores(torch.zeros(2).double(), good[:2], kl=0.0, beta=BETA) == {
        "label_accuracy": 0.5,
        "desirable_reward": 0.0,
    }


def test_held_out_answers_of_one_label_are_told() -> None:
    good = torch.tensor([True, True])
    for labels, kind, other in ((good, "good", "bad"), (~good, "bad", "good")):
        warning = Kto.warning(object.__new__(Kto), label_scores(torch.ones(2).double(), labels, kl=0.0, beta=BETA))
        assert warning is not None
        assert f"are all {kind}, so nothing shows whether the model tells them from {other} ones" in warning


@pytest.fixture
def rows(tmp_path: Path) -> TokenRows:
    """Prompts 1 2 3, 11 and 21 22; answers 4 5 6 (of which 5 is not learned), 12 and 23 24 25."""
    made = [([1, 2, 3, 4, 5, 6], "...x.x"), ([11, 12], ".x"), ([21, 22, 23, 24, 25], "..xxx")]
    with TokenRowsWriter(tmp_path / "rows") as writer:
        for number, (ids, marks) in enumerate(made):
            learned = np.array([mark == "x" for mark in marks])
            writer.append(np.array(ids, dtype=np.int32), learned, row_number=number, number=1.0, text="")
    return TokenRows.open(tmp_path / "rows")


def test_mismatched_answers_are_moved_on_by_one_and_cut(rows: TokenRows) -> None:
    got = mismatched(rows, np.array([2, 0, 1]), max_length=5, spare=9)
    assert [sequence.input_ids.tolist() for sequence in got] == [[21, 22, 12], [1, 2, 3, 23, 24], [11, 4, 5, 6]]
    assert [sequence.learned.tolist() for sequence in got] == [
        [False, False, True],
        [False, False, False, True, True],
        [False, True, False, True],
    ]


def test_a_row_alone_takes_the_answer_of_another(rows: TokenRows) -> None:
    (got,) = mismatched(rows, np.array([1]), max_length=50, spare=0)
    assert got.input_ids.tolist() == [11, 4, 5, 6]
