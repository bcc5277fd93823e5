"""Log-probabilities of output tokens without ever holding logits of more than 256 positions.

The logits of a whole pass, (tokens, vocabulary), are what fills memory in the plain form. Only positions that predict
an output token go through the head, 256 at a time. With the head frozen, as a LoRA leaves it, the derivative of a
log-probability by its hidden state does not depend on the loss, so it is taken at once, while the chunk's logits are
there: one vector a token is kept, and the backward pass needs no second look at the vocabulary.

Shapes: B rows, T tokens, N output tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_tuning.errors import InputError, Problem
from llm_tuning.trainers.batching import IGNORED
from llm_tuning.trainers.ppo_math import exact_kl

CHUNK_TOKENS = 256
"""Positions through the head at a time: enough for a full-speed matrix product, 131 MB of fp32 logits at V = 128k."""

Head = Callable[[Tensor], Tensor]
"""Hidden states (N, H) to logits (N, V) in fp32."""


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PEFT model; LoRA layers sit in it and keep working."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_states(model: nn.Module, input_ids_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden_NH, targets_N): for each learned token, row by row, the state that predicts it, and the token.

    Token t is predicted from the state at t - 1, which has seen the tokens before t only.
    """
    decoder = causal_lm(model).base_model
    hidden_BTH = decoder(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    targets_BT = labels_BT[:, 1:]
    learned_BT = targets_BT != IGNORED
    return hidden_BTH[:, :-1][learned_BT], targets_BT[learned_BT]


def output_head(model: nn.Module) -> Head:
    """The model's way from the decoder's last hidden state to logits, with what some models do after the head.

    Raises InputError where a trial on a few tokens shows that this model does something else, or where the head trains.
    Call it under the autocast that the passes use.
    """
    lm = causal_lm(model)
    config = lm.config.get_text_config()
    layer = lm.get_output_embeddings()
    if any(parameter.requires_grad for parameter in layer.parameters()):
        raise InputError(
            Problem("lora.targetModules", "names the output layer, which ppo keeps frozen", "leave it out")
        )
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def head(hidden_NH: Tensor) -> Tensor:
        logits_NV = layer(hidden_NH)
        if scale != 1.0:
            logits_NV = logits_NV * scale
        if cap is not None:
            logits_NV = torch.tanh(logits_NV / cap) * cap
        return logits_NV.float()

    _try_head(lm, head)
    return head


@torch.no_grad()
def _try_head(lm: Any, head: Head) -> None:
    ids_BT = torch.arange(1, 9, device=lm.device)[None]
    want = lm(input_ids=ids_BT, use_cache=False).logits[0].float()
    got = head(lm.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[0])
    # Weights that give no numbers are found when the rows are scored, and named as what they are.
    tolerance = 1e-2 * float(want.nan_to_num().abs().max())
    if not torch.allclose(got, want, rtol=1e-2, atol=tolerance, equal_nan=True):
        kind = type(lm).__name__
        raise InputError(
            Problem("model.path", f"is a {kind}, whose way from hidden states to logits ppo does not know", "use sft")
        )


def chunked_logprobs(head: Head, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """log p(target) for each position, (N,) in fp32, differentiable by `hidden_NH`; the head itself must be frozen."""
    if torch.is_grad_enabled():
        return _FrozenHeadLogprobs.apply(head, hidden_NH, targets_N)
    return torch.cat([_logprobs(head, h_NH, t_N) for h_NH, t_N in _chunks(hidden_NH, targets_N)])


@torch.no_grad()
def chunked_kl(head: Head, hidden_NH: Tensor, start_hidden_NH: Tensor) -> Tensor:
    """Exact KL(pi || pi_start) over the vocabulary at each position, (N,) in fp32, where both share a frozen head."""
    chunks = _chunks(hidden_NH, start_hidden_NH)
    return torch.cat([exact_kl(head(h_NH), head(start_NH)) for h_NH, start_NH in chunks])


class _FrozenHeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Head, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        logprobs, slopes = [], []
        for h_NH, t_N in _chunks(hidden_NH, targets_N):
            leaf_NH = h_NH.detach().requires_grad_()
            with torch.enable_grad():
                logprobs_N = _logprobs(head, leaf_NH, t_N)
                # A position's log-probability depends on its own state only: the sum's gradient is each one's own.
                slopes.append(torch.autograd.grad(logprobs_N.sum(), leaf_NH)[0])
            logprobs.append(logprobs_N.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[None, Tensor, None]:
        (slope_NH,) = ctx.saved_tensors
        return None, (grad_outputs[0][:, None] * slope_NH).to(slope_NH.dtype), None


def _logprobs(head: Head, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = head(hidden_NH)
    return logits_NV.gather(1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(CHUNK_TOKENS) for tensor in tensors), strict=True))
