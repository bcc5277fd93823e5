"""Every family of `zoo_data/families/experts.yaml`: trained, held to a plain forward, continued, loaded by vLLM."""

from __future__ import annotations

import pytest

from tests.support.zoo_results import Trials, hold, of_kind

FAMILIES = of_kind("experts")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_as_transformers_computes_it_and_its_adapter_can_be_used(name: str, trials: Trials) -> None:
    hold(trials.of(name))


@pytest.mark.timeout(1800)
def test_vllm_has_a_place_for_every_tensor_of_every_adapter(trials: Trials) -> None:
    found = trials.loaded_by_vllm(FAMILIES)
    assert not {name: of_one for name, of_one in found.items() if "error" in of_one or of_one["lost"]}
