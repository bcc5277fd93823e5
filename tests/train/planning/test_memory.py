"""The bill against what torch really allocates: saved tensors, parameters, optimizer states of the recipe's parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_tuning.api.tuning import LoraSpec
from llm_tuning.models.shape import adapter_parameters, read_shape
from llm_tuning.modes.sft import SFT
from llm_tuning.planning.memory import Setting, activation_bytes, device_parts, head_bytes
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.policy import Policy

LENGTHS = [300, 212]
RANK = 4
SETTING = Setting(
    memory=SFT.memory,
    rank=RANK,
    dropout=False,
    tokens=sum(LENGTHS),
    learned=sum(LENGTHS) - len(LENGTHS),
    number_bytes=4,
    four_bits=False,
    checkpointing=False,
    cuda=False,
    processes=1,
    start_adapter=False,
)


def kept_by_autograd(base: Path, *, dtype: torch.dtype, dropout: float, targets: str) -> tuple[int, Any]:
    """Bytes of the distinct tensors that one pass saves beyond the parameters, and the model."""
    from peft.helpers import disable_input_dtype_casting

    model = attach_lora(
        load_base_model(base, device="cpu", dtype=dtype),
        rank=RANK,
        alpha=8,
        dropout=dropout,
        target_modules=LoraSpec(target_modules=targets).module_names(),
        seed=0,
    )
    loss = Policy(model, device="cpu", dtype=dtype)
    assert loss.flat_rows
    ids = torch.arange(sum(LENGTHS))[None] % 500
    labels = ids.clone()
    labels[0, [0, LENGTHS[0]]] = -100
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), disable_input_dtype_casting(model):
        total = -loss.logprobs(MicroBatch(ids, labels, LENGTHS)).sum()
    total.backward()
    return sum(saved.values()), model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_activations_are_what_autograd_keeps(tiny_base: Path, dtype: torch.dtype, dropout: float, targets: str) -> None:
    found, model = kept_by_autograd(tiny_base, dtype=dtype, dropout=dropout, targets=targets)
    shape = read_shape(tiny_base)
    setting = replace(SETTING, dropout=dropout > 0, number_bytes=dtype.itemsize)
    chosen = shape.targets(LoraSpec(target_modules=targets))
    states = setting.learned * shape.hidden * dtype.itemsize  # the head's slopes
    expected = activation_bytes(shape, chosen, setting) + states
    if dtype == torch.bfloat16:
        expected += 2 * adapter_parameters(chosen, RANK)
    assert 0.98 <= expected / found <= 1.1
    assert adapter_parameters(chosen, RANK) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_gradients_and_optimizer_are_four_and_eight_bytes_a_parameter(tiny_base: Path) -> None:
    _, model = kept_by_autograd(tiny_base, dtype=torch.float32, dropout=0.0, targets="all-linear")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    shape = read_shape(tiny_base)
    parts = {part.name: part.size for part in device_parts(shape, shape.linears, SETTING)}
    assert parts["gradients"] == sum(p.grad.nbytes for p in trained)
    assert parts["adapter"] == sum(p.nbytes for p in trained)
    states = [s for state in optimizer.state.values() for s in (state["exp_avg"], state["exp_avg_sq"])]
    assert parts["optimizer"] == sum(state.nbytes for state in states)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    assert parts["base"] == frozen


def test_what_costs_memory_and_what_saves_it(tiny_base: Path) -> None:
    shape = read_shape(tiny_base)

    def total(**changed: Any) -> int:
        return sum(part.size for part in device_parts(shape, shape.linears, replace(SETTING, **changed)))

    now = total()
    assert total(checkpointing=True) < now
    assert total(number_bytes=2) < now
    assert total(four_bits=True) < now
    assert total(tokens=SETTING.tokens // 2) < now
    assert total(rank=64) > now
    assert total(dropout=True) > now
    assert total(start_adapter=True) > now
    assert total(processes=2) > now
    uncapped = head_bytes(shape, SETTING)
    assert head_bytes(replace(shape, head_is_plain=False), SETTING) > uncapped
