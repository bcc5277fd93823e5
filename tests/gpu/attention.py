"""Attention within rows against the formula in fp64, and which of torch's kernels computes it.

Shapes: H query heads, T tokens of all rows, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_tuning.trainers.attention import FlatRows, row_by_row, rows_at_once, varlen_lacks
from tests.gpu.findings import Finding, Place, below, not_here, same, shown
from tests.gpu.models import away

LENGTHS = (7, 130, 64, 41)
OFF = {torch.bfloat16: (1e-2, 2e-2), torch.float32: (1e-5, 1e-5)}
"""Of (outputs, gradients), as shares. A window that is one token off differs by several hundredths."""


@dataclass(frozen=True)
class Case:
    """What a layer of some family asks for."""

    name: str
    dtype: torch.dtype = torch.bfloat16
    heads: int = 8
    key_heads: int = 2
    size: int = 64
    window: int | None = None


CASES = (
    Case("grouped keys"),
    Case("grouped keys, fp32", torch.float32),
    Case("window of 48", window=48),
    Case("window of 48, fp32", torch.float32, window=48),
    Case("window of one", window=1),
    Case("heads of 256", heads=4, size=256),
    Case("heads of 288", heads=4, size=288),
    Case("heads of 80", heads=4, key_heads=4, size=80),
)


def attention(place: Place) -> Iterator[Finding]:
    """Compare both ways through rows with the formula, then see which kernels take what."""
    lacks = varlen_lacks()
    for case in CASES:
        inputs = _inputs(case)
        want = _results(
            _formula, [tensor.double() for tensor in inputs], case, FlatRows.of(LENGTHS, torch.device("cpu"))
        )
        for name, function in (("row by row", row_by_row), ("at once", rows_at_once)):
            if function is rows_at_once and not place.cuda:
                continue
            rows = FlatRows.of(LENGTHS, torch.device(place.device))
            got = _results(function, [tensor.to(place.device) for tensor in inputs], case, rows)
            out, gradient = OFF[case.dtype]
            yield below(f"{case.name}, {name}: outputs off", away(got[0], want[0]), out)
            yield below(f"{case.name}, {name}: gradients off", away(got[1], want[1]), gradient)
            if function is rows_at_once:
                takes = case.dtype == torch.bfloat16 and case.size <= 256
                yield same(f"{case.name}: varlen_attn computes it", case.size in rows.at_once, takes)
    if not place.cuda:
        for what in ("rows at once by varlen_attn", "which kernel computes sdpa", "memory of attention in fp32"):
            yield not_here(what, "needs CUDA")
        return
    yield same("varlen_attn lacks", lacks, [])
    yield from _backends(place)
    yield from _memory(place)


def _inputs(case: Case) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    heads = (case.heads, case.key_heads, case.key_heads)
    return [torch.randn(1, count, sum(LENGTHS), case.size, generator=random).to(case.dtype) for count in heads]


def _results(function: Any, inputs: list[Tensor], case: Case, rows: FlatRows) -> tuple[Tensor, Tensor]:
    """Return (outputs, gradients of all inputs) as vectors in fp64 on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    module = nn.Module()
    module.num_key_value_groups = case.heads // case.key_heads  # type: ignore[assignment]
    module.is_causal = True  # type: ignore[assignment]
    out = function(module, *leaves, None, flat_rows=rows, sliding_window=case.window)[0]
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    out.backward(slope)
    return _vector([out]), _vector([leaf.grad for leaf in leaves])


def _vector(tensors: list[Any]) -> Tensor:
    return torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors])


def _formula(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    flat_rows: FlatRows,
    sliding_window: int | None,
) -> tuple[Tensor]:
    """Compute softmax(q k / sqrt D) v over the tokens of the same row that are not behind the window."""
    row_T = torch.repeat_interleave(torch.arange(len(flat_rows.lengths)), torch.tensor(flat_rows.lengths))
    at_T = torch.arange(len(row_T))
    behind_TT = at_T[:, None] - at_T[None, :]
    seen_TT = (row_T[:, None] == row_T[None, :]) & (behind_TT >= 0)
    if sliding_window is not None:
        seen_TT &= behind_TT < sliding_window
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    out = scores.masked_fill(~seen_TT, float("-inf")).softmax(-1) @ value
    return (out.transpose(1, 2),)


def _backends(place: Place) -> Iterator[Finding]:
    """See which kernel takes causal attention of one row; flash must take all that training in bf16 asks for."""
    flash = {"grouped keys": True, "grouped keys, fp32": False, "heads of 256": True, "heads of 288": False}
    for case in CASES:
        if case.window is not None:
            continue
        query, key, value = (tensor.to(place.device) for tensor in _inputs(case))
        takes = [backend.name for backend in _KERNELS if _takes(backend, query, key, value)]
        if case.name in flash:
            expected = ("" if flash[case.name] else "no ") + "FLASH_ATTENTION"
            passed = ("FLASH_ATTENTION" in takes) == flash[case.name]
            yield Finding.of(f"{case.name}: kernels", expected=expected, seen=", ".join(takes), passed=passed)
        else:
            yield shown(f"{case.name}: kernels", ", ".join(takes))


_KERNELS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)


def _takes(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> bool:
    grouped = query.shape[1] != key.shape[1]
    try:
        with sdpa_kernel(backend):
            functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    except RuntimeError:
        return False
    return True


def _memory(place: Place) -> Iterator[Finding]:
    """See that no way keeps T x T scores: in fp32 with grouped keys, and with a window."""
    length, heads = 4096, 16
    scores = heads * length**2 * 4
    for name, dtype, window in (
        ("fp32, grouped", torch.float32, None),
        ("fp32, grouped, window", torch.float32, 512),
        ("bf16, window", torch.bfloat16, 512),
    ):
        case = Case(name, dtype, heads, 4, 64, window)
        rows = FlatRows.of([length], torch.device(place.device))
        leaves = [
            torch.randn(1, count, length, 64, device=place.device, dtype=dtype, requires_grad=True)
            for count in (heads, 4, 4)
        ]
        module = nn.Module()
        module.num_key_value_groups, module.is_causal = heads // 4, True  # type: ignore[assignment]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        rows_at_once(module, *leaves, None, flat_rows=rows, sliding_window=case.window)[0].sum().backward()
        peak = (torch.cuda.max_memory_allocated() - before) / scores
        yield below(f"{name}: peak of the scores in fp32", peak, 0.8)
