"""The bill of known bases by hand, and against what is reported of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.models.shape import ModelShape, adapter_parameters
from llm_tuning.modes.ppo import PPO
from llm_tuning.planning.verdict import GPUS, Verdict, find_remedy, judge
from llm_tuning.run.devices import positions_at_a_time, tokens_per_pass
from llm_tuning.run.memory import (
    CUDA_PROCESS_BYTES,
    GIB,
    NCCL_BYTES,
    activation_bytes,
    chunk_bytes,
    device_parts,
    evaluation_parts,
    host_bytes,
    peak_bytes,
    total,
)
from tests.support.shapes import (
    LLAMA_2_7B,
    LLAMA_3_8B,
    LLAMA_3_70B,
    QWEN_25_05B,
    QWEN_25_7B,
    QWEN_25_15B,
    llama_shape,
    make_setting,
)

SETTING = make_setting(
    rank=16, dropout=True, tokens=4096, learned=4096, number_bytes=2, cuda=True, scored=4096, longest=1024
)


def gib(shape: ModelShape, **changed: Any) -> float:
    return peak_bytes(shape, shape.linears, replace(SETTING, **changed)) / GIB


def bill(shape: ModelShape, **changed: Any) -> dict[str, int]:
    return {part.name: part.size for part in device_parts(shape, shape.linears, replace(SETTING, **changed))}


def test_a_token_of_a_layer_of_llama_2_7b_by_hand() -> None:
    """Norms' inputs in fp32; query, key, value, output; gate, up, activated; four inputs and masks; A's outputs."""
    norms, attention, mlp = 2 * 4 * 4096, 4 * 2 * 4096, 3 * 2 * 11008
    inputs, between = (3 * 4096 + 11008) * (2 + 1), 7 * 16 * 2
    layer = norms + attention + mlp + inputs + between
    assert layer == 201_696
    kept = activation_bytes(LLAMA_2_7B, LLAMA_2_7B.linears, SETTING)
    assert kept == 4096 * (32 * layer + 4 * 4096), "and the last norm"


@pytest.mark.parametrize(
    ("changed", "least", "most"),
    [
        ({}, 40, 48),
        ({"checkpointing": True}, 16, 18),  # what is commonly reported of LoRA in 16 bits with checkpointing
        ({"checkpointing": True, "four_bits": True}, 6, 8),  # and of QLoRA
    ],
    ids=["plain", "checkpointed", "4 bits"],
)
def test_llama_2_7b_takes_what_is_reported_of_it(changed: dict[str, Any], least: float, most: float) -> None:
    assert least <= gib(LLAMA_2_7B, **changed) <= most


@pytest.mark.parametrize(
    ("shape", "fits"),
    [(QWEN_25_05B, (True, True)), (QWEN_25_15B, (True, True)), (QWEN_25_7B, (False, True))],
    ids=["0.5B", "1.5B", "7B"],
)
def test_a_small_base_fits_on_24_gb_as_it_comes_and_7b_with_checkpointing(
    shape: ModelShape, fits: tuple[bool, bool]
) -> None:
    tokens = tokens_per_pass(TrainingSpec(), "cuda:0", shape.parameters)
    full = {"tokens": tokens, "learned": tokens, "scored": tokens}
    of_24 = next(gpu for gpu in GPUS if gpu.gigabytes == 24)
    assert tuple(gib(shape, **full, checkpointing=on) <= of_24.usable_gib for on in (False, True)) == fits


def test_70b_in_4_bits_fits_on_48_gb_with_short_rows() -> None:
    """QLoRA, arXiv 2305.14314: 65B on one card of 48 GB, with rows of 512 tokens."""
    changed: dict[str, Any] = {"four_bits": True, "checkpointing": True, "tokens": 512, "learned": 512, "scored": 512}
    assert 38 <= gib(LLAMA_3_70B, **changed) <= 44.9


def test_logits_are_a_chunk_in_training_and_in_evaluation() -> None:
    """A GPU takes 2^27 logits at a time, in fp32, and as many log-probabilities; never those of every position."""
    positions = positions_at_a_time(QWEN_25_7B.vocabulary, "cuda")
    chunk = chunk_bytes(QWEN_25_7B, SETTING, 4096)
    assert chunk == positions * QWEN_25_7B.vocabulary * 8
    assert 0.99 * GIB <= chunk <= GIB
    assert chunk_bytes(QWEN_25_7B, SETTING, 10) == 10 * QWEN_25_7B.vocabulary * 8
    every_position = 4096 * QWEN_25_7B.vocabulary * (2 + 4 + 4)
    evaluation = evaluation_parts(QWEN_25_7B, QWEN_25_7B.linears, SETTING)
    forward = next(part for part in evaluation if part.name == "forward pass")
    assert chunk < forward.size < every_position / 4
    assert "a chunk of logits" in forward.how


def test_an_evaluation_in_full_passes_may_be_the_peak_of_a_run_of_small_steps() -> None:
    small: dict[str, Any] = {"tokens": 256, "learned": 40, "checkpointing": True, "scored": 16_384}
    setting = replace(SETTING, **small)
    training = total(device_parts(QWEN_25_05B, QWEN_25_05B.linears, setting))
    evaluation = total(evaluation_parts(QWEN_25_05B, QWEN_25_05B.linears, setting))
    assert evaluation > training
    assert gib(QWEN_25_05B, **small) == evaluation / GIB
    forward = next(
        part for part in evaluation_parts(QWEN_25_05B, QWEN_25_05B.linears, setting) if part.name == "forward pass"
    )
    learned = 16_384 * 40 // 256
    assert forward.size == 2 * 896 * (16_384 + learned) + (2**27 // 151_936) * 151_936 * 8
    assert evaluation_parts(QWEN_25_05B, QWEN_25_05B.linears, replace(setting, scored=0)) == []


def test_several_gpus_have_nccl_and_no_context_of_other_ranks() -> None:
    one, four = bill(LLAMA_3_8B), bill(LLAMA_3_8B, processes=4)
    assert four["NCCL"] == NCCL_BYTES
    assert "NCCL" not in one
    assert four["CUDA context"] == one["CUDA context"]
    flat = 8 * adapter_parameters(LLAMA_3_8B.linears, 16)
    assert four["gradients"] == one["gradients"] + flat, "end to end for the all-reduce"


def test_in_4_bits_one_matrix_is_whole_at_a_time() -> None:
    assert "a matrix" not in bill(LLAMA_3_70B)
    assert bill(LLAMA_3_70B, four_bits=True)["a matrix"] == 28_672 * 8192 * 2


def test_in_fp32_a_gpu_repeats_grouped_keys() -> None:
    """Flash attention takes no fp32, and the other kernel that keeps no scores takes no groups."""
    on_gpu, on_cpu = (
        activation_bytes(LLAMA_3_8B, LLAMA_3_8B.linears, replace(SETTING, number_bytes=4, dropout=False, cuda=cuda))
        for cuda in (True, False)
    )
    assert on_gpu - on_cpu == 4096 * 32 * 2 * (4096 - 1024) * 4
    ungrouped = [
        activation_bytes(LLAMA_2_7B, LLAMA_2_7B.linears, replace(SETTING, number_bytes=4, dropout=False, cuda=cuda))
        for cuda in (True, False)
    ]
    assert ungrouped[0] == ungrouped[1]


def test_a_value_head_has_states_in_fp32() -> None:
    with_values = bill(QWEN_25_7B, memory=PPO.memory)
    assert with_values["output layer"] - bill(QWEN_25_7B)["output layer"] == 4096 * 3584 * 4


def test_the_base_goes_through_host_memory_tensor_by_tensor() -> None:
    of_70b = host_bytes(LLAMA_3_70B, SETTING)
    assert of_70b == CUDA_PROCESS_BYTES + 2 * 2 * (128_256 * 8192 + 28_672 * 8192)
    assert of_70b < 8 * GIB
    assert 2 * of_70b < host_bytes(LLAMA_3_70B, replace(SETTING, processes=2)) < 2 * of_70b + GIB


def test_a_sharded_base_lies_in_parts_and_a_few_layers_are_whole() -> None:
    """70B in bf16 over four GPUs: too much for one of 141 GB, and for none of four of 80 GB."""
    whole, four = bill(LLAMA_3_70B, processes=4), bill(LLAMA_3_70B, processes=4, shards=4)
    assert "whole layers" not in whole
    assert four["base"] == whole["base"] // 4
    layer = 8192 * (2 * 8192 + 2 * 1024 + 3 * 28_672)
    assert four["whole layers"] == 3 * layer * 2, "one that runs, the next one, a buffer"
    same = four.keys() - {"base", "whole layers"}
    assert {name: four[name] for name in same} == {name: whole[name] for name in same}
    of_8b = bill(LLAMA_3_8B, processes=2, shards=2)["whole layers"]
    assert of_8b == 2 * 128_256 * 4096 * 2, "its output layer, and the buffer that it comes in, are more"
    room = {gpu.gigabytes: gpu.usable_gib for gpu in GPUS}
    assert gib(LLAMA_3_70B, checkpointing=True) > room[141]
    assert gib(LLAMA_3_70B, checkpointing=True, processes=4, shards=4) < room[80]
    assert (
        host_bytes(LLAMA_3_70B, replace(SETTING, shards=4))
        == CUDA_PROCESS_BYTES + (host_bytes(LLAMA_3_70B, SETTING) - CUDA_PROCESS_BYTES) // 4
    )


def test_what_fits_on_no_gpu_is_divided_over_those_that_are_asked_for_or_over_more() -> None:
    of_80 = next(gpu for gpu in GPUS if gpu.gigabytes == 80)

    def remedy(asked: str = "none", **changed: Any) -> str:
        return find_remedy(of_80, LLAMA_3_70B, LLAMA_3_70B.linears, replace(SETTING, **changed), asked)

    checkpointed = "training.sharding: full and training.gradientCheckpointing: true"
    assert remedy(processes=4) == checkpointed
    assert remedy() == (  # one GPU is enough for the first
        "model.quantization: 4bit and training.gradientCheckpointing: true, or "
        f"resources.gpus: 4 and {checkpointed} (4 times the rows a step)"
    )
    assert remedy(tokens=2048, learned=2048, scored=2048, four_bits=True, processes=4) == (
        "training.gradientCheckpointing: true"
    )
    of_141 = next(gpu for gpu in GPUS if gpu.gigabytes == 141)
    eight = replace(SETTING, checkpointing=True, processes=8)
    smaller = replace(eight, tokens=512, learned=512, scored=512, longest=512)
    assert peak_bytes(LLAMA_3_70B, LLAMA_3_70B.linears, smaller) < of_141.usable_gib * GIB, "it would fit so, too"
    divided = find_remedy(of_141, LLAMA_3_70B, LLAMA_3_70B.linears, eight, "none")
    assert divided == "training.sharding: full", "before rows are cut"
    of_48 = next(gpu for gpu in GPUS if gpu.gigabytes == 48)
    two = replace(SETTING, checkpointing=True, processes=2, shards=2)
    for asked in ("full", "auto"):
        assert find_remedy(of_48, LLAMA_3_70B, LLAMA_3_70B.linears, two, asked) == (
            "resources.gpus: 8 (4 times the rows a step)"
        )
        assert remedy(asked, processes=4, shards=4) == "training.gradientCheckpointing: true"


def test_a_base_that_the_gpus_of_no_node_hold_is_divided_over_nodes_and_what_is_tight_is_said() -> None:
    shape = llama_shape(hidden=16_384, layers=126, vocabulary=128_256, query=16_384, key=1024, intermediate=53_248)
    setting = replace(SETTING, checkpointing=True, processes=8)

    def verdicts(**changed: Any) -> dict[int, Verdict]:
        asked = replace(setting, **changed)
        return {gpu.gigabytes: judge(gpu, shape, shape.linears, asked, asked="auto") for gpu in GPUS}

    eight = verdicts()
    assert eight[141].remedy == (
        "resources.nodes: 2 (2 times the rows a step), or training.maxTokensPerPass: 2048 with less than a tenth free"
    )
    smaller = verdicts(tokens=2048, learned=2048, scored=2048)[141]
    assert (smaller.fits, smaller.tight) == (True, True)
    two_nodes = verdicts(nodes=2)[141]
    assert (two_nodes.fits, two_nodes.tight, round(two_nodes.needed / GIB)) == (True, False, 104)
    assert eight[80].remedy == "resources.nodes: 8 (8 times the rows a step)"
    assert verdicts(nodes=8)[80].fits
    assert verdicts(processes=1)[141].remedy == "resources.gpus: 8 and resources.nodes: 2 (16 times the rows a step)"
    assert verdicts(nodes=16)[48].remedy.startswith("resources.gpus: 16 and"), "a pod may have sixteen"
    assert eight[40].remedy == "", "two layers whole at a time are too much for it"
