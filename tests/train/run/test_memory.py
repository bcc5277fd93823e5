"""The bill against what torch really allocates: saved tensors, parameters, optimizer states of the recipe's parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from llm_tuning.api.tuning import LoraSpec
from llm_tuning.models.shape import adapter_parameters, read_shape
from llm_tuning.run.memory import (
    activation_bytes,
    chunk_bytes,
    device_parts,
    evaluation_parts,
    states_bytes,
    total,
)
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.model import attach_lora, checkpoint_gradients, load_base_model
from llm_tuning.trainers.policy import Policy
from tests.support.fake_cuda import DEVICE, fake_cuda, onto_cuda
from tests.support.shapes import make_setting
from tests.support.tiny_base import make_tokenizer

LENGTHS = [300, 212]
RANK = 4
SETTING = make_setting(rank=RANK, tokens=sum(LENGTHS), learned=sum(LENGTHS) - len(LENGTHS))


def kept_by_autograd(base: Path, *, dtype: torch.dtype, dropout: float, targets: str) -> tuple[int, Any]:
    """Bytes of the distinct tensors that one pass saves beyond the parameters, and the model."""
    model = attach_lora(
        load_base_model(base, device="cpu", dtype=dtype),
        rank=RANK,
        alpha=8,
        dropout=dropout,
        target_modules=targets if targets == "all-linear" else targets.split(","),
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
    slopes = states_bytes(shape, setting) // 2  # the states are gone when the head is done
    expected = activation_bytes(shape, chosen, setting) + slopes
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


def most_allocated(work: Callable[[], object]) -> int:
    """Bytes that are allocated at once, at most, while `work` runs, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.fixture(scope="module")
def grouped_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, grouped keys, and a vocabulary of which a CPU takes 512 positions at a time."""
    path = tmp_path_factory.mktemp("grouped")
    make_tokenizer(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("dtype", "checkpointing", "learned"),
    [
        (torch.float32, False, 1.0),
        (torch.float32, True, 1.0),
        (torch.bfloat16, False, 0.05),
        (torch.bfloat16, True, 0.05),
        (torch.bfloat16, False, 1.0),
    ],
    ids=["logits", "logits, checkpointed", "bf16, few learned", "bf16, few learned, checkpointed", "bf16, logits"],
)
def test_the_peaks_of_training_and_evaluation_are_what_torch_allocates(
    grouped_base: Path, dtype: torch.dtype, checkpointing: bool, learned: float
) -> None:
    """Beyond what stays: of a micro-batch, forward and backward, and of the same rows scored."""
    lengths = [500, 300, 224]
    model = attach_lora(
        load_base_model(grouped_base, device="cpu", dtype=dtype),
        rank=RANK,
        alpha=8,
        dropout=0.1,
        target_modules="all-linear",
        seed=0,
    )
    policy = Policy(model, device="cpu", dtype=dtype)
    assert policy.flat_rows
    if checkpointing:
        checkpoint_gradients(model)
    ids = torch.arange(sum(lengths))[None] % 500
    labels = torch.full_like(ids, -100)
    labels[0, 1 : int(learned * sum(lengths))] = 7
    batch = MicroBatch(ids, labels, lengths)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with disable_input_dtype_casting(model):
            (-policy.logprobs(batch).sum()).backward()

    step()
    model.zero_grad(set_to_none=True)
    training = most_allocated(step)
    model.zero_grad(set_to_none=True)
    policy.eval()
    with disable_input_dtype_casting(model):
        evaluation = most_allocated(lambda: policy.score(batch))

    setting = replace(
        SETTING,
        dropout=True,
        tokens=sum(lengths),
        learned=int((labels != -100).sum()),
        number_bytes=dtype.itemsize,
        checkpointing=checkpointing,
        scored=sum(lengths),
    )
    shape = read_shape(grouped_base)
    stays = {"base", "adapter", "optimizer", "process", "fragmentation"}
    copies = adapter_parameters(shape.linears, RANK) * (2 if dtype == torch.bfloat16 else 0)
    trained, seen = (
        copies + sum(part.size for part in parts if part.name not in stays)
        for parts in (device_parts(shape, shape.linears, setting), evaluation_parts(shape, shape.linears, setting))
    )
    assert 0.97 <= trained / training <= 1.2
    assert 0.97 <= seen / evaluation <= 1.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_peaks_on_cuda_are_what_its_operations_allocate(tmp_path: Path, dtype: torch.dtype) -> None:
    """A pass of 8,192 tokens on a card whose tensors have no numbers (see `fake_cuda`).

    In bf16 FlashAttention takes grouped keys as they are; in fp32 they are repeated.
    """
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    make_tokenizer(tmp_path)
    base = LlamaForCausalLM(config).to(dtype)
    base.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    lengths = [1024] * 8
    ids = torch.arange(sum(lengths))[None] % 500
    labels = ids.clone()
    labels[0, ::1024] = -100
    batch = MicroBatch(ids, labels, lengths)
    setting = replace(
        SETTING,
        dropout=True,
        tokens=sum(lengths),
        learned=sum(lengths) - len(lengths),
        number_bytes=dtype.itemsize,
        cuda=True,
        scored=sum(lengths),
    )
    with fake_cuda() as work:
        model = attach_lora(
            base.requires_grad_(False), rank=RANK, alpha=8, dropout=0.1, target_modules="all-linear", seed=0
        )
        policy = Policy(onto_cuda(model), device=DEVICE, dtype=dtype)
        assert policy.flat_rows
        torch.clear_autocast_cache()
        stays = work.held
        work.clear()
        with disable_input_dtype_casting(model):
            (-policy.logprobs(batch).sum()).backward()
            training = work.peak - stays
            policy.zero_grad()
            gc.collect()
            stays = work.held
            work.clear()
            policy.eval()
            policy.score(batch)
            evaluation = work.peak - stays
    beside = {"base", "adapter", "optimizer", "CUDA context", "fragmentation"}
    trained, seen = (
        sum(part.size for part in parts if part.name not in beside)
        for parts in (device_parts(shape, shape.linears, setting), evaluation_parts(shape, shape.linears, setting))
    )
    assert 0.98 <= trained / training <= 1.05
    assert 0.98 <= seen / evaluation <= 1.05


def test_what_costs_memory_and_what_saves_it(tiny_base: Path) -> None:
    shape = read_shape(tiny_base)

    def needed(**changed: Any) -> int:
        return total(device_parts(shape, shape.linears, replace(SETTING, **changed)))

    now = needed()
    assert needed(checkpointing=True) < now
    assert needed(number_bytes=2) < now
    assert needed(four_bits=True) < now
    assert needed(tokens=SETTING.tokens // 2) < now
    assert needed(rank=64) > now
    assert needed(dropout=True) > now
    assert needed(start_adapter=True) > now
    assert needed(processes=2) > now
    uncapped = chunk_bytes(shape, SETTING, SETTING.learned)
    assert chunk_bytes(replace(shape, head_is_plain=False), SETTING, SETTING.learned) > uncapped
