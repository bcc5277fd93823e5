"""Each formula against a value worked out by hand or by other means."""

from __future__ import annotations

import math

import pytest
import torch

from llm_tuning.errors import InputError
from llm_tuning.trainers import ppo_math

A, B = 0.2, -0.3


def test_standardised_rewards_have_mean_zero_and_population_variance_one():
    got = ppo_math.standardise_rewards(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64))
    # mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5
    want = [-2 / math.sqrt(3.5), -1 / math.sqrt(3.5), 0.0, 3 / math.sqrt(3.5)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e300, 0.0), (-3.0, 1000.0)])
def test_standardised_rewards_ignore_scale_and_shift_but_not_the_sign(scale: float, shift: float):
    rewards = torch.tensor([0.1, 0.5, -0.7, 0.9], dtype=torch.float64)
    got = ppo_math.standardise_rewards(rewards * scale + shift)
    torch.testing.assert_close(got, math.copysign(1, scale) * ppo_math.standardise_rewards(rewards))


def test_a_constant_reward_is_refused_although_rounding_gives_it_a_spread():
    rewards = torch.full((7,), 0.1, dtype=torch.float64)
    with pytest.raises(InputError, match=r"reward: is 0\.1 in every training row"):
        ppo_math.standardise_rewards(rewards)


def test_advantage_is_generalised_advantage_estimation_at_gamma_and_lambda_one():
    reward, values = 1.7, [0.3, -0.2, 0.9, 0.4]
    gae, want = 0.0, []
    for t in reversed(range(4)):  # the recursion of arXiv 1506.02438, gamma = lambda = 1, V after the end is 0
        last = t == 3
        delta = (reward if last else 0.0) + (0.0 if last else values[t + 1]) - values[t]
        gae = delta + gae
        want.insert(0, gae)
    got = ppo_math.advantages(torch.full((4,), reward), torch.tensor(values))
    torch.testing.assert_close(got, torch.tensor(want))


def test_ratio_is_the_quotient_of_the_probabilities():
    got = ppo_math.probability_ratio(torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.4]).log())
    torch.testing.assert_close(got, torch.tensor([2.0, 0.25]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "want_loss", "want_gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # good token, already 1 + eps more likely: no more
        (0.5, 2.0, -1.0, -2.0),  # good token that became less likely: pulled back in full
        (1.5, -2.0, 3.0, 2.0),  # bad token that became more likely: pushed down in full
        (0.5, -2.0, 1.6, 0.0),  # bad token, already 1 - eps less likely: no more
        (0.9, -2.0, 1.8, 2.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_and_its_gradient_for_both_signs(
    ratio: float, advantage: float, want_loss: float, want_gradient: float
):
    ratio_N = torch.tensor([ratio], requires_grad=True)
    advantage_N = torch.tensor([advantage])
    loss = ppo_math.policy_loss(ratio_N, advantage_N, clip_range=0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(want_loss)
    assert ratio_N.grad is not None
    assert ratio_N.grad.item() == pytest.approx(want_gradient)
    clipped = ppo_math.is_clipped(ratio_N, advantage_N, clip_range=0.2).item()
    assert clipped == (advantage != 0 and want_gradient == 0)


@pytest.mark.parametrize(
    ("value", "old", "target", "want_loss", "want_gradient"),
    [
        (0.5, 0.4, 1.0, 0.125, -0.5),  # inside the range: (0.5 - 1)^2 / 2
        (0.9, 0.4, 1.0, 0.08, 0.0),  # moved 0.5 towards the target, counted as 0.2: (0.6 - 1)^2 / 2, no gradient
        (-0.1, 0.4, 1.0, 0.605, -1.1),  # moved away: the larger, unclipped error
        (1.4, 1.0, 0.0, 0.98, 1.4),
        (0.5, 1.0, 0.0, 0.32, 0.0),
    ],
)
def test_value_loss_and_its_clip(value: float, old: float, target: float, want_loss: float, want_gradient: float):
    value_N = torch.tensor([value], requires_grad=True)
    loss = ppo_math.value_loss(value_N, torch.tensor([old]), torch.tensor([target]), clip_range=0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(want_loss)
    assert value_N.grad is not None
    assert value_N.grad.item() == pytest.approx(want_gradient, abs=1e-7)


def test_k3_by_hand_and_its_gradient():
    logprobs = torch.tensor([math.log(0.5), math.log(0.2), math.log(0.25)], requires_grad=True)
    reference = torch.tensor([math.log(0.25), math.log(0.4), math.log(0.25)])
    got = ppo_math.k3_penalty(logprobs, reference)
    # r = 1/2, 2, 1: r - 1 - log r
    torch.testing.assert_close(got, torch.tensor([-0.5 + math.log(2), 1 - math.log(2), 0.0]))
    got.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.5, -1.0, 0.0]))  # 1 - r


def test_k3_is_an_unbiased_estimate_of_the_kl_where_tokens_come_from_the_policy():
    generator = torch.Generator().manual_seed(0)
    pi, ref = torch.randn(2, 7, generator=generator, dtype=torch.float64).softmax(-1)
    expectation = (pi * ppo_math.k3_penalty(pi.log(), ref.log())).sum()
    torch.testing.assert_close(expectation, (pi * (pi / ref).log()).sum())


def test_exact_kl_equals_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    p, q = 3 * torch.randn(2, 11, 50, generator=generator)
    want = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(ppo_math.exact_kl(p, q), want)
    assert ppo_math.exact_kl(p, p).abs().max() == 0
    assert (ppo_math.exact_kl(q, p) - want).abs().max() > 0.1, "the direction matters"
