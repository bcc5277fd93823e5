"""The gradients of a step are those of its rows one by one, however they are laid out, in models of many kinds.

Gradients are compared, never losses alone: rows that see each other change the loss by a fraction of a percent and
the gradients by half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.trainers import attention
from llm_tuning.trainers.attention import ROW_BY_ROW
from llm_tuning.trainers.batching import full_batches, token_budget_batches
from llm_tuning.trainers.flat_rows import flat_arguments
from llm_tuning.trainers.micro_batches import flatten, pad
from llm_tuning.trainers.model import attach_lora
from llm_tuning.trainers.policy import Policy

VOCABULARY = 96
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FULL_AND_SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256} | dict.fromkeys(
    ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
)

# name: (model type, what differs from SMALL, rows may be flat, the output layer is known). None: on some processors
# the products of experts round with the number of rows, which are padded then.
MODELS: dict[str, tuple[str, dict[str, Any], bool | None, bool]] = {
    "llama": ("llama", {}, True, True),
    "tied-qwen3": ("qwen3", {"tie_word_embeddings": True}, True, True),
    "sliding-mistral": ("mistral", {"sliding_window": 16}, True, True),
    "sliding-gemma3": ("gemma3_text", FULL_AND_SLIDING, True, True),
    "capped-gemma2": ("gemma2", FULL_AND_SLIDING, False, True),
    "scaled-cohere": ("cohere", {"logit_scale": 0.25}, True, True),
    "scaled-granite": ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}, True, True),
    "biased-phi": ("phi", {}, True, True),
    "learned-positions-gpt2": ("gpt2", GPT2, True, True),
    "convolution-lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}, False, True),
    "sinks-gpt-oss": ("gpt_oss", {"num_local_experts": 4, **FULL_AND_SLIDING}, False, True),
    "experts-mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, None, True),
}


def make_model(name: str) -> PreTrainedModel:
    kind, differing, _, _ = MODELS[name]
    set_seed(0)
    config = CONFIG_MAPPING[kind](**(SMALL | differing))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_policy(name: str) -> PeftModel:
    """A small random model of the kind with a LoRA that already does something, without dropout."""
    model = make_model(name)
    model.requires_grad_(False)
    targets = ["c_attn"] if name.endswith("gpt2") else "all-linear"
    policy = attach_lora(model, rank=4, alpha=8, dropout=0.0, target_modules=targets, seed=1)
    for parameter_name, parameter in policy.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.1)
    return policy


def make_rows(lengths: list[int], *, seed: int = 0, learned: float = 0.5) -> list[TokenRow]:
    random = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(lengths):
        flags = random.random(length) < learned
        flags[0], flags[-1] = False, True
        rows.append(TokenRow(random.integers(3, VOCABULARY, length).astype(np.int32), flags, 0.0, number))
    return rows


def gradients(policy: PeftModel) -> Tensor:
    parts = [p.grad.flatten() for p in policy.parameters() if p.requires_grad and p.grad is not None]
    policy.zero_grad()
    return torch.cat(parts)


def row_by_row(policy: PeftModel, rows: list[TokenRow], *, dtype: torch.dtype = torch.float32) -> tuple[float, Tensor]:
    """Loss and gradients by the model's own loss, each row alone, summed."""
    total = 0.0
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(row.learned), ids, -100)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = policy(input_ids=ids, use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
        loss.backward()
        total += loss.item()
    return total, gradients(policy)


def in_micro_batches(policy: PeftModel, rows: list[TokenRow], trained: Policy, *, flat: bool) -> tuple[float, Tensor]:
    cut = (full_batches if flat else token_budget_batches)([len(row.input_ids) for row in rows], 100)
    total = 0.0
    for at in cut:
        chosen = [rows[i] for i in at]
        loss = -trained.logprobs(flatten(chosen) if flat else pad(chosen)).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(policy)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_in_every_kind_of_model_are_those_of_its_rows_alone(name: str) -> None:
    policy = make_policy(name)
    rows = make_rows([3, 40, 17, 60, 29])
    want_loss, want = row_by_row(policy, rows)
    trained = Policy(policy, device="cpu", dtype=torch.float32)
    may_be_flat, head_is_known = MODELS[name][2:]
    assert trained.flat_rows in ((True, False) if may_be_flat is None else (may_be_flat,))
    assert (trained.head is not None) == head_is_known
    for flat in {False, trained.flat_rows}:
        loss, got = in_micro_batches(policy, rows, trained, flat=flat)
        assert loss == pytest.approx(want_loss, rel=1e-5)
        assert relative(got, want) < 1e-5, f"flat={flat}"


LENGTHS = {
    "equal": [32] * 6,
    "one": [50],
    "skewed": [2, 3, 5, 9, 80, 99, 4],
    "random": np.random.default_rng(3).integers(2, 90, 12).tolist(),
}


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_gradients_over_lengths_seeds_and_dtypes(
    seed: int, lengths: list[int], flat: bool, dtype: torch.dtype, within: float
) -> None:
    policy = make_policy("llama")
    rows = make_rows(lengths, seed=seed, learned=[0.1, 0.5, 1.0][seed])
    _, want = row_by_row(policy, rows, dtype=dtype)
    _, got = in_micro_batches(policy, rows, Policy(policy, device="cpu", dtype=dtype), flat=flat)
    assert relative(got, want) < within


def test_the_comparison_sees_rows_that_attend_to_each_other() -> None:
    """The fault that the tests above are for: plain attention over rows laid end to end."""
    policy = make_policy("llama")
    rows = make_rows([40, 30, 30])
    _, want = row_by_row(policy, rows)
    batch = flatten(rows)
    logits = policy(input_ids=batch.input_ids, use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[0, 1:], reduction="sum")
    loss.backward()
    assert relative(gradients(policy), want) > 0.1


def test_gradient_checkpointing_does_not_change_flat_gradients() -> None:
    policy = make_policy("llama")
    rows = make_rows([40, 30, 20])
    _, want = row_by_row(policy, rows)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = Policy(policy, device="cpu", dtype=torch.float32)
    assert trained.flat_rows
    _, got = in_micro_batches(policy, rows, trained, flat=True)
    assert relative(got, want) < 1e-5


def test_a_pass_without_anything_learned_costs_zero_and_still_has_gradients() -> None:
    policy = make_policy("llama")
    row = TokenRow(np.arange(5, 15, dtype=np.int32), np.zeros(10, dtype=bool), 0.0, 0)
    loss = -Policy(policy, device="cpu", dtype=torch.float32).logprobs(flatten([row])).sum()
    loss.backward()
    assert float(loss) == 0.0
    assert float(gradients(policy).abs().max()) == 0.0


def test_many_learned_tokens_go_through_the_output_layer_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("llama")
    rows = make_rows([60, 40, 33], learned=1.0)
    want_loss, want = row_by_row(policy, rows)
    monkeypatch.setattr("llm_tuning.trainers.head.positions_at_a_time", lambda _vocabulary, _device: 7)
    loss, got = in_micro_batches(policy, rows, Policy(policy, device="cpu", dtype=torch.float32), flat=True)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert relative(got, want) < 1e-5


def test_a_model_that_ignores_where_rows_end_is_not_given_flat_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(*args: Any, flat_rows: object = None, **kwargs: Any) -> Any:
        return attention.row_by_row(*args, **kwargs)

    policy = make_policy("llama")
    monkeypatch.setattr(
        "llm_tuning.trainers.attention.AttentionInterface._global_mapping", {ROW_BY_ROW: forgets, "sdpa": forgets}
    )
    assert not Policy(policy, device="cpu", dtype=torch.float32).flat_rows


def test_with_attention_row_by_row_padded_evaluation_gives_the_same_logits() -> None:
    model = make_model("sliding-mistral").eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, VOCABULARY, (2, 40)))
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        assert Policy(model, device="cpu", dtype=torch.float32).flat_rows
        assert model.config._attn_implementation == ROW_BY_ROW
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before, rtol=0, atol=0)
        flat = model.model(input_ids=ids.reshape(1, 80), **flat_arguments(model.device, [40, 40])).last_hidden_state
    torch.testing.assert_close(model.lm_head(flat).reshape(2, 40, -1), before, rtol=1e-4, atol=1e-4)
