"""Rows beyond a rope's original length change no other row, and are themselves as they are alone.

The reference is a model that has seen nothing else, with one row in a forward: transformers picks the factors of
longrope and the base of dynamic rope by the longest row of a pass, and a dynamic rope remembers the longest one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_tuning.data.token_rows import TokenRow, TokenRows, TokenRowsWriter
from llm_tuning.trainers.evaluate import evaluate_policy
from llm_tuning.trainers.micro_batches import MicroBatches, flatten, pad
from llm_tuning.trainers.model import attach_lora
from llm_tuning.trainers.output_tokens import TokenLayout, score_rows
from llm_tuning.trainers.policy import Policy
from tests.support.families import SIZES, VOCABULARY

ORIGINAL = 16
LENGTHS = [5, 40, 16, 17, 25, 12, 40, 3, 33]
"""On both sides of it, longest neither first nor last, and one that comes after a longer one."""
HALF = SIZES["head_dim"] // 2
LONGROPE = {
    "rope_theta": 10000.0,
    "short_factor": [1.0] * HALF,
    "long_factor": [1.5 + 0.7 * i for i in range(HALF)],
}
DYNAMIC = {"rope_theta": 10000.0, "factor": 4.0}
SHORT = {"max_position_embeddings": ORIGINAL}
OLD = {"original_max_position_embeddings": ORIGINAL, "max_position_embeddings": 256}
LAYERS = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
NESTED = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "dynamic", **DYNAMIC},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phi3", {**OLD, "rope_scaling": {"type": "longrope", **LONGROPE}}),
    "longrope of another model": (
        "llama",
        {
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "original_max_position_embeddings": ORIGINAL,
                "factor": 16.0,
                **LONGROPE,
            },
        },
    ),
    "dynamic": ("llama", {**SHORT, "rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    "dynamic in some layers": ("gemma3_text", {**SHORT, **LAYERS, "rope_parameters": NESTED}),
    "longrope with scales by length": (
        "phimoe",
        {
            **OLD,
            "num_local_experts": 2,
            "num_experts_per_tok": 2,
            "rope_scaling": {
                "type": "longrope",
                "original_max_position_embeddings": ORIGINAL,
                "short_mscale": 1.1,
                "long_mscale": 1.4,
                **LONGROPE,
            },
        },
    ),
}


def make_model(name: str) -> PeftModel:
    """A model with a LoRA that does something; every call gives the same one, which has seen no row."""
    return copy.deepcopy(_model(name))


@cache
def _model(name: str) -> PeftModel:
    kind, differing = MODELS[name]
    set_seed(0)
    config = CONFIG_MAPPING[kind](**copy.deepcopy(SIZES | differing))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.requires_grad_(False)
    adapted = attach_lora(model, rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "qkv_proj", "o_proj"], seed=1)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.1)
    return adapted.eval()


def make_rows(lengths: list[int] = LENGTHS) -> list[TokenRow]:
    random = np.random.default_rng(0)
    return [
        TokenRow(random.integers(3, VOCABULARY, n).astype(np.int32), np.arange(n) >= 1, float(i % 3), i)
        for i, n in enumerate(lengths)
    ]


def gradients(model: PeftModel) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def alone(name: str, row: TokenRow) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a row's tokens and the gradient of their sum, from a model that has seen nothing else."""
    logprobs, gradient = [], torch.zeros(0)
    for sequence in row.sequences:
        model = make_model(name)
        model.get_base_model().set_attn_implementation("eager")
        ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
        of_all = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        logprobs.append(of_all.gather(1, ids[0, 1:, None])[:, 0])
        logprobs[-1].sum().backward()
        fresh = gradients(model)
        gradient = fresh if not len(gradient) else gradient + fresh
    return torch.cat(logprobs).detach(), gradient


@cache
def rows_alone(name: str) -> list[tuple[Tensor, Tensor]]:
    return [alone(name, row) for row in make_rows()]


def _passes(rows: list[TokenRow], *, size: int) -> Iterator[list[TokenRow]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@pytest.mark.parametrize("flat", [True, False], ids=["end to end", "padded"])
@pytest.mark.parametrize("size", [len(LENGTHS), 2], ids=["one pass", "two rows a pass"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_rows_alone(name: str, flat: bool, size: int) -> None:
    rows, want = make_rows(), rows_alone(name)
    model = make_model(name)
    policy = Policy(model, device="cpu", dtype=torch.float32)
    if flat and not policy.flat_rows:
        pytest.skip("in the trial on this processor the family's rows are padded")
    loss = 0.0
    for chosen in _passes(rows, size=size):
        total = policy.logprobs(flatten(chosen) if flat else pad(chosen)).sum()
        total.backward()
        loss += total.item()
    wanted = sum(gradient for _, gradient in want)
    assert loss == pytest.approx(float(sum(logprobs.sum() for logprobs, _ in want)), rel=1e-5)
    assert float((gradients(model) - wanted).norm() / wanted.norm()) < 1e-5


def test_the_comparison_sees_a_rope_of_the_whole_pass() -> None:
    """The fault that the tests above are for: transformers' own forward over rows of both kinds."""
    short, long = make_rows([12, 40])
    for name in MODELS:
        both = pad([short, long])
        of_all = make_model(name)(input_ids=both.input_ids, use_cache=False).logits[0, :11].log_softmax(-1).detach()
        got = of_all.gather(1, both.input_ids[0, 1:12, None])[:, 0]
        assert float((got - alone(name, short)[0]).abs().max()) > 1e-3, name


@pytest.mark.parametrize("flat", [True, False], ids=["end to end", "padded"])
def test_sequences_of_one_row_are_each_of_their_own_length(flat: bool) -> None:
    ids = np.random.default_rng(1).integers(3, VOCABULARY, 52).astype(np.int32)
    learned = np.ones(52, dtype=np.bool_)
    learned[[0, 12]] = False
    row = TokenRow(ids, learned, math.nan, 0, (12, 40))
    policy = Policy(make_model("longrope"), device="cpu", dtype=torch.float32)
    got = policy.logprobs(flatten([row]) if flat else pad([row]))
    assert torch.allclose(got, alone("longrope", row)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
@pytest.mark.parametrize("flat", [True, False], ids=["end to end", "padded"])
def test_evaluation_and_ppo_score_rows_as_they_are_alone(tmp_path: Path, name: str, flat: bool) -> None:
    shown = make_rows()
    with TokenRowsWriter(tmp_path) as writer:
        for row in shown:
            writer.append(row.input_ids, row.learned, row_number=row.row_number, number=row.number, text="-")
    rows = TokenRows.open(tmp_path)
    want = torch.cat([logprobs for logprobs, _ in rows_alone(name)])
    policy = Policy(make_model(name), device="cpu", dtype=torch.float32, with_values=True)
    batches = MicroBatches(rows, 10_000, flat, "cpu")
    every = np.arange(len(rows))

    assert evaluate_policy(policy, batches, every).loss == pytest.approx(-float(want.mean()), rel=1e-5)
    logprobs, _ = score_rows(policy, batches, TokenLayout(rows, every), every, "in a test")
    assert torch.allclose(logprobs, want, atol=1e-4)
