"""One run in many shapes: one process or several, in one pod or in two, with the base whole or in parts.

Where the rows of a step are as many, the curve and the adapter are the same: to the bit where there are as many ranks,
and otherwise but for the order in which fp32 sums are taken.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llm_tuning.models.metrics_file import read_metrics
from tests.full.nodes.test_nodes import ends, free_port, steps_done, wait_for
from tests.support.pod_process import Claim

ROWS_A_STEP = 8
TRAINING = {"epochs": 2, "learningRate": 1e-3, "evalFraction": 0.1, "precision": "fp32", "maxTokensPerPass": 64}
"""So few tokens that a step has several passes, and ranks unequally many."""
NO_DROPOUT = {"dropout": 0, "rank": 4, "alpha": 8}
"""Ranks draw their own dropout, so it differs between other numbers of them."""
ORDER_OF_SUMS = 1e-5
"""By how much a loss, or a number of the adapter, may differ between other numbers of ranks."""


@dataclass(frozen=True)
class Shape:
    """Pods, the ranks in each, and whether these share one base."""

    pods: int = 1
    ranks: int = 1
    sharding: str = "none"

    @property
    def world(self) -> int:
        return self.pods * self.ranks


ONE = Shape()
OTHERS = {
    "2 sharded": Shape(ranks=2, sharding="full"),
    "2 replicated": Shape(ranks=2),
    "2 pods, sharded": Shape(pods=2, sharding="full"),
    "2 pods, replicated": Shape(pods=2),
    "4 on 2 pods, sharded": Shape(pods=2, ranks=2, sharding="full"),
    "4 replicated": Shape(ranks=4),
}

DATASETS = {"sft": "datasets/good.jsonl", "dpo": "datasets/pairs.jsonl", "ppo": "datasets/rewards.jsonl"}
"""Rewards of no pattern: those that cancel out over a step leave the value head a gradient of rounding errors alone,
and Adam makes whole steps of it."""

Start = Callable[..., "list[tuple[Claim, subprocess.Popen[str]]]"]


def write_data(folder: Path) -> None:
    made: dict[str, list[dict[str, Any]]] = {"pairs": [], "rewards": []}
    for i in range(40):
        prompt, good, bad = f"What is {i} plus {i}?", f"It is {2 * i}.", f"Nobody knows {i}."
        made["pairs"].append({"prompt": prompt, "chosen": good, "rejected": bad})
        made["rewards"].append({"prompt": prompt, "output": good, "reward": 7 * i * i % 23 / 23})
    for name, rows in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def start(claim: Claim) -> Iterator[Start]:
    """`start(shape, model_id, ...)` starts the program of each pod; what is left of it ends with the test."""
    write_data(claim.root / "datasets")
    started = []

    def start(
        shape: Shape, model_id: str, mode: str = "sft", **training: Any
    ) -> list[tuple[Claim, subprocess.Popen[str]]]:
        port, pods = free_port(), []
        for index in range(shape.pods):
            given: dict[str, Any] = {
                "model_id": model_id,
                "gpus": shape.ranks,
                "mode": mode,
                "dataset": {"path": DATASETS[mode]},
                "lora": NO_DROPOUT,
                "training": TRAINING | {"batchSize": ROWS_A_STEP // shape.world, "sharding": shape.sharding} | training,
            }
            if shape.pods > 1:
                given["nodes"] = {"hosts": ["127.0.0.1"] * shape.pods, "port": port}
                given["environment"] = {
                    "JOB_COMPLETION_INDEX": str(index),
                    "LLM_TUNING_ADDRESS": "127.0.0.1",
                    "GLOO_SOCKET_IFNAME": "lo",
                }
            pod = Claim(claim.root, log=f"termination-log-{index}")
            pods.append((pod, pod.start("train", **given)))
        started.extend(pods)
        return pods

    yield start
    for _, process in started:
        process.kill()
        process.communicate()


def finish(pods: list[tuple[Claim, subprocess.Popen[str]]], code: int = 0) -> str:
    """Wait until each pod has ended with `code`; returns their logs."""
    ended = ends([pod for pod, _ in pods], [process for _, process in pods])
    logs = "".join(each.log for each in ended)
    assert [each.code for each in ended] == [code] * len(ended), logs
    return logs


def curve(model: Path) -> list[float]:
    losses = {
        line["step"]: line["train/loss"] for line in read_metrics(model / "metrics.jsonl") if "train/loss" in line
    }
    assert sorted(losses) == list(range(1, len(losses) + 1))
    return [losses[step] for step in sorted(losses)]


def adapter(model: Path) -> bytes:
    return (model / "adapter_model.safetensors").read_bytes()


def distance(model: Path, other: Path) -> tuple[float, float]:
    """Return by how much curves and adapters differ at most."""
    losses = max(abs(a - b) for a, b in zip(curve(model), curve(other), strict=True))
    ours, theirs = (load_file(each / "adapter_model.safetensors") for each in (model, other))
    assert ours.keys() == theirs.keys()
    return losses, max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


SHAPES_OF = {
    "sft": list(OTHERS),
    "dpo": list(OTHERS)[:1] + list(OTHERS)[3:5],
    "ppo": list(OTHERS)[1:3] + list(OTHERS)[4:5],
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", DATASETS)
def test_a_run_is_the_same_in_every_shape(start: Start, claim: Claim, mode: str) -> None:
    finish(start(ONE, "one", mode))
    one, first_of = claim.models / "one", {}
    assert len(curve(one)) == 10
    table = []
    for number, name in enumerate(SHAPES_OF[mode]):
        shape, model = OTHERS[name], claim.models / f"shape-{number}"
        assert (" parts" in finish(start(shape, model.name, mode))) == (shape.sharding == "full")
        same = first_of.setdefault(shape.world, model)
        assert curve(model) == curve(same), name
        assert adapter(model) == adapter(same), name
        table.append((name, *distance(model, one)))
    print(f"\n{mode}, against one process: {table}")
    for name, losses, weights in table:
        assert max(losses, weights) <= ORDER_OF_SUMS, name


def steps_are_done(claim: Claim, number: int) -> bool:
    return steps_done(claim) >= number


@pytest.mark.timeout(1800)
def test_a_run_stopped_on_four_ranks_goes_on_with_two_and_then_with_one(start: Start, claim: Claim) -> None:
    longer = {"epochs": 12}
    finish(start(ONE, "one", **longer))
    total = len(curve(claim.models / "one"))
    stops = []
    for shape in (OTHERS["4 on 2 pods, sharded"], OTHERS["2 sharded"]):
        before = steps_done(claim)
        reached, pods = partial(steps_are_done, claim, before + 5), start(shape, "m", **longer)
        wait_for("five steps more", reached, [process for _, process in pods])
        pods[-1][1].terminate()
        assert (f"resumed from step {before} " in finish(pods, code=75)) == (before > 0)
        stops.append(steps_done(claim))
    assert 5 <= stops[0] < stops[1] - 4 < total - 4
    assert f"resumed from step {stops[1]} " in finish(start(ONE, "m", **longer))
    losses, weights = distance(claim.models / "m", claim.models / "one")
    print(f"\nstopped at {stops} of {total}: curve {losses:.1e}, adapter {weights:.1e}")
    assert max(losses, weights) <= ORDER_OF_SUMS
