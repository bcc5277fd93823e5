"""Models and rows that the checks train, and the plain form of a step to hold them to.

Shapes: N tokens in the loss, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.trainers.batching import full_batches, token_budget_batches
from llm_tuning.trainers.micro_batches import MicroBatch, flatten, pad
from llm_tuning.trainers.model import attach_lora
from llm_tuning.trainers.policy import Policy

if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):  # its older name, in 5.17 for one
    PreTrainedModel.activation_checkpointing_enable = PreTrainedModel.gradient_checkpointing_enable


def random_rows(lengths: Sequence[int], vocabulary: int, *, seed: int = 0) -> list[TokenRow]:
    """Make rows of random tokens whose second half is learned."""
    random = np.random.default_rng(seed)
    return [
        TokenRow(random.integers(4, vocabulary, n).astype(np.int32), np.arange(n) >= max(1, n // 2), 0.0, i)
        for i, n in enumerate(lengths)
    ]


def skewed_lengths(count: int, *, mean: float, longest: int, seed: int = 1) -> list[int]:
    """Draw lengths as data sets have them: log-normal, most rows short."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - 0.32, 0.8, count)
    return [int(n) for n in drawn.clip(8, longest)]


def micro_batches(rows: Sequence[TokenRow], max_tokens: int, *, flat: bool) -> list[MicroBatch]:
    """Cut rows as a run would."""
    cut = (full_batches if flat else token_budget_batches)([len(row.input_ids) for row in rows], max_tokens)
    lay = flatten if flat else pad
    return [replace(lay([rows[i] for i in at]), rows=at) for at in cut]


def with_lora(model: Any, *, rank: int = 8, alpha: int = 16, dropout: float = 0.0, seed: int = 0) -> Any:
    """Attach a LoRA to all linear layers whose B is not zero, so that every gradient says something."""
    model.config.use_cache = False
    model.requires_grad_(False)
    lora = attach_lora(model, rank=rank, alpha=alpha, dropout=dropout, target_modules="all-linear", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return lora


def moved(lora: Any, device: str, dtype: torch.dtype, *, with_values: bool = False) -> Policy:
    """Copy a model with its adapter to a device as a run has it there: the base in `dtype`, the adapter in fp32."""
    model = copy.deepcopy(lora)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, None if parameter.requires_grad else dtype)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return Policy(model, device=device, dtype=dtype, with_values=with_values)


def gradients(policy: Policy) -> Tensor:
    """Return all gradients of what trains as one vector in fp64 on the CPU, and clear them."""
    parameters = [parameter for group in policy.gradient_groups() for parameter in group]
    vector = torch.cat([parameter.grad.detach().double().cpu().flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return vector


def plain_outputs(lora: Any, row: TokenRow, values: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Compute (log p, values), (N,) each, of one row by the model's own forward, as one writes it first."""
    ids = torch.from_numpy(row.input_ids.astype(np.int64)).to(next(lora.parameters()).device)
    out = lora(input_ids=ids[None], output_hidden_states=values is not None)
    at = torch.from_numpy(np.flatnonzero(row.learned)) - 1
    logprobs = out.logits[0].float().log_softmax(-1)[at, ids[at + 1]]
    return logprobs, values(out.hidden_states[-1][0, at]) if values is not None else torch.zeros_like(logprobs)


def away(vector: Tensor, reference: Tensor) -> float:
    """Return the distance of a vector from another, as a share of the other's length."""
    return float((vector - reference).norm() / reference.norm())


def most_apart(losses: Sequence[float], others: Sequence[float]) -> float:
    """Return how far the losses of a run are from those of another at most, as a share."""
    return max(abs(loss / other - 1) for loss, other in zip(losses, others, strict=True))
