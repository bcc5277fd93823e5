"""Two nodes of two ranks, each with a copy of the base in two parts: what four ranks with the whole base make."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.parallel import process_group
from llm_tuning.trainers.policy import Policy
from tests.support.recipe_runs import in_processes
from tests.support.rows import write_rows
from tests.support.tiny_base import make_base
from tests.support.train_run import make_run

RANKS, COPIES = 4, 2
LENGTHS = [3, 90, 17, 5, 60, 29, 120, 8, 11, 44, 70, 6, 33, 25, 9, 100, 14, 52, 7, 21, 38, 64, 10, 31]
TRAINING = {"learning_rate": 3e-3, "eval_fraction": 0.1, "batch_size": 2, "max_tokens_per_pass": 128, "max_steps": 3}


def runs(folder: Path, base: Path, **training: Any) -> list[TrainRun]:
    """The run of each rank; ranks 0 and 1 are on one node, 2 and 3 on the other."""
    write_rows(folder / "run/rows", LENGTHS)
    settings = {"training": TRAINING | training, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
    return [make_run(folder / "run", base, **settings, rank=rank, world=RANKS, nodes=2) for rank in range(RANKS)]


def test_the_adapter_has_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    made = {}
    for sharding in ("none", "full"):
        of_it = runs(tmp_path / sharding, tiny_base, sharding=sharding)
        assert in_processes(of_it) == [0] * RANKS
        work = of_it[0].work
        curves = [json.loads((work / f"losses-{rank}.json").read_text()) for rank in range(RANKS)]
        names = ("stage/adapter_model.safetensors", "stage/parity.json", "evaluation.json")
        made[sharding] = (curves, [(work / name).read_bytes() for name in names])
        said = json.loads((work / "hardware.json").read_text())["sharding"]
        assert said.startswith("base in 2 parts on each of 2 nodes") == (sharding == "full"), said
    assert made["full"] == made["none"]
    assert len(made["full"][0][0]) == TRAINING["max_steps"]


def collectives_of_a_pass(base: Path, rank: int) -> None:
    """Leave in `collectives-RANK` each one of a pass forward and back: its name, its ranks, its bytes."""
    found: list[tuple[str, list[int], int]] = []

    def note(name: str) -> None:
        call = getattr(torch.distributed, name)

        def noting(*given: Any, **named: Any) -> Any:
            group = named.get("group") or next((value for value in given if hasattr(value, "rank")), None)
            ranks = torch.distributed.get_process_group_ranks(group)
            found.append((name, ranks, given[0].numel() * given[0].element_size()))
            return call(*given, **named)

        setattr(torch.distributed, name, noting)

    with process_group(base / "rendezvous", rank=rank, world=RANKS, device="cpu"):
        model = load_base_model(base, device="cpu", dtype=torch.bfloat16, sharded=True, copies=COPIES)
        lora = attach_lora(model, rank=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=1)
        policy = Policy(lora, device="cpu", dtype=torch.bfloat16)
        for name in ("all_gather_into_tensor", "all_reduce", "reduce_scatter_single", "broadcast"):
            note(name)
        policy.empty_pass(backward=True)
        held = sum(parameter.to_local().numel() for parameter in model.parameters() if hasattr(parameter, "to_local"))
    (base / f"collectives-{rank}").write_text(json.dumps([found, held]))


def test_a_pass_gathers_within_a_node_and_sends_nothing_to_the_other(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", layers=3)
    children = [
        multiprocessing.get_context("fork").Process(target=collectives_of_a_pass, args=(base, rank))
        for rank in range(RANKS)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * RANKS
    shapes = {name: tensor.numel() for name, tensor in load_file(base / "model.safetensors").items()}
    layers = sum(size for name, size in shapes.items() if ".layers." in name)
    whole = sum(shapes.values())
    for rank in range(RANKS):
        found, held = json.loads((base / f"collectives-{rank}").read_text())
        node = [0, 1] if rank < 2 else [2, 3]
        assert {(name, tuple(ranks)) for name, ranks, _ in found} == {("broadcast", tuple(node))}
        assert sum(size for *_, size in found) == 2 * (whole + layers + shapes["model.norm.weight"])
        assert held == whole // 2
