"""What the ranks of a run were computed on, and the most memory that any of them took."""

from __future__ import annotations

from typing import Any

import torch

from llm_tuning.run.context import TrainRun
from llm_tuning.run.hardware import cpu_name, driver_version, peak_resident_bytes
from llm_tuning.trainers.parallel import gather_objects
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.precision import NAMES


def hardware_of(run: TrainRun, policy: Policy) -> dict[str, Any]:
    """Return fields of the manifest's `HardwareRecord`; all ranks call it, at the end of what is to be measured."""
    ranks = gather_objects(_of_device(run.device))
    return {
        "device": " and ".join(sorted({rank["device"] for rank in ranks})),
        "driver": driver_version() if run.device.startswith("cuda") else None,
        "precision": next(name for name, known in NAMES.items() if known == policy.dtype),
        "padding_free": policy.row_layout.flat,
        "attention": policy.row_layout.attention,
        "sharding": "" if run.division is None else str(run.division),
        "peak_memory": max((rank["peak"] for rank in ranks if rank["peak"]), default=None),
        "reserved_memory": max((rank["reserved"] for rank in ranks if rank["reserved"]), default=None),
    }


def _of_device(device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {"device": cpu_name(), "peak": peak_resident_bytes(), "reserved": None}
    return {
        "device": torch.cuda.get_device_name(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }
