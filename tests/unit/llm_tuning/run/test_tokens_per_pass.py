"""How many tokens go through the model at a time: decided by device, base and configuration, never by free memory."""

from __future__ import annotations

import pytest

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.run.devices import CPU_TOKENS, tokens_per_pass
from tests.support.shapes import LLAMA_3_8B, QWEN_25_05B, QWEN_25_7B, QWEN_25_15B


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [
        (QWEN_25_05B.parameters, 8192),
        (QWEN_25_15B.parameters, 4096),
        (QWEN_25_7B.parameters, 4096),
        (LLAMA_3_8B.parameters, 4096),
        (10**9 - 1, 8192),
        (10**9, 4096),
    ],
)
def test_a_small_base_is_given_more_at_a_time_on_a_gpu(parameters: int, tokens: int) -> None:
    assert tokens_per_pass(TrainingSpec(), "cuda:1", parameters) == tokens
    assert tokens_per_pass(TrainingSpec(), "cpu", parameters) == CPU_TOKENS


def test_what_is_configured_counts_everywhere() -> None:
    asked = TrainingSpec(max_tokens_per_pass=99)
    assert {tokens_per_pass(asked, device, 10**9) for device in ("cpu", "cuda:0")} == {99}
