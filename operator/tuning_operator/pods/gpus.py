"""How many GPUs a pod may ask for: slices and shares of a card cannot be joined to one.

CUDA shows a process one MIG slice however many its pod has, two shares may be of the same card, and NCCL joins neither.
"""

from __future__ import annotations

import re

from llm_tuning.api.conditions import Reason
from tuning_operator.pods.trouble import Trouble

_PART_OF_A_CARD = re.compile(r"/mig-|\.shared$")
"""As NVIDIA's device plugin names MIG slices (strategy mixed) and time-sliced or MPS-shared GPUs."""


def find_gpu_trouble(gpus: int, gpu_resource: str, nodes: int = 1) -> Trouble | None:
    """Return why a pod cannot use so many of the resource, or so many pods one each; None if they can."""
    if not gpus or gpus * nodes <= 1 or not _PART_OF_A_CARD.search(gpu_resource):
        return None
    if gpus == 1:
        return Trouble(
            Reason.GPUS_NOT_COMBINABLE,
            f"spec.resources.nodes: must be 1 where a GPU is {gpu_resource}, got {nodes}: MIG slices and shares of a "
            "card cannot be joined; leave it out, or have the operator's Helm value gpuResource name whole GPUs",
        )
    return Trouble(
        Reason.GPUS_NOT_COMBINABLE,
        f"spec.resources.gpus: must be at most 1 where a GPU is {gpu_resource}, got {gpus}: MIG slices and shares of a "
        "card cannot be joined; ask for 1, or have the operator's Helm value gpuResource name whole GPUs",
    )
