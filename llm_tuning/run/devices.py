"""Which devices a run may use, and how much of it at a time; torch-free.

Whether a GPU is really there is checked when a rank starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.core.cards import card_order, listed_cards

DEFAULT_DEVICES = ["cuda:0"]
"""What `--devices` means when it is not given; only this falls back to the CPU on a machine without CUDA."""

CPU_TOKENS = 1536
"""On a CPU larger micro-batches gain nothing: one of this size already keeps the cores busy, in 70 % of
the memory of 2048."""
CUDA_TOKENS = 4096
"""On a GPU: by estimate 1.5 billion parameters take 18 GiB so, of the 24 GB that most cards have, and 7 billion 18 with
gradient checkpointing. The base decides and not the free memory: with dropout micro-batches decide which numbers it
draws."""
CUDA_TOKENS_OF_SMALL = 8192
"""For bases of fewer parameters than `SMALL_BASE`, of which a half billion takes 16 GiB: a small base must be given
more at a time, or the GPU waits for Python, which takes as long for a layer of a few tokens as for one of many."""
SMALL_BASE = 10**9

CPU_LOGITS = 2**22
"""Logits at a time, in elements: 16 MiB in fp32, small beside any model."""
CUDA_LOGITS = 2**27
"""On a GPU, 512 MiB: for a vocabulary of 152k 883 positions, of which a product needs some 300 to run at full speed.
Each chunk reads the output layer twice: 27 positions, as a CPU would take, read it for longer than a small base takes
for all else."""
POSITIONS_AT_A_TIME = 128
"""At least as many positions go through the output layer at a time, however large the vocabulary: 27 of them take twice
the time on a CPU."""

SCORING_BYTES = 2**30
"""What scoring the proof's probes takes beside the base: the adapter, activations of 256 tokens, a chunk of logits."""


def positions_at_a_time(vocabulary: int, device: str) -> int:
    """Return the number of positions whose logits are made at a time on `device`, one of torch's names."""
    logits = CUDA_LOGITS if device.startswith("cuda") else CPU_LOGITS
    return max(POSITIONS_AT_A_TIME, logits // vocabulary)


def own_gpu(device: str, visible: str | None) -> str:
    """Return the CUDA_VISIBLE_DEVICES with which a process has `device` alone, as its cuda:0.

    `visible` is the value that numbers the devices now: numbers, or identifiers of GPUs and MIG devices. Where it has
    no such GPU, none is left.
    """
    number = int(device.removeprefix("cuda:"))
    if visible is None:
        return str(number)
    cards = listed_cards(visible)
    return cards[number] if number < len(cards) else ""


def gpu_defaults(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what torch should find in `environment` when it is imported, and what is not decided there yet."""
    defaults = {}
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        defaults["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # passes of changing size fragment the memory
    return defaults | card_order(environment)


HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Has torch, where it finds this as it is imported, ask Linux for pages of 2 MiB for large tensors.

On CPUs a divided base is gathered into new memory, layer by layer: by pages of 4 KiB that costs a third of a pass.
"""


def gpus_in_words(devices: Sequence[str]) -> str:
    """Return `GPU 0` or `GPUs 0, 1` for cuda:0 and cuda:1: the numbers of `--devices`."""
    numbers = ", ".join(device.removeprefix("cuda:") for device in devices)
    return f"GPU {numbers}" if len(devices) == 1 else f"GPUs {numbers}"


def gpu_required() -> bool:
    """Return whether this process must not fall back to the CPU, for the operator gave its pod GPUs."""
    return os.environ.get("LLM_TUNING_REQUIRE_GPU", "") == "1"


def in_pod() -> bool:
    """Return whether the operator started this process: then it chose the devices, and not a user."""
    return "LLM_TUNING_POD" in os.environ


def threads_per_process(processes: int) -> int:
    """Return the CPU threads that each of `processes` on this machine may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def tokens_per_pass(training: TrainingSpec, device: str, parameters: int) -> int:
    """Return `training.maxTokensPerPass`, or the default of the device and of a base with so many parameters."""
    if training.max_tokens_per_pass is not None:
        return training.max_tokens_per_pass
    if not device.startswith("cuda"):
        return CPU_TOKENS
    return CUDA_TOKENS_OF_SMALL if parameters < SMALL_BASE else CUDA_TOKENS
