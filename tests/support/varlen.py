"""torch's varlen_attn by its documentation, as a plain formula: its kernel is for GPUs alone."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_varlen_attn(  # noqa: PLR0917 - torch's signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention of (T, heads, head size) inside each sequence; -1 in `window_size` is no limit on that side.

    What the kernel refuses is refused here: groups unasked for, head sizes that it has not, other dtypes of ends.
    """
    tokens, heads, size = query.shape
    assert cu_seq_k is not None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.device == query.device
    assert query.dtype == key.dtype == value.dtype
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert size % 8 == 0
    assert size <= 256
    assert value.shape == key.shape
    assert key.shape[2] == size
    assert heads % key.shape[1] == 0
    assert enable_gqa or heads == key.shape[1]
    lengths = cu_seq_q.diff()
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert int(cu_seq_q[0]) == 0
    assert int(cu_seq_q[-1]) == tokens
    assert max_q == max_k == int(lengths.max())
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    behind = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
    left, right = window_size
    seen = row[:, None] == row[None, :]
    if left >= 0:
        seen &= behind <= left
    if right >= 0:
        seen &= -behind <= right
    q, k, v = query.float(), *(t.float().repeat_interleave(heads // key.shape[1], dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (size**-0.5 if scale is None else scale)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)
