"""Loss and gradients of sft and ppo against the plain form in fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.ppo import ppo_loss
from tests.gpu.findings import Finding, Place, below
from tests.gpu.models import (
    away,
    gradients,
    micro_batches,
    moved,
    plain_outputs,
    random_rows,
    skewed_lengths,
    with_lora,
)

LIMITS = {
    ("sft", torch.float32): (1e-5, 1e-4),
    ("sft", torch.bfloat16): (1e-2, 5e-2),
    ("ppo", torch.float32): (1e-5, 1e-4),
    ("ppo", torch.bfloat16): (1e-2, 1e-1),  # rounding moves some tokens over the edge of the clipped range
}
"""Of (loss, gradient), as shares. TF32 instead of fp32 would put the gradient off by 3e-4."""
SETTINGS = {"clip_range": 0.2, "value_clip_range": 0.2, "value_loss_coef": 0.1, "kl_coef": 0.05}
VOCABULARY = 2048


def step_gradients(place: Place) -> Iterator[Finding]:
    """Compare a step of two families, in two modes and two precisions."""
    import transformers as tf

    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": place.choose(cuda=4, cpu=2)}
    size |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    for name, kind, config in (
        ("llama", tf.LlamaForCausalLM, tf.LlamaConfig(**size)),
        ("qwen3", tf.Qwen3ForCausalLM, tf.Qwen3Config(**size, head_dim=32, tie_word_embeddings=True)),
    ):
        torch.manual_seed(0)
        lora = with_lora(kind(config).bfloat16()).float()  # weights that both precisions hold
        lengths = skewed_lengths(place.choose(cuda=32, cpu=10), mean=60, longest=200)
        rows = random_rows(lengths, VOCABULARY)
        for mode in ("sft", "ppo"):
            known = _known(rows) if mode == "ppo" else None
            want_loss, want = _plain(lora, rows, known)
            for dtype in (torch.float32, torch.bfloat16):
                loss_limit, gradient_limit = LIMITS[mode, dtype]
                loss, got = _recipes(moved(lora, place.device, dtype, with_values=mode == "ppo"), rows, known)
                what = f"{name}, {mode}, {str(dtype).removeprefix('torch.')}"
                yield below(f"{what}: loss off", abs(loss / want_loss - 1), loss_limit)
                yield below(f"{what}: gradient off", away(got, want), gradient_limit)


def _known(rows: list[TokenRow]) -> dict[int, dict[str, Tensor]]:
    """Make up what ppo has recorded of each row: some of the ratios are clipped, some are not."""
    found = {}
    for row in rows:
        generator = torch.Generator().manual_seed(row.row_number)
        n = int(row.learned.sum())
        old = torch.randn(n, generator=generator) * 0.3 - 7.6
        found[row.row_number] = {
            "rewards_N": torch.full((n,), float(torch.randn((), generator=generator))),
            "reference_logprobs_N": old + 0.1,
            "old_logprobs_N": old,
            "old_values_N": torch.zeros(n),
        }
    return found


def _loss(logprobs: Tensor, values: Tensor, known: dict[str, Tensor] | None) -> Tensor:
    if known is None:
        return -logprobs.sum()
    known = {name: tensor.to(logprobs.device) for name, tensor in known.items()}
    return ppo_loss(logprobs, values, **known, **SETTINGS)[0]


def _plain(lora: Any, rows: list[TokenRow], known: dict[int, dict[str, Tensor]] | None) -> tuple[float, Tensor]:
    """Compute (loss, gradient) row by row through the model's own forward."""
    policy = moved(lora, "cpu", torch.float32, with_values=known is not None)
    policy.model.set_attn_implementation("sdpa")
    total = 0.0
    for row in rows:
        outputs = plain_outputs(policy.model, row, policy.value_head)
        loss = _loss(*outputs, known[row.row_number] if known else None)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(policy)


def _recipes(policy: Policy, rows: list[TokenRow], known: dict[int, dict[str, Tensor]] | None) -> tuple[float, Tensor]:
    """Compute (loss, gradient) in micro-batches as the recipes do."""
    total = 0.0
    with disable_input_dtype_casting(policy.model):
        for batch in micro_batches(rows, 512, flat=policy.flat_rows):
            if known is None:
                loss = _loss(policy.logprobs(batch), torch.empty(0), None)
            else:
                of_rows = [known[rows[int(i)].row_number] for i in batch.rows]
                joined = {name: torch.cat([row[name] for row in of_rows]) for name in of_rows[0]}
                loss = _loss(*policy.logprobs_and_values(batch), joined)
            loss.backward()
            total += float(loss.detach())
    return total, gradients(policy)
