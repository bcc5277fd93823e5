"""What the ranks of a run send each other in a step, counted at torch's own operations and held to the formula.

With G ranks each of them receives in a step, as docs/large-models.md has it:

- of a sharded base (G - 1) / G of what each pass gathers: all of it forward, its layers and the final norm once more on
  the way back;
- of the adapter's gradients 2 (G - 1) / G, which is what a ring's all-reduce moves;
- some numbers: the terms of the loss, how long each rank took, whether one was asked to stop, how many passes each has.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.loop import Loop
from llm_tuning.trainers.parallel import process_group
from llm_tuning.trainers.sft import train
from tests.support.rows import write_rows
from tests.support.tiny_base import make_base
from tests.support.train_run import make_run
from tests.train.trainers.test_sharding import in_forks

LAYERS, PASSES, STEPS = 3, 3, 2
WORD = 8
"""Bytes of one of the loop's own numbers: int64 and float64."""


class Collectives(TorchDispatchMode):
    """Counts the bytes that each kind of collective operation fills."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            into = tree_leaves(args[0])  # the tensor or tensors that it fills
            self.bytes[func.overloadpacket.__name__] += sum(one.numel() * one.element_size() for one in into)
        return func(*args, **(kwargs or {}))


def count(run: TrainRun) -> None:
    """Leave in `counted-RANK.json` what each step has sent, with its report and without its last checkpoint."""
    counted: list[dict[str, int]] = []
    collectives = Collectives()
    training_step, save = Loop.training_step, Loop.save

    def step(self: Loop, *given: Any, **named: Any) -> Any:
        counted.append(dict(collectives.bytes))
        collectives.bytes.clear()
        return training_step(self, *given, **named)

    def before_saving(self: Loop) -> None:
        counted.append(dict(collectives.bytes))
        save(self)

    Loop.training_step, Loop.save = step, before_saving  # type: ignore[method-assign]
    with process_group(run.work / "rendezvous", rank=run.rank, world=run.world, device="cpu"), collectives:
        train(run)
    assert len(counted) == STEPS + 1
    (run.work / f"counted-{run.rank}.json").write_text(json.dumps(counted[1:]))


@pytest.mark.parametrize("sharding", ["full", "none"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_sends_what_the_formula_says(tmp_path: Path, ranks: int, sharding: str) -> None:
    base = make_base(tmp_path / "base", layers=LAYERS)
    work = tmp_path / "run"
    write_rows(work / "rows", [64] * ranks * PASSES * STEPS)
    training = {
        "batch_size": PASSES,
        "max_tokens_per_pass": 64,
        "epochs": 1,
        "eval_fraction": 0,
        "save_steps": 100,
        "sharding": sharding,
    }
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    runs = [make_run(work, base, training=training, lora=lora, rank=rank, world=ranks) for rank in range(ranks)]
    in_forks([partial(count, run) for run in runs])

    shapes = {name: tensor.numel() for name, tensor in load_file(base / "model.safetensors").items()}
    layers_and_norm = sum(size for name, size in shapes.items() if ".layers." in name or name == "model.norm.weight")
    adapter = sum(weight.numel() for weight in load_file(work / "stage/adapter_model.safetensors").values())
    gathered = 4 * PASSES * (sum(shapes.values()) + layers_and_norm)  # in fp32
    numbers = ["a term", "stop", *["the time of a rank"] * ranks, *(["passes"] if sharding == "full" else [])]
    want = {"allreduce_": 4 * adapter + WORD * len(numbers)} | ({"broadcast_": gathered} if sharding == "full" else {})
    for rank in range(ranks):
        assert json.loads((work / f"counted-{rank}.json").read_text()) == [want] * STEPS
