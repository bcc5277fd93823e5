"""docs/large-models.md: its table is what the plan says, and its examples are what it says of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from llm_tuning.planning.verdict import GPUS, Gpu, judge
from llm_tuning.run.memory import GIB
from tests.support.shapes import LLAMA_3_8B, LLAMA_3_70B, QWEN_25_32B, make_setting

PAGE = Path(__file__).parents[2] / "docs/large-models.md"
SHAPES = {"Llama 3 8B": LLAMA_3_8B, "Qwen2.5 32B": QWEN_25_32B, "Llama 3 70B": LLAMA_3_70B}
SETTING = replace(
    make_setting(rank=16, dropout=True, tokens=4096, learned=4096, number_bytes=2, cuda=True, scored=4096),
    checkpointing=True,
)


def cell(base: str, nodes: int, gpus: int, gpu: Gpu) -> str:
    shape = SHAPES[base]
    verdict = judge(gpu, shape, shape.linears, replace(SETTING, processes=gpus, nodes=nodes), asked="auto")
    if not verdict.fits:
        return "no"
    shards = verdict.division.shards
    tight = ", tight" if verdict.tight else ""
    return f"{'whole' if shards == 1 else f'{shards} parts'}, {verdict.needed / GIB:.1f}{tight}"


def test_what_fits_where_is_what_the_plan_says() -> None:
    text = PAGE.read_text()
    sizes = " | ".join(f"{gpu.gigabytes} GB" for gpu in GPUS)
    assert f"| Base | Nodes x GPUs | {sizes} |" in text
    found = re.findall(r"^\| ([^|]+) \| (\d) x (\d) \| (.*) \|$", text, re.MULTILINE)
    assert len(found) == 13
    for base, nodes, gpus, cells in found:
        assert cells.split(" | ") == [cell(base, int(nodes), int(gpus), gpu) for gpu in GPUS], (base, nodes, gpus)


def test_a_line_of_the_log_is_one_of_a_run() -> None:
    of_80 = next(gpu for gpu in GPUS if gpu.gigabytes == 80)
    setting = replace(SETTING, processes=4)
    division = judge(of_80, LLAMA_3_70B, LLAMA_3_70B.linears, setting, asked="auto").division
    assert f"\nsharding: {division}\n" in PAGE.read_text()
