"""What is said of vLLM's CPU build before a start is what the installed one says of itself."""

from __future__ import annotations

import ast
import json
import subprocess
from typing import Any

import pytest

from llm_tuning.engines.vllm.limits import CPU_DELTA_SIZES, CPU_HEAD_SIZES, DELTA_DTYPE
from tests.support.vllm_server import VLLM_PYTHON, require_vllm

ASK = """
import json, pathlib, sys, torch
from importlib.util import find_spec

vllm = pathlib.Path(find_spec("vllm").origin).parent
wide = "avx512" in pathlib.Path("/proc/cpuinfo").read_text()
torch.ops.load_library(vllm / ("_C_AVX512.abi3.so" if wide else "_C_AVX2.abi3.so"))

def error(key_size, value_size, dtype):
    def ones(*shape, dtype=getattr(torch, dtype)):
        return torch.ones(shape, dtype=dtype)
    state, gates = ones(2, 1, key_size, value_size, dtype=torch.float32), ones(1, 4, 1, dtype=torch.float32)
    try:
        torch.ops._C.chunk_gated_delta_rule_cpu(
            ones(1, 4, 1, key_size), ones(1, 4, 1, key_size), ones(1, 4, 1, value_size), gates, ones(1, 4, 1), state,
            True, torch.tensor([0, 4], dtype=torch.int32), False, True, torch.tensor([0], dtype=torch.int32), 1e-5)
    except RuntimeError as found:
        return str(found)

sources = {name: (vllm / name).read_text() for name in json.loads(sys.argv[1])}
print(json.dumps({"errors": [error(*asked) for asked in json.loads(sys.argv[2])], "sources": sources}))
"""
ATTENTION, DELTA = "v1/attention/backends/cpu_attn.py", "model_executor/layers/mamba/ops/cpu/gdn_attention.py"
SIZES = (16, 32, 64, 96, 128, 192, 256)
ASKED = [*((size, size, DELTA_DTYPE) for size in SIZES), (64, 128, DELTA_DTYPE), (128, 128, "float32")]


@pytest.fixture(scope="module")
def installed() -> Any:
    """The kernel's error for each of ASKED, None where it computes; and sources. Importing vLLM takes too long."""
    require_vllm()
    arguments = [json.dumps([ATTENTION, DELTA]), json.dumps(ASKED)]
    run = subprocess.run([str(VLLM_PYTHON), "-c", ASK, *arguments], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_the_kernel_of_delta_nets_takes_these_sizes_equal_for_keys_and_values_in_one_dtype(installed: Any) -> None:
    errors = dict(zip(ASKED, installed["errors"], strict=True))
    assert tuple(size for size in SIZES if errors[size, size, DELTA_DTYPE] is None) == CPU_DELTA_SIZES
    assert "equal" in errors[64, 128, DELTA_DTYPE]
    assert errors[128, 128, "float32"]
    assert 'torch.bfloat16, "CPU GDN attention requires BF16."' in installed["sources"][DELTA]


def test_the_sizes_of_attention_heads_that_have_a_kernel(installed: Any) -> None:
    tree = ast.parse(installed["sources"][ATTENTION])
    [named] = [node for node in ast.walk(tree) if getattr(node, "name", "") == "get_supported_head_sizes"]
    [returned] = [node for node in ast.walk(named) if isinstance(node, ast.Return)]
    assert returned.value is not None
    assert tuple(ast.literal_eval(returned.value)) == CPU_HEAD_SIZES
