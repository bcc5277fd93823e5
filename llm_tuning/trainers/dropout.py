"""Dropout on the inputs of adapters: one mask for layers that read the same tensor, from 16 random bits an element.

PEFT gives each layer an `nn.Dropout` of its own. On a CPU those cost 15 % of a step in bf16: seven masks a decoder
layer, where four inputs differ. An element is still kept with probability 1 - p and divided by it; only layers that
share an input (q, k and v; gate and up) now lose the same elements of it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_tuning.models.base import SHARED_INPUTS

LEVELS = 2**16
"""Of a random number of 16 bits: p is rounded to a multiple of 1 / 65,536."""


class SharedDropout(nn.Module):
    """Dropout for `readers` layers that are called one after the other with the same tensor."""

    def __init__(self, p: float, readers: int) -> None:
        super().__init__()
        self.p, self.readers = p, readers
        self._input: weakref.ref[Tensor] | None = None
        self._output: Tensor | None = None
        self._left = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` with elements dropped; the same tensor for all readers of the same `inputs`."""
        if not self.training or self.p == 0.0:
            return inputs
        output = self._output
        if output is None or self._input is None or self._input() is not inputs:
            output = drop(inputs, self.p)
            self._input, self._output, self._left = weakref.ref(inputs), output, self.readers
        self._left -= 1
        if self._left == 0:  # else it would outlive the step
            self._input = self._output = None
        return output

    def extra_repr(self) -> str:
        return f"p={self.p}, readers={self.readers}"


def drop(inputs: Tensor, p: float) -> Tensor:
    """Return `inputs` with each element zero with probability `p`, the others divided by 1 - p; differentiable."""
    if inputs.device.type != "cpu":
        return functional.dropout(inputs, p)  # one kernel there, which draws as it goes
    dropped: Tensor = _Drop.apply(inputs, p)
    return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, p: float) -> Tensor:
        dropped_levels = min(LEVELS - 1, round(p * LEVELS))
        keep = _random_16_bits(inputs.shape) >= dropped_levels - LEVELS // 2
        mask = keep.to(inputs.dtype).mul_(LEVELS / (LEVELS - dropped_levels))
        ctx.save_for_backward(mask)
        return inputs * mask

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad_outputs[0] * mask, None


def _random_16_bits(shape: torch.Size) -> Tensor:
    """Draw int16 of every value alike from the default generator, 64 bits for four of them."""
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count].view(shape)


def share_dropout(model: nn.Module, adapter: str) -> None:
    """Put one `SharedDropout` in the place of PEFT's dropouts of layers that share an input."""
    groups: dict[tuple[str, str], list[nn.ModuleDict]] = {}
    rate = 0.0
    for name, module in model.named_modules():
        dropouts = getattr(module, "lora_dropout", None)
        dropout = dropouts[adapter] if isinstance(dropouts, nn.ModuleDict) and adapter in dropouts else None
        if isinstance(dropouts, nn.ModuleDict) and isinstance(dropout, nn.Dropout):
            rate = dropout.p  # of all: an adapter has one
            parent, _, own = name.rpartition(".")
            group = next((min(names) for names in SHARED_INPUTS if own in names), own)
            groups.setdefault((parent, group), []).append(dropouts)
    for members in groups.values():
        shared = SharedDropout(rate, len(members))
        for dropouts in members:
            dropouts[adapter] = shared
