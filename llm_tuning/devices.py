"""Which devices a run may use, torch-free: whether a GPU is really there is looked at when a rank starts."""

from __future__ import annotations

import os

DEFAULT_DEVICES = ["cuda:0"]
"""What `--devices` means when nothing is said; only this falls back to the CPU on a machine without CUDA."""


def gpu_required() -> bool:
    """Whether this process was given GPUs and must not fall back to the CPU (set by the operator in trainer pods)."""
    return os.environ.get("LLM_TUNING_REQUIRE_GPU", "") == "1"


def threads_per_process(processes: int) -> int:
    """CPU threads each of `processes` on this machine may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)
