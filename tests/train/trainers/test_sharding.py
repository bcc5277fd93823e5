"""A base that is divided over two ranks is, to the bit, one that each of them has whole: in every mode, to the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from llm_tuning.run.context import TrainRun
from llm_tuning.trainers import sharding
from llm_tuning.trainers.policy import Policy
from tests.support.ppo_rows import examples, write_ppo_rows
from tests.support.preference_rows import pairs, write_labels, write_pairs
from tests.support.recipe_runs import in_processes, train
from tests.support.rows import write_rows
from tests.support.train_run import make_run

MODES = ("sft", "ppo", "dpo", "kto")
TRAINING = {"learning_rate": 3e-3, "eval_fraction": 0.1, "eval_steps": 2, "max_tokens_per_pass": 128}
"""So few tokens that ranks have unequal numbers of passes."""
LENGTHS = [3, 90, 17, 5, 60, 29, 120, 8, 11, 44, 70, 6, 33, 25, 9, 100, 14, 52, 7, 21, 38, 64, 10]
ROWS_A_STEP = 6

Start = Callable[..., list[TrainRun]]


def write_rows_of(mode: str, folder: Path, base: Path) -> None:
    if mode == "sft":
        write_rows(folder, LENGTHS)
    elif mode == "dpo":
        write_pairs(folder, base, pairs(held_out=False)[: len(LENGTHS)])
    else:
        chosen = examples(held_out=False)[: len(LENGTHS)]
        if mode == "kto":
            write_labels(folder, base, chosen, [example.good for example in chosen])
        else:
            write_ppo_rows(folder, base, chosen, [float(example.good) for example in chosen])


@pytest.fixture
def start(tiny_base: Path, tmp_path: Path) -> Start:
    """`start(name, mode, ranks, **training)` makes the run of each rank, in a folder of that name."""

    def make(name: str, mode: str, ranks: int, *, lora_dropout: float = 0.0, base: Path = tiny_base, **training: Any):
        work = tmp_path / name / "run"
        if not work.exists():
            write_rows_of(mode, work / "rows", base)
        settings = TRAINING | {"batch_size": ROWS_A_STEP // ranks} | training
        lora = {"rank": 4, "alpha": 8, "dropout": lora_dropout}
        return [
            make_run(work, base, mode=mode, training=settings, lora=lora, rank=rank, world=ranks)
            for rank in range(ranks)
        ]

    return make


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], int]:
    """Counts over all ranks what sharding alone does; `counted(name)` forgets what it returns."""

    def note(owner: object, name: str) -> None:
        method = getattr(owner, name)

        def noting(*given: Any, **named: Any) -> Any:
            with (tmp_path / name).open("a") as log:
                log.write(".")
            return method(*given, **named)

        monkeypatch.setattr(owner, name, noting)

    note(Policy, "empty_pass")
    note(sharding, "shard")

    def count(name: str) -> int:
        path = tmp_path / name
        found = len(path.read_text()) if path.exists() else 0
        path.unlink(missing_ok=True)
        return found

    return count


def made(run: TrainRun) -> dict[str, bytes]:
    """Return all that a run leaves and a later one or a server reads."""
    names = ("stage/adapter_model.safetensors", "stage/parity.json", "evaluation.json", "training.json")
    return {name: (run.work / name).read_bytes() for name in names if (run.work / name).exists()}


def losses(run: TrainRun) -> list[list[float]]:
    return [json.loads((run.work / f"losses-{rank}.json").read_text()) for rank in range(run.world)]


@pytest.mark.parametrize("mode", MODES)
def test_two_sharded_ranks_are_two_whole_ones_to_the_bit_and_one_of_the_double_batch(
    start: Start, counted: Callable[[str], int], mode: str
) -> None:
    whole, sharded = start("whole", mode, 2), start("sharded", mode, 2, sharding="full")
    assert in_processes(whole) == [0, 0]
    assert counted("shard") == counted("empty_pass") == 0
    assert in_processes(sharded) == [0, 0]
    assert counted("shard") == 2
    assert counted("empty_pass") > 0, "ranks had equally many passes, and the test shows less than it could"
    assert losses(sharded[0]) == losses(whole[0])
    assert len(losses(sharded[0])[0]) == 4
    assert made(sharded[0]) == made(whole[0])
    assert len(made(sharded[0])) >= 3

    (one,) = start("one", mode, 1, sharding="full")  # which has nobody to share with
    train(one)
    assert losses(sharded[0])[0] == pytest.approx(one.reporter.losses, abs=1e-5)  # type: ignore[attr-defined]
    adapters = [load_file(run.stage / "adapter_model.safetensors") for run in (one, sharded[0])]
    assert_close(adapters[1], adapters[0], rtol=1e-3, atol=1e-4)


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "checkpointed, with dropout, in bf16": (
        "sft",
        {"gradient_checkpointing": True, "lora_dropout": 0.2, "precision": "bf16"},
    ),
    "checkpointed without dropout": ("dpo", {"gradient_checkpointing": True}),
    "values in bf16": ("ppo", {"precision": "bf16", "epochs": 2}),
}


@pytest.mark.parametrize("form", FORMS)
def test_so_it_is_in_every_form_of_a_step(start: Start, form: str) -> None:
    mode, training = FORMS[form]
    whole, sharded = start("whole", mode, 2, **training), start("sharded", mode, 2, **training, sharding="full")
    assert in_processes(whole) == [0, 0]
    assert in_processes(sharded) == [0, 0]
    assert losses(sharded[0]) == losses(whole[0])
    assert made(sharded[0]) == made(whole[0])


@pytest.mark.parametrize(("mode", "ranks"), [("ppo", (2, 1)), ("sft", (1, 2))])
def test_a_stopped_run_goes_on_with_another_number_of_ranks(start: Start, mode: str, ranks: tuple[int, int]) -> None:
    """It does not matter either whether it was sharded before."""
    before, after = ranks
    (one,) = start("one", mode, 1)
    train(one)
    assert in_processes(start("run", mode, before, sharding="full"), signal_last_rank_at=2) == [75] * before
    runs = start("run", mode, after, sharding="full")
    assert in_processes(runs) == [0] * after
    want = one.reporter.losses  # type: ignore[attr-defined]
    assert losses(runs[0])[0] == pytest.approx(want[2:], abs=1e-5)
