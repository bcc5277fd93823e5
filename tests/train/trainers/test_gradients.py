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

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.trainers import attention
from llm_tuning.trainers.attention import ROW_BY_ROW
from llm_tuning.trainers.batching import full_batches, token_budget_batches
from llm_tuning.trainers.flat_rows import flat_arguments
from llm_tuning.trainers.micro_batches import flatten, pad
from llm_tuning.trainers.policy import Policy
from tests.support.families import FAMILIES, VOCABULARY, make_adapted_model, make_model


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


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_in_every_kind_of_model_are_those_of_its_rows_alone(name: str) -> None:
    policy = make_adapted_model(name)
    rows = make_rows([3, 40, 17, 60, 29])
    want_loss, want = row_by_row(policy, rows)
    trained = Policy(policy, device="cpu", dtype=torch.float32)
    may_be_flat = FAMILIES[name].flat
    assert trained.flat_rows in ((True, False) if may_be_flat is None else (may_be_flat,))
    assert trained.head is not None
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
    policy = make_adapted_model("llama")
    rows = make_rows(lengths, seed=seed, learned=[0.1, 0.5, 1.0][seed])
    _, want = row_by_row(policy, rows, dtype=dtype)
    _, got = in_micro_batches(policy, rows, Policy(policy, device="cpu", dtype=dtype), flat=flat)
    assert relative(got, want) < within


def test_the_comparison_sees_rows_that_attend_to_each_other() -> None:
    """The fault that the tests above are for: plain attention over rows laid end to end."""
    policy = make_adapted_model("llama")
    rows = make_rows([40, 30, 30])
    _, want = row_by_row(policy, rows)
    batch = flatten(rows)
    logits = policy(input_ids=batch.input_ids, use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[0, 1:], reduction="sum")
    loss.backward()
    assert relative(gradients(policy), want) > 0.1


def test_gradient_checkpointing_does_not_change_flat_gradients() -> None:
    policy = make_adapted_model("llama")
    rows = make_rows([40, 30, 20])
    _, want = row_by_row(policy, rows)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = Policy(policy, device="cpu", dtype=torch.float32)
    assert trained.flat_rows
    _, got = in_micro_batches(policy, rows, trained, flat=True)
    assert relative(got, want) < 1e-5


def test_a_pass_without_anything_learned_costs_zero_and_still_has_gradients() -> None:
    policy = make_adapted_model("llama")
    row = TokenRow(np.arange(5, 15, dtype=np.int32), np.zeros(10, dtype=bool), 0.0, 0)
    loss = -Policy(policy, device="cpu", dtype=torch.float32).logprobs(flatten([row])).sum()
    loss.backward()
    assert float(loss) == 0.0
    assert float(gradients(policy).abs().max()) == 0.0


def test_many_learned_tokens_go_through_the_output_layer_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_adapted_model("llama")
    rows = make_rows([60, 40, 33], learned=1.0)
    want_loss, want = row_by_row(policy, rows)
    monkeypatch.setattr("llm_tuning.trainers.head.positions_at_a_time", lambda _vocabulary, _device: 7)
    loss, got = in_micro_batches(policy, rows, Policy(policy, device="cpu", dtype=torch.float32), flat=True)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert relative(got, want) < 1e-5


def test_a_model_that_ignores_where_rows_end_is_not_given_flat_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(*args: Any, flat_rows: object = None, **kwargs: Any) -> Any:
        return attention.row_by_row(*args, **kwargs)

    policy = make_adapted_model("llama")
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
