"""Angles of positions by each row's own length, in models whose rope depends on it.

transformers looks at the largest position of a pass: a row that shares a pass with one beyond the original context
(`models.rope`) would be computed with that one's factors, and a `dynamic` rope even remembers the longest row it has
seen. So the rotary embedding is asked once for each group of rows that have the same angles, and for rows beyond the
original context a copy is asked that has seen nothing yet. How rows are cut into passes stays without meaning.
"""

from __future__ import annotations

import copy
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from llm_tuning.models.rope import WHOLE_MODEL, LengthDependentRope, length_dependent_ropes, shortest_original

Angles = Any
"""What a rotary embedding returns: cosines and sines (B, T, D), or one tensor of complex numbers."""


def take_rope_by_row(causal_lm: Any) -> int | None:
    """Have `causal_lm` compute each row's angles by its own length; returns `models.rope.shortest_original`.

    A row begins where its positions begin at 0: give positions where rows are padded (`padded_positions`).
    """
    ropes: list[LengthDependentRope] = []
    for module in causal_lm.modules():
        if not hasattr(module, "rope_type") or not hasattr(module, "config"):
            continue
        if not isinstance(module.__dict__.get("forward"), RopeByRow) and (found := _ropes_of(module)):
            module.forward = RopeByRow(module, found)
        if isinstance(module.__dict__.get("forward"), RopeByRow):
            ropes += module.forward.ropes.values()
    return shortest_original(ropes)


def padded_positions(lengths: list[int], width: int) -> Tensor:
    """Build positions (B, T) of rows padded on the right to `width`; the padding is a row of its own."""
    counted = torch.arange(width)
    lengths_B1 = torch.tensor(lengths)[:, None]
    return torch.where(counted < lengths_B1, counted, counted - lengths_B1)


class RopeByRow:
    """Stands in for the forward of a rotary embedding whose angles depend on the length of the pass."""

    def __init__(self, rotary: nn.Module, ropes: dict[str, LengthDependentRope]) -> None:
        self.ropes = ropes
        self._fresh = _copy(rotary)

    def __call__(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Angles:
        """Compute the angles of positions (B, T), or (3, B, T) where there is an axis of kinds of positions."""
        of_layer = {} if layer_type is None else {"layer_type": layer_type}
        rope = self.ropes.get(layer_type or WHOLE_MODEL)
        if rope is None or position_ids.shape[-1] <= rope.original:
            return self._fresh(x, position_ids, **of_layer)
        rows = [
            _joined([(_copy(self._fresh) if group else self._fresh)(x, at, **of_layer) for group, at in parts], dim=-2)
            for parts in _rows(position_ids, rope)
        ]
        return _joined(rows, dim=-3)


def _ropes_of(rotary: Any) -> dict[str, LengthDependentRope]:
    """Return the length-dependent ropes of a rotary embedding by layer type, none where it has none."""
    kinds = rotary.rope_type if isinstance(rotary.rope_type, dict) else {WHOLE_MODEL: rotary.rope_type}
    found = length_dependent_ropes(rotary.config.to_dict())
    return {name: found[name] for name, kind in kinds.items() if name in found and found[name].kind == kind}


def _copy(rotary: Any) -> Any:
    """Copy a rotary embedding with its frequencies; the configuration is shared."""
    twin = copy.deepcopy(rotary, {id(rotary.config): rotary.config})
    twin.__dict__.pop("forward", None)
    return twin


def _rows(position_ids: Tensor, rope: LengthDependentRope) -> list[list[tuple[int, Tensor]]]:
    """Cut positions into (group, positions) of neighbouring rows of one group, for each sequence of the pass."""
    first_kind = position_ids if position_ids.dim() == 2 else position_ids[0]
    width = first_kind.shape[-1]
    found = []
    for b, starts in enumerate((first_kind == 0).tolist()):
        bounds = [0, *(t for t in range(1, width) if starts[t]), width]
        parts, start = [], 0
        for group, rows in groupby(pairwise(bounds), key=lambda row: rope.group(row[1] - row[0])):
            end = list(rows)[-1][1]
            parts.append((group, position_ids[..., b : b + 1, start:end]))
            start = end
        found.append(parts)
    return found


def _joined(parts: list[Angles], *, dim: int) -> Angles:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim)
    return tuple(torch.cat(tensors, dim) for tensors in zip(*parts, strict=True))
