"""The loss of a padded batch, computed where something is learned and nowhere else.

A model's own forward makes logits for every position, (rows, tokens, vocabulary) in fp32: most of the memory and, in
small models, much of the time. Here the decoder's hidden states at learned positions alone go through the output
layer, a chunk at a time, and the derivative is taken while the chunk's logits are there.

Models that do more than one linear layer after the decoder (Gemma's soft cap, the scales of Cohere and Granite)
are found by trying, not by name, and use their own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from llm_tuning.trainers.batching import IGNORED
from llm_tuning.trainers.flat_rows import flat_arguments, take_flat_rows

CHUNK_ELEMENTS = 2**22
"""Logits at a time: 16 MiB in fp32, small beside any model, and enough rows for a matrix product at full speed."""


class TokenLoss:
    """Sum of the cross entropy over a batch's learned tokens, differentiable by what trains inside `model`.

    `model` is a causal language model of transformers, plain or inside PEFT, on `device`; with `dtype` bfloat16 the
    passes run under autocast.
    """

    def __init__(self, model: Any, *, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.head: Any = self.causal_lm.get_output_embeddings()
        self.head_is_plain = self._head_is_plain()
        with self._autocast():
            self.flat_rows = take_flat_rows(self.causal_lm)

    def sum(self, batch: dict[str, Any]) -> Tensor:
        """Nats summed over the learned tokens of `batch`, a scalar in fp32.

        `batch` is as from `batching.pad` or, where `self.flat_rows`, as from `batching.flatten`.

        Zero, but still with a gradient to all that trains, where nothing is learned.
        """
        input_ids_BT = batch["input_ids"].to(self.device, non_blocking=True)
        targets_BT = batch["labels"][:, 1:]
        rows_N, columns_N = (targets_BT != IGNORED).nonzero(as_tuple=True)
        targets_N = targets_BT[rows_N, columns_N].to(self.device, non_blocking=True)
        positions_N = (rows_N * batch["labels"].shape[1] + columns_N).to(self.device, non_blocking=True)
        arguments: dict[str, Any] = {"use_cache": False}
        if "row_lengths" in batch:
            arguments = flat_arguments(self.device, batch["row_lengths"])
        with self._autocast():
            if self.head_is_plain:
                hidden_BTH = self.causal_lm.base_model(input_ids=input_ids_BT, **arguments).last_hidden_state
                hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, positions_N)
                return _FrozenHeadLoss.apply(hidden_NH, self.head.weight, self.head.bias, targets_N)
            logits_BTV = self.causal_lm(input_ids=input_ids_BT, **arguments).logits
            logits_NV = logits_BTV.flatten(0, 1).index_select(0, positions_N)
            return functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether the logits are `head(hidden states)` and the head, an ordinary linear layer, is frozen."""
        head = self.head
        if type(head) is not nn.Linear or any(parameter.requires_grad for parameter in head.parameters()):
            return False
        was_training = self.causal_lm.training
        self.causal_lm.eval()
        ids_BT = torch.arange(1, 9, device=self.device)[None]
        with self._autocast():
            want = self.causal_lm(input_ids=ids_BT, use_cache=False).logits.float()
            got = head(self.causal_lm.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state).float()
        self.causal_lm.train(was_training)
        largest = float(want.abs().nan_to_num().max())
        return got.shape == want.shape and torch.allclose(got, want, rtol=1e-2, atol=1e-2 * largest)


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross entropy of a frozen linear layer's outputs, summed. Forward takes the derivative, backward scales it."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        slope_NH = torch.empty_like(hidden_NH)
        rows = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
        for start in range(0, len(targets_N), rows):
            hidden, targets = hidden_NH[start : start + rows], targets_N[start : start + rows]
            logits = functional.linear(hidden, weight_VH, bias_V).float()
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += (normaliser - logits.gather(1, targets[:, None])).sum()
            # d loss / d logits = softmax - one-hot of the target
            slope = logits.sub_(normaliser).exp_()
            slope.scatter_add_(1, targets[:, None], slope.new_full((len(targets), 1), -1.0))
            torch.mm(slope.to(weight_VH.dtype), weight_VH, out=slope_NH[start : start + rows])
        ctx.save_for_backward(slope_NH)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None, None]:
        (slope_NH,) = ctx.saved_tensors
        return slope_NH * grad_outputs[0], None, None, None
