"""Which bases turn positions by the row's length, and where a server would do it otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.models.rope import (
    context_as_trained,
    length_dependent_ropes,
    served_otherwise,
    shortest_original,
    trained_beyond,
)

FACTORS = {"short_factor": [1.0], "long_factor": [2.0]}
LONG = {"rope_type": "longrope", **FACTORS}

CASES: dict[str, tuple[dict[str, Any], int | None]] = {
    "no scaling": ({"max_position_embeddings": 4096, "rope_theta": 1e4}, None),
    "scaling of no kind": ({"max_position_embeddings": 4096, "rope_scaling": None}, None),
    "llama 3": ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8}}, None),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 4096}}, None),
    "longrope": ({"original_max_position_embeddings": 4096, "rope_scaling": LONG}, 4096),
    "longrope in the new form": ({"rope_parameters": LONG | {"original_max_position_embeddings": 8192}}, 8192),
    "the model's own length comes first": (
        {"original_max_position_embeddings": 64, "rope_scaling": LONG | {"original_max_position_embeddings": 32}},
        64,
    ),
    "longrope without an original length": ({"max_position_embeddings": 2048, "rope_scaling": LONG}, 2048),
    "Phi-3's default length": (
        {"model_type": "phi3", "max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", **FACTORS}},
        4096,
    ),
    "Phi-3's oldest name": ({"model_type": "phi3", "rope_scaling": {"type": "su", **FACTORS}}, 4096),
    "Phi-3's yarn is longrope": ({"model_type": "phi3", "rope_scaling": {"type": "yarn", **FACTORS}}, 4096),
    "dynamic": ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 2048),
    "dynamic, by a name of its own": (
        {"max_position_embeddings": 512, "rope_parameters": {"rope_type": "dynamic"}},
        512,
    ),
    "some layers": (
        {
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default"},
                "full_attention": {"rope_type": "dynamic"},
            },
        },
        1024,
    ),
    "the language model of a multimodal base": (
        {"model_type": "x", "text_config": {"original_max_position_embeddings": 128, "rope_scaling": LONG}},
        128,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_length_up_to_which_rows_are_alike(name: str) -> None:
    config, want = CASES[name]
    assert shortest_original(length_dependent_ropes(config).values()) == want


def test_rows_share_angles_by_side_with_longrope_and_by_length_with_dynamic() -> None:
    long = length_dependent_ropes(CASES["longrope"][0])[""]
    dynamic = length_dependent_ropes(CASES["dynamic"][0])[""]
    assert [long.group(n) for n in (1, 4096, 4097, 9000)] == [0, 0, 1, 1]
    assert [dynamic.group(n) for n in (1, 2048, 2049, 9000)] == [0, 0, 2049, 9000]


@pytest.mark.parametrize(
    ("name", "tokens", "words"),
    [
        ("longrope", 4096, None),
        ("longrope", 4097, "takes them for every prompt"),
        ("dynamic", 2048, None),
        ("dynamic", 4096, "vLLM has no angles there"),
        ("yarn", 100_000, None),
    ],
)
def test_a_server_or_rows_beyond_the_original_length_are_named(name: str, tokens: int, words: str | None) -> None:
    ropes = length_dependent_ropes(CASES[name][0]).values()
    served, trained = served_otherwise(ropes, tokens), trained_beyond(ropes, tokens)
    if words is None:
        assert served is trained is None
    else:
        assert words in str(served)
        assert words in str(trained)
        assert f"--max-model-len {shortest_original(ropes)} or less" in str(served)
        assert f"{{field:training.max_length}} {shortest_original(ropes)}" in str(trained)
    assert served_otherwise(ropes, None) is None


def test_only_a_dynamic_rope_needs_a_context_of_its_own_at_the_server() -> None:
    assert context_as_trained(CASES["dynamic"][0]) == 2048
    assert context_as_trained(CASES["longrope"][0]) is None
