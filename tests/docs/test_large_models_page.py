"""docs/large-models.md: its table is what the plan's formulas give."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from llm_tuning.planning.memory import GIB, peak_bytes
from llm_tuning.planning.plan import GPUS
from tests.support.shapes import LLAMA_3_8B, LLAMA_3_70B, QWEN_25_32B, make_setting

PAGE = Path(__file__).parents[2] / "docs/large-models.md"
SHAPES = {"Llama 3 8B": LLAMA_3_8B, "Qwen2.5 32B": QWEN_25_32B, "Llama 3 70B": LLAMA_3_70B}
SETTING = replace(
    make_setting(rank=16, dropout=True, tokens=4096, learned=4096, number_bytes=2, cuda=True, scored=4096),
    checkpointing=True,
)


def test_what_a_gpu_takes_is_what_the_plan_says() -> None:
    row = re.compile(r"^\| ([^|]+) \| (\d), (whole|sharded) \| ([\d.]+) GiB \| (\d+) GB \|$", re.MULTILINE)
    found = row.findall(PAGE.read_text())
    assert len(found) == 8
    for base, gpus, how, takes, size in found:
        of_it = replace(SETTING, processes=int(gpus), shards=int(gpus) if how == "sharded" else 1)
        needed = peak_bytes(SHAPES[base], SHAPES[base].linears, of_it) / GIB
        smallest = next(gpu.gigabytes for gpu in GPUS if needed <= gpu.usable_gib)
        assert (takes, size) == (f"{needed:.1f}", str(smallest)), (base, gpus)
