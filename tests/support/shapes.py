"""Shapes of known bases, without a file of theirs, and how a run computes: for counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_tuning.models.shape import Linear, ModelShape
from llm_tuning.modes.sft import SFT
from llm_tuning.run.setting import Setting


def llama_shape(
    *, hidden: int, layers: int, vocabulary: int, query: int, key: int, intermediate: int, tied: bool = False
) -> ModelShape:
    """A decoder with seven matrices and two norms a layer, as Llama, Qwen and Mistral have it."""
    matrices = (
        ("q_proj", hidden, query),
        ("k_proj", hidden, key),
        ("v_proj", hidden, key),
        ("o_proj", query, hidden),
        ("gate_proj", hidden, intermediate),
        ("up_proj", hidden, intermediate),
        ("down_proj", intermediate, hidden),
    )
    linears = tuple(Linear(name, layer, i, o) for layer in range(layers) for name, i, o in matrices)
    norms = (2 * layers + 1) * hidden
    embeddings = vocabulary * hidden * (1 if tied else 2)
    return ModelShape(
        path=Path(),
        parameters=sum(linear.size for linear in linears) + embeddings + norms,
        hidden=hidden,
        layers=layers,
        vocabulary=vocabulary,
        query=query,
        key=key,
        intermediate=intermediate,
        norms=norms,
        linears=linears,
        head_is_plain=True,
        experts=0,
    )


LLAMA_2_7B = llama_shape(hidden=4096, layers=32, vocabulary=32_000, query=4096, key=4096, intermediate=11_008)
LLAMA_3_8B = llama_shape(hidden=4096, layers=32, vocabulary=128_256, query=4096, key=1024, intermediate=14_336)
LLAMA_3_70B = llama_shape(hidden=8192, layers=80, vocabulary=128_256, query=8192, key=1024, intermediate=28_672)
QWEN_25_05B = llama_shape(hidden=896, layers=24, vocabulary=151_936, query=896, key=128, intermediate=4864, tied=True)
QWEN_25_15B = llama_shape(hidden=1536, layers=28, vocabulary=151_936, query=1536, key=256, intermediate=8960, tied=True)
QWEN_25_32B = llama_shape(hidden=5120, layers=64, vocabulary=152_064, query=5120, key=1024, intermediate=27_648)
QWEN_25_7B = llama_shape(hidden=3584, layers=28, vocabulary=152_064, query=3584, key=512, intermediate=18_944)
"""Qwen's without the biases of query, key and value: some 0.01 % of the parameters."""


def make_setting(**changed: Any) -> Setting:
    """How a run of sft computes: fp32 on one CPU, rank 4, no dropout, and what is `changed`."""
    plain = {
        "memory": SFT.memory,
        "rank": 4,
        "dropout": False,
        "number_bytes": 4,
        "four_bits": False,
        "checkpointing": False,
        "cuda": False,
        "processes": 1,
        "start_adapter": False,
    }
    return Setting(**(plain | changed))
