"""Operations by hand, for shapes whose counts are published."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.models.operations import Operations
from llm_tuning.models.shape import adapter_parameters
from tests.support.shapes import LLAMA_2_7B, QWEN_25_05B


def test_a_token_of_llama_2_7b() -> None:
    cost = Operations.of(LLAMA_2_7B, LLAMA_2_7B.linears, 16)
    matrices, adapter = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 39_976_960
    assert adapter_parameters(LLAMA_2_7B.linears, 16) == adapter, "as PEFT prints it for rank 16"
    assert cost.matrices == 2 * matrices
    # Four operations a frozen parameter, six a trained one, attention over half the row three times, the layer's head.
    by_hand = 1000 * (4 * matrices + 6 * adapter) + 3 * 4 * 32 * 4096 * 1000 * 500 + 4 * 4096 * 32000 * 300
    assert cost.training(tokens=1000, squares=1000**2, learned=300) == pytest.approx(by_hand)


def test_forward_is_what_evaluation_costs() -> None:
    cost = Operations.of(QWEN_25_05B, QWEN_25_05B.linears, 8)
    once = cost.forward(tokens=10, squares=100, learned=5)
    assert once == pytest.approx(10 * (cost.matrices + cost.adapter) + 100 * cost.attention + 5 * cost.head)
    assert cost.training(tokens=10, squares=100, learned=5) < 3 * once, "a frozen base has no gradients of weights"


def test_shapes_have_the_published_sizes() -> None:
    assert LLAMA_2_7B.parameters == 6_738_415_616
    assert LLAMA_2_7B.path == Path()
