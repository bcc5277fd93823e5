"""Dropout on adapters' inputs: what it does to an element is nn.Dropout's, and readers of one input share a mask."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from llm_tuning.trainers.dropout import LEVELS, SharedDropout, drop
from llm_tuning.trainers.model import attach_lora, checkpoint_gradients, load_base_model


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_element_is_kept_with_probability_1_minus_p_and_divided_by_it(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 2_000_003
    kept = drop(torch.ones(count, dtype=dtype), p)
    values = kept.unique().tolist()
    assert values == pytest.approx([0.0, 1 / (1 - p)], rel=5e-3 if dtype is torch.bfloat16 else 1e-4)
    share = float((kept != 0).double().mean())
    error = (p * (1 - p) / count) ** 0.5
    assert abs(share - (1 - p)) < 4 * error + 0.5 / LEVELS
    # Neighbours share a draw of the generator, and must know nothing of each other for it.
    on = (kept != 0).double() - share
    for distance in (1, 2, 3, 4, 8):
        correlation = float((on[:-distance] * on[distance:]).mean()) / (share * (1 - share))
        assert abs(correlation) < 4 / count**0.5, f"elements {distance} apart"


def test_the_gradient_goes_where_the_value_went() -> None:
    inputs = torch.randn(7, 33, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    output = drop(inputs, 0.4)
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    torch.testing.assert_close(gradient, output.detach() / inputs.detach())


def test_the_same_seed_gives_the_same_mask_and_the_next_draw_another() -> None:
    ones = torch.ones(1000)
    torch.manual_seed(1)
    first, second = drop(ones, 0.5), drop(ones, 0.5)
    torch.manual_seed(1)
    assert torch.equal(drop(ones, 0.5), first)
    assert not torch.equal(first, second)


def test_readers_of_one_tensor_get_one_mask_and_of_another_tensor_another() -> None:
    shared = SharedDropout(0.5, readers=3).train()
    one, other = torch.ones(1000), torch.ones(1000)
    first = shared(one)
    assert shared(one) is first
    assert not torch.equal(shared(other), first), "as where keys and values read another input than queries"
    for _ in range(2):
        shared(other)
    again = shared(one)
    assert not torch.equal(again, first), "the next pass draws anew"
    assert shared.eval()(one) is one


def test_nothing_of_a_pass_is_kept_once_all_readers_had_it() -> None:
    shared = SharedDropout(0.5, readers=2).train()
    inputs = torch.ones(1000)
    output = weakref.ref(shared(inputs))
    shared(inputs)
    gc.collect()
    assert output() is None


def test_an_adapter_has_one_dropout_for_each_input(tiny_base: Path) -> None:
    base = load_base_model(tiny_base, device="cpu", dtype=torch.float32)
    model = attach_lora(base, rank=2, alpha=4, dropout=0.1, target_modules="all-linear", seed=0)
    found: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_dropout"):
            dropout = module.lora_dropout["default"]
            assert isinstance(dropout, SharedDropout)
            layer, own = name.split(".")[-3], name.rpartition(".")[2]
            found.setdefault(id(dropout), set()).add(f"{layer} {own}")
    groups = [{reader.split()[1] for reader in readers} for readers in found.values()]
    assert all(len({reader.split()[0] for reader in readers}) == 1 for readers in found.values()), "never over layers"
    for group in ({"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}):
        assert groups.count(group) == base.config.num_hidden_layers
    assert not any(type(module) is nn.Dropout and module.p > 0 for module in model.modules())
    assert not any("dropout" in name for name in model.state_dict())


def test_a_forward_pass_that_is_recomputed_draws_the_same_masks(tiny_base: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        base = load_base_model(tiny_base, device="cpu", dtype=torch.float32)
        model = attach_lora(base, rank=2, alpha=4, dropout=0.3, target_modules="all-linear", seed=0)
        if checkpointing:
            checkpoint_gradients(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.manual_seed(0)
        for parameter in trained:
            parameter.data = torch.randn_like(parameter) * 0.1
        ids = torch.arange(4, 30)[None]
        for _ in range(2):  # what the first pass left behind must not reach the second
            model.zero_grad()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)
