"""Tools are seen to be learned: which one does what is asked for, on requests that no training row has.

A small base is first taught to call tools in the right form, and always the wrong one, with the thing that is asked
for as its argument. Then sft runs on rows with the right tool, and as a control on the same rows with their tools
shuffled. What counts are the calls that are generated for the held-out requests: equal to the recorded ones or not.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.trainers import sft
from tests.support.tool_rows import make_tool_base, requests, teach_format, write_tool_rows
from tests.support.train_run import make_run

SEEDS = (0, 1, 2)
TRAINING = {"learning_rate": 5e-3, "epochs": 12, "batch_size": 6}


@pytest.fixture(scope="module")
def taught_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    return teach_format(make_tool_base(folder / "random"), folder / "base", steps=(220, 60))


def trained(base: Path, work: Path, *, seed: int, shuffled: bool) -> dict[str, Any]:
    """The evaluation of a whole run."""
    chosen = requests(held_out=False)
    if shuffled:
        tools = [each.tool for each in chosen]
        random.Random(seed).shuffle(tools)
        chosen = [replace(each, tool=tool) for each, tool in zip(chosen, tools, strict=True)]
    write_tool_rows(work / "rows", base, chosen, requests(held_out=True))
    sft.train(make_run(work, base, training=TRAINING | {"seed": seed}, lora={"rank": 16, "alpha": 32}))
    found: dict[str, Any] = json.loads((work / "evaluation.json").read_text())
    return found


def test_rows_with_calls_teach_the_right_tool_and_shuffled_calls_do_not(taught_base: Path, tmp_path: Path) -> None:
    equal: dict[str, list[float]] = {"right": [], "shuffled": []}
    for seed in SEEDS:
        for kind, shares in equal.items():
            found = trained(taught_base, tmp_path / f"{kind}-{seed}", seed=seed, shuffled=kind == "shuffled")
            base, tuned = found["base"], found["tuned"]
            print(kind, seed, {name: (base[name], tuned[name]) for name in tuned if "call" in name})
            assert found["calls"] == {"with_calls": 12, "without_calls": 0}
            assert base["calls_parsed"] > 0.9
            assert base["calls_equal"] == 0.0
            shares.append(tuned["calls_equal"])
    assert min(equal["right"]) >= 0.9
    assert max(equal["shuffled"]) <= 0.6
