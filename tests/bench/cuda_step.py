"""What one optimizer step of SFT asks of a GPU, counted without one.

The run's own loop, with fake tensors on CUDA (see `tests.support.fake_cuda`): a count has no noise, and no clock. It is
made with one and with two decoder layers; each further one asks for what the second did.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from transformers import AutoModelForCausalLM, Qwen2Config

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from llm_tuning.trainers.loop import fit
from llm_tuning.trainers.model import attach_lora
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.recipe import Task
from llm_tuning.trainers.sft import Sft
from tests.support.fake_cuda import DEVICE, Work, fake_cuda, onto_cuda
from tests.support.models import make_light_base
from tests.support.train_run import KeepingReporter, make_run

TOKENS = 4096
ROWS = 20
STEPS = 2
"""The second is counted: the first makes the optimizer's state."""

QWEN = {"vocab_size": 151_936, "max_position_embeddings": 32_768, "tie_word_embeddings": True}
SHAPES: dict[str, Qwen2Config] = {
    "0.5B": Qwen2Config(
        **QWEN,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "1.5B": Qwen2Config(
        **QWEN,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
    ),
    "7B": Qwen2Config(
        **QWEN | {"vocab_size": 152_064, "tie_word_embeddings": False},
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
}


class _CountedError(Exception):
    """Ends the run: its last step would be saved."""


def count_step(shape: str, tokens: int = TOKENS) -> dict[str, float]:
    """Count a step of `tokens` tokens in 20 rows, all of them learned (plain text), of the base of that shape.

    Returns operations launched, GiB that were read of the output layer, times that the host waits, and peak GiB.
    """
    one, two = (_count(shape, layers, tokens) for layers in (1, 2))
    more = SHAPES[shape].num_hidden_layers - 1
    return {name: count + more * (two[name] - count) for name, count in one.items()}


def _count(shape: str, layers: int, tokens: int) -> dict[str, float]:
    config = copy.deepcopy(SHAPES[shape])
    config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    counted: list[dict[str, float]] = []
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
        model = attach_lora(base, rank=16, alpha=32, dropout=0.05, target_modules="all-linear", seed=0)
    with tempfile.TemporaryDirectory() as folder, fake_cuda() as work:
        make_light_base(Path(folder) / "base")
        rows = _rows(Path(folder) / "rows", tokens)
        policy = Policy(onto_cuda(model), device=DEVICE, dtype=torch.bfloat16).train()
        assert policy.head is not None

        class Counter(KeepingReporter):
            def step(self, *args: Any) -> None:
                super().step(*args)
                counted.append(_taken(work, policy.head.weight))
                if len(counted) == STEPS:
                    raise _CountedError

        training = {"precision": "bf16", "batch_size": ROWS, "max_steps": STEPS + 1, "max_tokens_per_pass": tokens}
        run = make_run(Path(folder), Path(folder) / "base", training=training, reporter=Counter(), device=DEVICE)
        everything = np.arange(len(rows))
        task = Task.of(run, policy, rows, everything, everything[:0])
        work.clear()
        with suppress(_CountedError), disable_input_dtype_casting(policy.model):
            fit(task, Sft(task))
    return counted[-1]


def _rows(folder: Path, tokens: int) -> TokenRows:
    """Write a step's rows, twice over: lognormal lengths with `tokens` tokens in all."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(tokens / ROWS), 0.6, ROWS), 16, tokens // 4)
    lengths = np.maximum(8, lengths * tokens / lengths.sum()).astype(int)
    lengths[-1] += tokens - lengths.sum()
    with TokenRowsWriter(folder) as writer:
        for number, length in enumerate(lengths.tolist()):
            writer.append(np.full(length, 5, np.int32), np.arange(length) > 0, row_number=number, text="")
    return TokenRows.open(folder)


def _taken(work: Work, head: torch.Tensor) -> dict[str, float]:
    """Return what has been counted since the last call."""
    found = {
        "launches": work.launches.total(),
        "head_gib": work.read_of(head) / 2**30,
        "waits": work.syncs.total(),
        "peak_gib": work.peak / 2**30,
    }
    work.clear()
    return found
