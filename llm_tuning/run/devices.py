"""Which devices a run may use, and how much of it at a time; torch-free.

Whether a GPU is really there is checked when a rank starts.
"""

from __future__ import annotations

import os

from llm_tuning.api.tuning import TrainingSpec

DEFAULT_DEVICES = ["cuda:0"]
"""What `--devices` means when it is not given; only this falls back to the CPU on a machine without CUDA."""

CPU_TOKENS = 2048
"""On a CPU larger micro-batches gain nothing: one of this size already keeps the cores busy."""
CUDA_TOKENS = 4096
"""On a GPU; by estimate, not yet by measurement, room for a 7B base in bf16 on 80 GiB, or on 24 GiB with gradient
checkpointing. A fixed number and not one by free memory: with dropout micro-batches decide which numbers it draws."""


CPU_LOGITS = 2**22
"""Logits at a time, in elements: 16 MiB in fp32, small beside any model."""
CUDA_LOGITS = 2**27
"""On a GPU, 512 MiB: for a vocabulary of 152k 883 positions, of which a product needs some 300 to run at full speed.
Each chunk reads the output layer twice: 27 positions, as a CPU would take, read it for longer than a small base takes
for all else."""
POSITIONS_AT_A_TIME = 128
"""At least as many positions go through the output layer at a time, however large the vocabulary: 27 of them take twice
the time on a CPU."""


def positions_at_a_time(vocabulary: int, device: str) -> int:
    """Return the number of positions whose logits are made at a time on `device`, one of torch's names."""
    logits = CUDA_LOGITS if device.startswith("cuda") else CPU_LOGITS
    return max(POSITIONS_AT_A_TIME, logits // vocabulary)


def gpu_required() -> bool:
    """Return whether this process must not fall back to the CPU, for the operator gave its pod GPUs."""
    return os.environ.get("LLM_TUNING_REQUIRE_GPU", "") == "1"


def threads_per_process(processes: int) -> int:
    """Return the CPU threads that each of `processes` on this machine may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def tokens_per_pass(training: TrainingSpec, device: str) -> int:
    """Return `training.maxTokensPerPass`, or the device's default: 2048 padded tokens on a CPU, 4096 on a GPU."""
    if training.max_tokens_per_pass is not None:
        return training.max_tokens_per_pass
    return CUDA_TOKENS if device.startswith("cuda") else CPU_TOKENS
