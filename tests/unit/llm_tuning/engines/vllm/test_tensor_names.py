"""Names that vLLM would drop without a word are faults, and those that it looks up are none."""

from __future__ import annotations

import pytest

from llm_tuning.engines.plan import Lookup
from llm_tuning.engines.vllm.tensor_names import name_faults, read_names

QWEN35 = Lookup(architecture="Qwen3_5ForConditionalGeneration", nested=True, towers=False)
GEMMA = Lookup(architecture="Gemma3ForConditionalGeneration", nested=True, towers=True)
TEXT = Lookup(architecture="Qwen3ForCausalLM")
TEXT_OF_35 = Lookup(architecture="Qwen3_5ForCausalLM")
MOE = Lookup(architecture="Qwen3MoeForCausalLM")
UNKNOWN = Lookup(architecture="NobodyKnowsForCausalLM")

ATTENTION = "layers.0.self_attn.q_proj"
PLAIN, NESTED, OLD_NESTED = (
    f"{before}{ATTENTION}" for before in ("model.", "model.language_model.", "language_model.model.")
)
TOWER = "model.vision_tower.encoder.layers.0.mlp.fc1"
QWEN_TOWER = "model.visual.blocks.0.attn.qkv"
EXPERTS = ["model.layers.0.mlp.experts", "model.layers.0.mlp.experts.base_layer"]
EACH_EXPERT = "model.layers.0.mlp.experts.3.gate_proj"


@pytest.mark.parametrize(
    ("lookup", "paths", "words"),
    [
        (TEXT, [PLAIN], []),
        (TEXT, [PLAIN, "lm_head"], []),
        (TEXT, [NESTED], ["Qwen3ForCausalLM is the language model alone"]),
        (TEXT_OF_35, [PLAIN], []),
        (TEXT_OF_35, [NESTED], []),
        (QWEN35, [NESTED], []),
        (QWEN35, [OLD_NESTED], []),
        (QWEN35, [PLAIN], ["rename its tensors (model.layers... to model.language_model.layers...)"]),
        (QWEN35, [PLAIN, NESTED], [PLAIN]),
        (QWEN35, [NESTED, QWEN_TOWER], [f"layers that see or hear ({QWEN_TOWER})"]),
        (QWEN35, [PLAIN, QWEN_TOWER], [PLAIN, QWEN_TOWER]),
        (GEMMA, [NESTED, TOWER], []),
        (MOE, [PLAIN, EACH_EXPERT], []),
        (MOE, [PLAIN, *EXPERTS], ["experts in one tensor for all of them (model.layers.0.mlp.experts)"]),
        (MOE, ["model.layers.0.mlp.experts.gate_up_proj"], ["in one tensor"]),
        (UNKNOWN, [PLAIN, *EXPERTS], []),
        (Lookup(), [NESTED], []),
    ],
)
def test_what_vllm_would_not_find(lookup: Lookup, paths: list[str], words: list[str]) -> None:
    faults = [f"{rule}; {fix}" for rule, fix in name_faults(read_names(paths), lookup)]
    assert len(faults) == len(words), faults
    for fault, word in zip(faults, words, strict=True):
        assert word in fault


def test_the_modules_are_the_last_parts_and_experts_are_one() -> None:
    names = read_names([PLAIN, EACH_EXPERT, "model.layers.0.mlp.gate", "lm_head"])
    assert names.modules == ("experts", "gate", "lm_head", "q_proj")
