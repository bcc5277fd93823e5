"""The way from the decoder's last hidden states to log-probabilities, for a loss, a score or a probe.

A model's own forward makes logits for every position, (tokens, vocabulary) in fp32: most of the memory and, in small
models, much of the time. Here only the states that predict a token in the loss go through the output layer, a chunk at
a time. The layer is frozen, as a LoRA leaves it, so the derivative of a log-probability by its state does not depend on
the loss: it is taken while the chunk's logits are there, and the backward pass only scales it.

Shapes: N positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_tuning.run.devices import positions_at_a_time
from llm_tuning.trainers.model import decoder_of
from llm_tuning.trainers.parallel import gathered, is_sharded
from llm_tuning.trainers.ppo_math import exact_kl


@dataclass(frozen=True)
class Head:
    """A frozen output layer with what some families do to its outputs: logits = cap tanh(scale (W h + b) / cap)."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None = None
    scale: float = 1.0
    """Cohere's `logit_scale`, or one over Granite's `logits_scaling`."""
    cap: float | None = None
    """Gemma's `final_logit_softcapping`."""
    sharded: nn.Linear | None = None
    """The layer whose weight and bias these are, where each rank has a part of them only."""

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Compute logits_NV in fp32, without gradients; products are of numbers in the layer's own precision."""
        logits_NV = self._products(hidden_NH)
        if self.scale != 1.0:
            logits_NV.mul_(self.scale)
        if self.cap is not None:
            logits_NV.div_(self.cap).tanh_().mul_(self.cap)
        return logits_NV

    def _products(self, hidden_NH: Tensor) -> Tensor:
        if not self.weight.is_cuda:
            return functional.linear(hidden_NH, self.weight, self.bias).float()
        # The sums are fp32 there, and stay so: rounded to bf16, a logit of 20 is off by up to 0.06, and a ratio of
        # probabilities between passes that sum in another order by as many percent. (This product is not autocast.)
        logits_NV = torch.mm(hidden_NH.to(self.weight.dtype), self.weight.T, out_dtype=torch.float32)
        return logits_NV if self.bias is None else logits_NV.add_(self.bias)

    def chunks(self, *tensors: Tensor, logits: int = 1) -> Iterator[tuple[Tensor, ...]]:
        """Cut the tensors along their first dimension, so that the `logits` of a chunk, so many sets, are bounded."""
        at_a_time = max(1, positions_at_a_time(self.weight.shape[0], self.weight.device.type) // logits)
        return zip(*(tensor.split(at_a_time) for tensor in tensors), strict=True)

    @contextmanager
    def whole(self) -> Iterator[Head]:
        """Yield this head with all of its weight, which is gathered from the ranks where it is sharded."""
        layer = self.sharded
        if layer is None:
            yield self
            return
        with gathered(layer):
            yield replace(self, weight=layer.weight, bias=layer.bias, sharded=None)

    def logprobs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Compute log p(target) at each position, (N,) in fp32, differentiable by `hidden_NH`."""
        if torch.is_grad_enabled():
            with self.whole() as head:
                logprobs_N: Tensor = _FrozenHeadLogprobs.apply(hidden_NH, head, targets_N)
            return logprobs_N
        return self.score(hidden_NH, targets_N)[0]

    @torch.no_grad()
    def score(self, hidden_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (log p(target) in fp32, whether the target is the likeliest token), each (N,)."""
        logprobs_N = hidden_NH.new_empty(len(targets_N), dtype=torch.float32)
        right_N = torch.empty_like(targets_N, dtype=torch.bool)
        parts = (logprobs_N, right_N)
        with self.whole() as head:
            for states, targets, logprobs, right in self.chunks(hidden_NH, targets_N, *parts):
                logits = head(states)
                right.copy_(logits.argmax(-1) == targets)
                logprobs.copy_(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
                del logits  # before the next chunk's are made
        return parts

    @torch.no_grad()
    def kl(self, hidden_NH: Tensor, start_hidden_NH: Tensor) -> Tensor:
        """Compute the exact KL(pi || pi_start) over the vocabulary at each position, (N,) in fp32, by this one head."""
        chunks = self.chunks(hidden_NH, start_hidden_NH, logits=2)
        with self.whole() as head:
            return torch.cat([exact_kl(head(states), head(start)) for states, start in chunks])


class _FrozenHeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head: Head, targets_N: Tensor) -> Tensor:
        logprobs_N = hidden_NH.new_empty(len(targets_N), dtype=torch.float32)
        slope_NH = torch.empty_like(hidden_NH)  # of -log p
        for states, targets, logprobs, slope in head.chunks(hidden_NH, targets_N, logprobs_N, slope_NH):
            of_targets, of_states = _logprobs_and_slope(head, states, targets)
            logprobs.copy_(of_targets)
            slope.copy_(of_states)
        ctx.save_for_backward(slope_NH)
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (slope_NH,) = ctx.saved_tensors
        return (slope_NH * -grad_outputs[0][:, None]).to(slope_NH.dtype), None, None


def _logprobs_and_slope(head: Head, states_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log p(target), (N,), and the derivative of -log p(target) by the states, (N, H).

    A function of its own, so that what is as wide as the vocabulary is gone before the next chunk's is made.
    """
    logits_NV = head(states_NH)
    bent_NV = None if head.cap is None else logits_NV.div(head.cap).square_().neg_().add_(1)
    logprobs_NV = logits_NV.log_softmax(-1)
    del logits_NV
    logprobs_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
    # d (-log p) / d logits = softmax - one-hot of the target
    slope_NV = logprobs_NV.exp_()
    slope_NV.scatter_add_(1, targets_N[:, None], slope_NV.new_full((len(targets_N), 1), -1.0))
    if bent_NV is not None:
        slope_NV.mul_(bent_NV)
    if head.scale != 1.0:
        slope_NV.mul_(head.scale)
    return logprobs_N, torch.mm(slope_NV.to(head.weight.dtype), head.weight)


@torch.no_grad()
def find_head(causal_lm: Any) -> Head | None:
    """Return a transformers model's head, or None where a trial on a few tokens shows that its logits come otherwise.

    None too where the output layer trains or is not an ordinary linear one. Call it under the autocast of training.
    """
    layer = causal_lm.get_output_embeddings()
    sharded = is_sharded(layer)  # which has made a class of its own of it
    if (type(layer).__bases__[-1] if sharded else type(layer)) is not nn.Linear:
        return None
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return None
    config = causal_lm.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    head = Head(layer.weight, layer.bias, scale, cap, layer if sharded else None)
    ids_BT = torch.arange(1, 9, device=layer.weight.device)[None]
    was_training = causal_lm.training
    causal_lm.eval()
    want = causal_lm(input_ids=ids_BT, use_cache=False).logits[0].float()
    states = decoder_of(causal_lm)(input_ids=ids_BT, use_cache=False).last_hidden_state[0]
    with head.whole() as whole:
        got = whole(states)
    causal_lm.train(was_training)
    # Weights that give no numbers are found when rows are scored or trained on, and named as what they are.
    tolerance = 1e-2 * float(want.nan_to_num().abs().max())
    same = got.shape == want.shape and torch.allclose(got, want, rtol=1e-2, atol=tolerance, equal_nan=True)
    return head if same else None
