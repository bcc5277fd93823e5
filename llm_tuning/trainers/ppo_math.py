"""The formulas of offline PPO as pure functions of tensors.

Sources: [PPO] Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv 1707.06347. [GAE] Schulman et al.
2015, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv 1506.02438. [IM] Engstrom et
al. 2020, "Implementation Matters in Deep Policy Gradients", arXiv 2005.12729. [KL] Schulman 2020, "Approximating KL
Divergence", joschu.net/blog/kl-approx.html.

Shapes: N output tokens, one after another over a micro-batch's rows; V the vocabulary; R rows. Losses come a token at
a time: the loop sums them and divides by the tokens of the whole optimizer step, whatever the micro-batches were.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_tuning.errors import InputError, Problem


def standardise_rewards(rewards_R: Tensor) -> Tensor:
    """Compute (r - mean) / std over all R training rows, std the population's; raises InputError where all are equal.

    Over the whole data set and never over a batch, whose mean would depend on which rows happen to share it. ([IM]
    section 3 counts reward scaling among what decides PPO's results.)
    """
    if rewards_R.max() == rewards_R.min():
        value = float(rewards_R[0])
        rule = f"is {value:g} in every training row, so no output is better than another"
        raise InputError(Problem("reward", rule, "give rows with different rewards"))
    scaled_R = rewards_R.double() / rewards_R.abs().max()  # so that huge rewards do not overflow when squared
    return ((scaled_R - scaled_R.mean()) / scaled_R.std(correction=0)).to(rewards_R.dtype)


def advantages(rewards_N: Tensor, values_N: Tensor) -> Tensor:
    """Compute A_t = R - V(s_t); `rewards_N` repeats each row's reward R for its tokens, s_t is what precedes token t.

    [GAE] eq. 16, the sum over l of (gamma lambda)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l})), at gamma = lambda = 1
    and a reward at the last token only: the values in between cancel out.
    """
    return rewards_N - values_N


def probability_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    """Compute pi(a_t | s_t) / pi_old(a_t | s_t), [PPO] section 3; pi_old is the policy at the start of the epoch."""
    return (logprobs_N - old_logprobs_N).exp()


def policy_loss(ratio_N: Tensor, advantages_N: Tensor, *, clip_range: float) -> Tensor:
    """Compute -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A), the negative of [PPO] eq. 7, a token.

    No gradient once the ratio has left the range in the direction that the advantage points to; it stays when the ratio
    has gone the wrong way.
    """
    clipped_N = ratio_N.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)


def is_clipped(ratio_N: Tensor, advantages_N: Tensor, *, clip_range: float) -> Tensor:
    """Return which tokens give no policy gradient, because `policy_loss` took the clipped side."""
    return ((advantages_N > 0) & (ratio_N > 1 + clip_range)) | ((advantages_N < 0) & (ratio_N < 1 - clip_range))


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip_range: float) -> Tensor:
    """Compute max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2) / 2, [IM] sec. 3 ("value function clipping").

    V_old is the value at the start of the epoch; the half makes the unclipped gradient V - R.
    """
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values_N - returns_N).square(), (clipped_N - returns_N).square())


def k3_penalty(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Compute k3 = (r - 1) - log r, r = pi_ref / pi on the recorded token, [KL]: zero at pi = pi_ref, else positive.

    A penalty, not an estimate of the KL: [KL] takes its mean over tokens drawn from pi, and these were recorded.
    """
    log_r_N = reference_logprobs_N - logprobs_N
    return torch.expm1(log_r_N) - log_r_N


def exact_kl(logits_NV: Tensor, reference_logits_NV: Tensor) -> Tensor:
    """Compute KL(pi || pi_ref) = sum over the vocabulary of pi (log pi - log pi_ref), (N,) in nats, by position."""
    logprobs_NV = logits_NV.log_softmax(-1)
    difference_NV = reference_logits_NV.log_softmax(-1).sub_(logprobs_NV)  # in place: each is the vocabulary wide
    return -logprobs_NV.exp_().mul_(difference_NV).sum(-1)
