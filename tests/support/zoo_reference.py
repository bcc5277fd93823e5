"""What a family computes without the product: transformers' own eager forward in fp32, one row a pass, no padding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

NAMED_BY_LAYER = re.compile(r"^.*?([a-z_]+[.]\d+[.].*)$")


@dataclass(frozen=True)
class Row:
    """A sequence: its ids, and whether each is learned, (tokens,)."""

    input_ids: Sequence[int]
    learned: Sequence[bool]


class Reference:
    """The base in `folder`, of the class that its config.json names, with the adapter in `adapter` on it."""

    def __init__(self, folder: Path, class_name: str, adapter: Path, *, logits_of: str = "") -> None:
        """Load it; `logits_of` is the part that takes text, where the whole class takes no text alone."""
        import transformers

        base = getattr(transformers, class_name).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        base.requires_grad_(False)
        self.model: Any = PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()
        self._text = base.get_submodule(logits_of) if logits_of else self.model
        rope = getattr(base.config.get_text_config(), "rope_parameters", None) or {}
        self._remembers = rope.get("rope_type") == "dynamic"

    def logprobs(self, input_ids: Sequence[int]) -> Tensor:
        """log p(id_t | ids before t) for t >= 1, (tokens - 1,)."""
        ids = torch.tensor([list(input_ids)])
        if self._remembers:  # the longest row so far, for rows that are shorter; a single token makes it forget
            with torch.no_grad():
                self._text(input_ids=ids[:, :1], use_cache=False)
        logits: Tensor = self._text(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]

    def loss(self, row: Row) -> Tensor:
        """-log p summed over the learned tokens of a row."""
        return -self.logprobs(row.input_ids)[torch.tensor(list(row.learned)[1:])].sum()

    @torch.no_grad()
    def base_logprobs(self, input_ids: Sequence[int]) -> Tensor:
        """As `logprobs`, without the adapter."""
        with self.model.disable_adapter():
            return self.logprobs(input_ids)

    @torch.no_grad()
    def base_loss(self, rows: Iterable[Row]) -> float:
        """The loss of the base, in nats a learned token of all the rows."""
        with self.model.disable_adapter():
            total = sum(float(self.loss(row)) for row in rows)
        return total / _learned(rows)

    def step(self, weights: dict[str, Tensor], rows: Sequence[Row]) -> tuple[float, dict[str, Tensor]]:
        """Loss in nats a token and gradients of one step with these adapter weights; names are those of `by_layer`."""
        parameters = by_layer((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        assert parameters.keys() == weights.keys(), "other layers have an adapter"
        for name, parameter in parameters.items():
            parameter.data.copy_(weights[name])
            parameter.grad = None
        learned, total = _learned(rows), 0.0
        for row in rows:
            loss = self.loss(row) / learned
            loss.backward()
            total += float(loss.detach())
        return total, {name: _gradient(parameter) for name, parameter in parameters.items()}


def by_layer(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Name an adapter's parameters from their layer on (`layers.0.mlp...`): what is around a decoder differs."""
    found = {}
    for name, value in named:
        match = NAMED_BY_LAYER.match(name.replace(".default", ""))
        assert match is not None, f"{name} is in no layer"
        assert match[1] not in found, f"{name} is there twice"
        found[match[1]] = value
    return found


def _gradient(parameter: Any) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def _learned(rows: Iterable[Row]) -> int:
    return sum(sum(row.learned) for row in rows)
