"""Fill a claim for tests, torch-free: `python /opt/stand-in/fill_volume.py /workspace`.

base/tiny              a random two-layer Llama (vocabulary 512, hidden 64) that the real trainer loads as well
datasets/good.jsonl    40 rows for sft
datasets/bad.jsonl     the same with three rows that are refused
datasets/ppo.jsonl     40 rows with rewards
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
from tensors import write_safetensors

_BESIDE = Path(__file__).resolve().with_name("tiny_base.py")  # in the image; in the repository it is in tests/support
make_tokenizer = run_path(str(_BESIDE if _BESIDE.exists() else _BESIDE.parents[2] / _BESIDE.name))["make_tokenizer"]

HIDDEN, LAYERS, VOCABULARY, HEAD = 64, 2, 512, 32
HEADS = HIDDEN // HEAD
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN * 2,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


def fill(root: Path) -> None:
    """Write it all; what is there already is written again."""
    make_base(root / "base" / "tiny")
    good = [{"prompt": f"What is {i} plus {i}?", "output": f"It is {2 * i}."} for i in range(40)]
    bad = [
        *good[:4],
        {"prompt": "no answer"},
        {"prompt": "empty", "output": ""},
        {"prompt": 7, "output": "x"},
        *good[4:],
    ]
    write_rows(root / "datasets" / "good.jsonl", good)
    write_rows(root / "datasets" / "bad.jsonl", bad)
    write_rows(root / "datasets" / "ppo.jsonl", [row | {"reward": i % 5 - 2.0} for i, row in enumerate(good)])


def make_base(path: Path) -> None:
    """Tokenizer, configuration and random weights of a Llama, as save_pretrained writes them."""
    make_tokenizer(path, vocab_size=VOCABULARY)
    (path / "config.json").write_text(json.dumps(CONFIG, indent=2))
    random = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return random.normal(0, 0.02, shape).astype(np.float32)

    ones = np.ones(HIDDEN, dtype=np.float32)
    tensors = {"model.embed_tokens.weight": weights(VOCABULARY, HIDDEN)}
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{layer}.self_attn.{name}.weight"] = weights(HIDDEN, HIDDEN)
        tensors[f"{layer}.mlp.gate_proj.weight"] = weights(HIDDEN * 2, HIDDEN)
        tensors[f"{layer}.mlp.up_proj.weight"] = weights(HIDDEN * 2, HIDDEN)
        tensors[f"{layer}.mlp.down_proj.weight"] = weights(HIDDEN, HIDDEN * 2)
        tensors[f"{layer}.input_layernorm.weight"] = ones
        tensors[f"{layer}.post_attention_layernorm.weight"] = ones
    tensors |= {"model.norm.weight": ones, "lm_head.weight": weights(VOCABULARY, HIDDEN)}
    write_safetensors(path / "model.safetensors", tensors)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
