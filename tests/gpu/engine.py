"""A Llama that computes as a serving engine does and not as the trainer: the other side of the proof, without vLLM.

The products of q, k and v, and of gate and up, are one each; the adapter is rounded to the base's precision; attention
is the formula with an fp32 softmax; the probes go through as one batch, padded on the left; on a GPU inside a CUDA
graph. Shapes: B probes, T tokens (padded), H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

MERGED = {"qkv": ("self_attn", ("q_proj", "k_proj", "v_proj")), "gate_up": ("mlp", ("gate_proj", "up_proj"))}
MERGED |= {"o": ("self_attn", ("o_proj",)), "down": ("mlp", ("down_proj",))}


class Engine:
    """Serves one Llama base from its folder, with one adapter at a time or none."""

    def __init__(self, base: Path, *, device: str, dtype: torch.dtype) -> None:
        config = json.loads((base / "config.json").read_text())
        self.layers, self.heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self.key_heads, self.size = int(config["num_key_value_heads"]), int(config["head_dim"])
        self.eps = float(config["rms_norm_eps"])
        rope = config.get("rope_parameters") or config
        self.theta = float(rope.get("rope_theta", 10000.0))
        self.device, self.dtype = device, dtype
        self.weights = {
            name: weight.to(device, dtype) for name, weight in load_file(base / "model.safetensors").items()
        }
        self.merged = {
            (layer, name): torch.cat([self.weights[f"model.layers.{layer}.{part}.{own}.weight"] for own in owns])
            for layer in range(self.layers)
            for name, (part, owns) in MERGED.items()
        }
        self.adapter: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}

    def load(self, adapter: Path | None, *, strength: float = 1.0) -> None:
        """Put an adapter in the place of the one before; `strength` falsifies alpha, 0 the whole adapter."""
        self.adapter = {}
        if adapter is None:
            return
        config = json.loads((adapter / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"] * strength
        weights = load_file(adapter / "adapter_model.safetensors")
        for layer in range(self.layers):
            for name, (part, owns) in MERGED.items():
                prefix = f"base_model.model.model.layers.{layer}.{part}"
                self.adapter[layer, name] = [
                    (
                        weights[f"{prefix}.{own}.lora_A.weight"].to(self.device, self.dtype),
                        (weights[f"{prefix}.{own}.lora_B.weight"] * scale).to(self.device, self.dtype),
                    )
                    for own in owns
                ]

    @torch.no_grad()
    def logprobs(self, probes: Sequence[Sequence[int]]) -> list[list[float]]:
        """Compute log p(id_t | ids before t), t >= 1, of each probe."""
        width = max(len(probe) for probe in probes)
        ids_BT = torch.zeros(len(probes), width, dtype=torch.int64)
        starts_B = torch.tensor([width - len(probe) for probe in probes])
        for row, probe in enumerate(probes):
            ids_BT[row, width - len(probe) :] = torch.tensor(probe)
        out_BT = self._run(ids_BT.to(self.device), starts_B.to(self.device)).cpu()
        return [out_BT[row, width - len(probe) :].tolist() for row, probe in enumerate(probes)]

    def _run(self, ids_BT: Tensor, starts_B: Tensor) -> Tensor:
        if self.device == "cpu":
            return self._forward(ids_BT, starts_B)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._forward(ids_BT, starts_B)  # what libraries allocate at first is not captured
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._forward(ids_BT, starts_B)
        graph.replay()
        torch.cuda.synchronize()
        return out

    def _forward(self, ids_BT: Tensor, starts_B: Tensor) -> Tensor:
        """Return log p of each token but the first, (B, T - 1) in fp32; what precedes a probe's start means nothing."""
        at_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        positions_BT = (at_T[None] - starts_B[:, None]).clamp(min=0)
        seen_BTT = (at_T[None, :, None] >= at_T[None, None, :]) & (at_T[None, None, :] >= starts_B[:, None, None])
        seen_BTT |= torch.eye(len(at_T), dtype=torch.bool, device=ids_BT.device)  # padding sees itself, not nothing
        rates = 1.0 / self.theta ** (torch.arange(0, self.size, 2, device=ids_BT.device).float() / self.size)
        angles = positions_BT[:, None, :, None].float() * rates
        turn = torch.cat([angles, angles], dim=-1)
        x = self.weights["model.embed_tokens.weight"][ids_BT]
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            x = x + self._attention(layer, self._norm(x, f"{name}.input_layernorm"), seen_BTT, turn)
            x = x + self._mlp(layer, self._norm(x, f"{name}.post_attention_layernorm"))
        logits = self._norm(x, "model.norm") @ self.weights["lm_head.weight"].T
        logprobs = logits[:, :-1].float().log_softmax(-1)
        return logprobs.gather(2, ids_BT[:, 1:, None])[..., 0]

    def _product(self, layer: int, name: str, x: Tensor) -> Tensor:
        out = x @ self.merged[layer, name].T
        parts = [(x @ a.T) @ b.T for a, b in self.adapter.get((layer, name), ())]
        return out + torch.cat(parts, dim=-1) if parts else out

    def _attention(self, layer: int, x: Tensor, seen_BTT: Tensor, turn: Tensor) -> Tensor:
        rows, width, _ = x.shape
        sizes = [heads * self.size for heads in (self.heads, self.key_heads, self.key_heads)]
        q, k, v = (
            part.view(rows, width, -1, self.size).transpose(1, 2)
            for part in self._product(layer, "qkv", x).split(sizes, dim=-1)
        )
        q, k = _rotate(q, turn), _rotate(k, turn)
        groups = self.heads // self.key_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = (q @ k.transpose(2, 3)).float() / self.size**0.5
        shares = scores.masked_fill(~seen_BTT[:, None], float("-inf")).softmax(-1).to(x.dtype)
        return self._product(layer, "o", (shares @ v).transpose(1, 2).reshape(rows, width, -1))

    def _mlp(self, layer: int, x: Tensor) -> Tensor:
        gate, up = self._product(layer, "gate_up", x).chunk(2, dim=-1)
        return self._product(layer, "down", functional.silu(gate) * up)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weights[f"{name}.weight"]


def _rotate(x: Any, turn: Tensor) -> Any:
    first, second = x.chunk(2, dim=-1)
    return (x * turn.cos() + torch.cat([-second, first], dim=-1) * turn.sin()).to(x.dtype)
