"""What `--devices` means, torch-free: names are checked at once, whether a GPU is there only when a rank starts."""

from __future__ import annotations

import os
import re

from llm_tuning.errors import InputError, Problem

DEFAULT_DEVICES = "0"


def parse_devices(text: str) -> list[str]:
    """`0,1` -> [cuda:0, cuda:1]; `cpu,cpu` -> [cpu, cpu]: one process each. Raises InputError."""
    names = [part.strip() for part in text.split(",")]
    fix = "give GPU numbers (0 or 0,1) or cpu"
    if all(name == "cpu" for name in names):
        return names
    if not all(re.fullmatch(r"[0-9]{1,3}", name) for name in names):
        raise InputError(Problem("devices", f"must be GPU numbers or cpu, got {text!r}", fix))
    if len(set(names)) != len(names):
        raise InputError(Problem("devices", f"names a GPU twice: {text!r}", "name each GPU once"))
    return [f"cuda:{int(name)}" for name in names]


def gpu_required() -> bool:
    """Whether this process was given GPUs and must not fall back to the CPU (set by the operator in trainer pods)."""
    return os.environ.get("LLM_TUNING_REQUIRE_GPU", "") == "1"


def threads_per_process(processes: int) -> int:
    """CPU threads each of `processes` on this machine may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)
