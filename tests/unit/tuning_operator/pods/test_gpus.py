from __future__ import annotations

import pytest

from llm_tuning.api.conditions import Reason
from tuning_operator.pods.gpus import find_gpu_trouble

PARTS = [
    "nvidia.com/mig-1g.10gb",
    "nvidia.com/mig-3g.40gb.me",
    "nvidia.com/gpu.shared",
    "nvidia.com/mig-1g.10gb.shared",
]
WHOLE = ["nvidia.com/gpu", "amd.com/gpu", "example.com/migrated", "example.com/gpu.shared-nothing"]


@pytest.mark.parametrize("resource", PARTS)
def test_parts_of_a_card_are_used_one_at_a_time(resource: str) -> None:
    assert find_gpu_trouble(0, resource) is None
    assert find_gpu_trouble(1, resource) is None
    trouble = find_gpu_trouble(2, resource)
    assert trouble is not None
    assert trouble.reason == Reason.GPUS_NOT_COMBINABLE
    assert f"spec.resources.gpus: must be at most 1 where a GPU is {resource}, got 2" in trouble.message


@pytest.mark.parametrize("resource", WHOLE)
def test_whole_cards_are_joined(resource: str) -> None:
    assert find_gpu_trouble(16, resource) is None
