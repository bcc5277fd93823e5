"""Attention over rows that lie end to end in a pass, by kernels that keep no T x T scores for the backward pass.

Two functions in transformers' registry compute the same. One calls torch's FlashAttention over all rows at once; the
other, for what that does not take, sdpa row after row: 20 rows in 28 layers are 560 calls forward, which a GPU waits
for. Without rows end to end both are transformers' own sdpa.

Shapes: q heads, k heads (grouped: fewer), T tokens of all rows together, D head size; query is (1, q heads, T, D).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from llm_tuning.trainers.transfer import to_device

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None

ROW_BY_ROW = "row_by_row"
ROWS_AT_ONCE = "rows_at_once"

AMPERE = (8, 0)
"""The oldest compute capability that torch's FlashAttention runs on."""
MAX_FLASH_HEAD = 256
FLASH_DTYPES = (torch.bfloat16, torch.float16)
NEEDED_OF_VARLEN = ("scale", "window_size", "enable_gqa")
"""Arguments of varlen_attn; the first versions had some of them."""
NOT_IN_VARLEN = ("position_bias", "softcap", "s_aux")
"""Arguments of transformers' attention functions that varlen_attn has no counterpart of."""
ALIKE = 3e-2
"""Of the largest number: how far a kernel in bf16 may be from sdpa in fp32. A window that is one token off differs by
0.3 and more."""


@dataclass(frozen=True)
class FlatRows:
    """Where the rows of a pass begin and end: made once a pass, given to every layer."""

    lengths: tuple[int, ...]
    ends: Tensor
    """(rows + 1,) int32 on the model's device: a zero, then where each row ends."""
    longest: int
    windows: set[int] = field(default_factory=set)
    """Sliding windows that layers have asked for."""
    at_once: set[int] = field(default_factory=set)
    """Head sizes that varlen_attn has computed."""
    _masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> FlatRows:
        (ends,) = to_device(device, torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32))
        return cls(tuple(lengths), ends, max(lengths))

    def window_mask(self, length: int, window: int, like: Tensor) -> Tensor:
        """Return what sdpa adds to the scores of a row: (1, 1, length, length), 0 inside the window, -inf outside.

        One tensor for all layers of a pass: of a boolean mask every layer would make and keep one like it.
        """
        key = (length, window, dtype_in_attention(like))
        if key not in self._masks:
            at = torch.arange(length, device=like.device)
            behind = at[:, None] - at[None, :]
            aligned = -(-length // 8) * 8  # else the memory-efficient kernel copies it, in every layer
            room = torch.zeros(length, aligned, dtype=key[2], device=like.device)[:, :length]
            self._masks[key] = room.masked_fill_((behind < 0) | (behind >= window), float("-inf"))[None, None]
        return self._masks[key]


def row_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    flat_rows: FlatRows | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention, (1, T, q heads, D), inside each of `flat_rows` by sdpa; without them sdpa as it is."""
    if flat_rows is None:
        return _sdpa(module, query, key, value, attention_mask, **kwargs), None
    if sliding_window is not None:
        flat_rows.windows.add(sliding_window)
    rows = zip(*(tensor.split(flat_rows.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outs = []
    for q, k, v in rows:
        length, mask = q.shape[2], None
        if sliding_window is not None and length > sliding_window:
            mask = flat_rows.window_mask(length, sliding_window, query)
        outs.append(_sdpa(module, q, k, v, mask, **kwargs))
    return torch.cat(outs, dim=1), None


def rows_at_once(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    flat_rows: FlatRows | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute what `row_by_row` does in one call of FlashAttention; a layer that it does not take goes row by row."""
    if flat_rows is None or not _varlen_takes(module, query, key, value, kwargs):
        kwargs |= {"flat_rows": flat_rows, "sliding_window": sliding_window}
        return row_by_row(module, query, key, value, attention_mask, **kwargs)
    dtype = dtype_in_attention(query)
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    ends, longest = flat_rows.ends, flat_rows.longest
    left = -1  # a token sees itself and so many to its left, -1: all of them
    if sliding_window is not None:
        flat_rows.windows.add(sliding_window)
        left = sliding_window - 1 if sliding_window < longest else -1
    grouped = q.shape[1] != k.shape[1]
    flat_rows.at_once.add(q.shape[2])
    scale = kwargs.get("scaling")
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=grouped)
    return out[None], None


for _name, _function in ((ROW_BY_ROW, row_by_row), (ROWS_AT_ONCE, rows_at_once)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


_UNGROUPED = nn.Module()
"""A layer whose keys have as many heads as its queries, to transformers' sdpa."""


def _sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """Compute transformers' sdpa, with grouped keys repeated where no kernel takes the groups."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not groups_are_taken(query, value):
        if kwargs.get("is_causal") is None:
            kwargs["is_causal"] = getattr(module, "is_causal", True)
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        module = _UNGROUPED
    out: Tensor = sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    return out


def groups_are_taken(query: Tensor, value: Tensor) -> bool:
    """Return whether sdpa has a kernel for grouped keys that keeps no T x T scores.

    On a GPU that is FlashAttention alone: the memory-efficient kernel has no groups, and plain products come next.
    """
    return not query.is_cuda or flash_takes(query, value)


def dtype_in_attention(query: Tensor) -> torch.dtype:
    """Return what sdpa computes in: autocast's dtype, also where a norm has left queries and keys in fp32."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def flash_takes(query: Tensor, value: Tensor) -> bool:
    """Return whether torch's FlashAttention computes attention of these, grouped or not, where there is no mask."""
    return (
        dtype_in_attention(query) in FLASH_DTYPES
        and query.shape[-1] == value.shape[-1] <= MAX_FLASH_HEAD
        and has_flash(query.device)
    )


def has_flash(device: torch.device) -> bool:
    """Return whether torch's FlashAttention runs on `device`."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def varlen_lacks() -> list[str]:
    """Return what this torch's varlen_attn has not: its name where there is none, or the arguments that it lacks."""
    if varlen_attn is None:
        return ["varlen_attn"]
    has = inspect.signature(varlen_attn).parameters
    return [name for name in NEEDED_OF_VARLEN if name not in has]


def _varlen_takes(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> bool:
    causal = kwargs.get("is_causal")
    return (
        all(kwargs.get(name) is None for name in NOT_IN_VARLEN)
        and not kwargs.get("dropout")
        and (getattr(module, "is_causal", True) if causal is None else causal)
        and query.shape[-1] % 8 == 0  # sdpa pads, varlen_attn does not
        and query.shape[2] == key.shape[2]
        and flash_takes(query, value)
    )


@torch.enable_grad()
def rows_at_once_are_right(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Try varlen_attn on `device`: whether its outputs and gradients are those of sdpa in fp32, row by row.

    Some rows are longer than the window, and keys are grouped.
    """
    rows = FlatRows.of([5, 24, 9], device)
    random = torch.Generator().manual_seed(0)
    query, key, value, slope = (
        torch.randn(1, heads, sum(rows.lengths), head_size, generator=random).to(device, dtype)
        for heads in (4, 2, 2, 4)
    )
    for window in (None, 6):
        results = []
        for attend, precision in ((rows_at_once, dtype), (row_by_row, torch.float32)):
            leaves = [tensor.detach().to(precision).requires_grad_() for tensor in (query, key, value)]
            with torch.autocast(device.type, enabled=False):
                q, k, v = leaves if attend is rows_at_once else _ungrouped(*leaves)
                out = attend(nn.Module(), q, k, v, None, flat_rows=rows, sliding_window=window)[0]
                out.backward(slope.transpose(1, 2).to(precision))
            results.append([out.detach(), *(leaf.grad for leaf in leaves)])
        for got, want in zip(*results, strict=True):
            if not torch.allclose(got.float(), want, rtol=0, atol=ALIKE * float(want.abs().max())):
                return False
    return True


def _ungrouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    return query, key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
