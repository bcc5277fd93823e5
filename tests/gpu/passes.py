"""Measures passes of real shapes with random weights, made on the device: tokens a second, launches, memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.models.operations import Operations
from llm_tuning.models.shape import ModelShape
from llm_tuning.modes import MODES
from llm_tuning.run.memory import device_parts
from llm_tuning.run.setting import Setting
from llm_tuning.trainers.micro_batches import MicroBatch, flatten
from llm_tuning.trainers.model import attach_lora, checkpoint_gradients
from llm_tuning.trainers.policy import Policy
from tests.gpu.findings import Place
from tests.gpu.models import random_rows, skewed_lengths
from tests.support.shapes import QWEN_25_05B, QWEN_25_7B, QWEN_25_15B, llama_shape

RANK = 16
HEAD_SIZES = {"0.5B": 64, "1.5B": 128, "7B": 128, "tiny": 16}
SHAPES = {"0.5B": QWEN_25_05B, "1.5B": QWEN_25_15B, "7B": QWEN_25_7B}
SHAPES["tiny"] = llama_shape(hidden=64, layers=2, vocabulary=4096, query=64, key=32, intermediate=128)
"""What the rehearsal on a CPU goes through."""
GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """A pass forward and backward with a step of the optimizer: its best seconds, and bytes at its peak."""

    tokens: int
    learned: int
    squares: int
    """Sum of the squared lengths of the rows."""
    seconds: float
    peak: int
    """0 on a CPU."""

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds

    def mfu(self, shape: ModelShape, tflops: float) -> float:
        """Return the share of a ceiling that the operations of the arithmetic take; recomputed ones do not count."""
        operations = Operations.of(shape, shape.linears, RANK)
        done = operations.training(tokens=self.tokens, squares=self.squares, learned=self.learned)
        return done / self.seconds / (tflops * 1e12)


class Bench:
    """A base of a known shape with an adapter that trains in bf16."""

    def __init__(self, place: Place, name: str, *, checkpointing: bool = False) -> None:
        self.place, self.name, self.shape, self.checkpointing = place, name, SHAPES[name], checkpointing
        torch.manual_seed(0)
        self.model = make_base_on(place.device, name)
        lora = attach_lora(self.model, rank=RANK, alpha=32, dropout=0.05, target_modules="all-linear", seed=0)
        self.policy = Policy(lora.to(place.device), device=place.device, dtype=torch.bfloat16)
        if checkpointing:
            checkpoint_gradients(lora)
        self.policy.train()
        self.optimizer = torch.optim.AdamW(self.policy.adapter(), lr=1e-5, fused=place.cuda)

    def rows(self, tokens: int) -> list[TokenRow]:
        """Draw rows of 250 tokens on average that together have just less than `tokens`."""
        rows: list[TokenRow] = []
        for row in random_rows(skewed_lengths(tokens, mean=min(250, tokens / 8), longest=2048), self.shape.vocabulary):
            if sum(len(one.input_ids) for one in rows) + len(row.input_ids) > tokens:
                return rows
            rows.append(row)
        return rows

    def step(self, batch: MicroBatch) -> None:
        with disable_input_dtype_casting(self.policy.model):
            (-self.policy.logprobs(batch).sum() / 1000).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure(self, rows: Sequence[TokenRow], seconds: float) -> Measured:
        """Repeat a step on `rows`, end to end, for some seconds, and take the best."""
        batch = flatten(rows)
        lengths = [len(row.input_ids) for row in rows]
        best, peak = best_of(self.place, lambda: self.step(batch), seconds)
        learned = sum(int(row.learned.sum()) for row in rows)
        return Measured(sum(lengths), learned, sum(n * n for n in lengths), best, peak)

    def planned(self, rows: Sequence[TokenRow]) -> int:
        """Return the bytes that the plan expects a pass of `rows` to allocate, what fragments left out."""
        setting = Setting(
            memory=MODES["sft"].memory,
            rank=RANK,
            dropout=True,
            tokens=sum(len(row.input_ids) for row in rows),
            learned=sum(int(row.learned.sum()) for row in rows),
            number_bytes=2,
            four_bits=False,
            checkpointing=self.checkpointing,
            cuda=self.place.cuda,
            processes=1,
            start_adapter=False,
        )
        parts = device_parts(self.shape, self.shape.linears, setting)
        beside = ("fragmentation", "CUDA context", "process")
        return sum(part.size for part in parts if part.name not in beside)


def make_base_on(device: str, name: str) -> Any:
    """Make a base of this shape with random weights in bf16, on the device from the start."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape, size = SHAPES[name], HEAD_SIZES[name]
    config = Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query // size,
        num_key_value_heads=shape.key // size,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.parameters < 2 * 10**9 and name != "tiny",
        max_position_embeddings=32768,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def best_of(place: Place, call: Callable[[], None], seconds: float) -> tuple[float, int]:
    """Repeat a call for some seconds, at least twice after one to warm up; returns (best seconds, peak bytes)."""
    call()
    if place.cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    best, ends, turns = float("inf"), time.monotonic() + seconds, 0
    while turns < 2 or time.monotonic() < ends:
        before = time.perf_counter()
        call()
        if place.cuda:
            torch.cuda.synchronize()
        best, turns = min(best, time.perf_counter() - before), turns + 1
    return best, torch.cuda.max_memory_allocated() if place.cuda else 0


def launches(place: Place, call: Callable[[], None]) -> tuple[int, float]:
    """Return (kernels launched or operations called, milliseconds of the CPU thread) of one call."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if place.cuda else [ProfilerActivity.CPU]
    with profile(activities=kinds) as found:
        call()
    events = found.key_averages()
    wanted = [
        event for event in events if ("LaunchKernel" in event.key if place.cuda else event.key.startswith("aten::"))
    ]
    return sum(event.count for event in wanted), sum(event.self_cpu_time_total for event in events) / 1e3


def free() -> None:
    """Give memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
