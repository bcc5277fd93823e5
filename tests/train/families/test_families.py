"""Three families of three kinds, held to a plain forward; tests/full/families has every one."""

from __future__ import annotations

import pytest

from tests.support.zoo_results import Trials, hold

THREE = ["gemma2", "qwen3_moe", "qwen3_5"]
"""Windows and capped logits; experts; states, in a folder that also sees."""


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", THREE)
def test_a_family_is_trained_as_transformers_computes_it_and_its_adapter_can_be_used(name: str, trials: Trials) -> None:
    hold(trials.of(name))
