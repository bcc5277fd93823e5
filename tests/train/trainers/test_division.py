"""What `training.sharding` comes to on a run's cards; torch.cuda is patched, as this machine has none."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.data.check import check_dataset
from llm_tuning.errors import InputError
from llm_tuning.models.shape import read_shape
from llm_tuning.modes import MODES
from llm_tuning.planning import Plan, make_plan
from llm_tuning.run.context import TrainRun
from llm_tuning.run.memory import GIB
from llm_tuning.trainers import division
from llm_tuning.trainers.division import Card, _estimate, divided, refuse_different
from tests.support.recipe_runs import in_processes
from tests.support.rows import write_rows
from tests.support.train_run import make_run

A100, H100 = Card("NVIDIA A100-SXM4-80GB", (8, 0), 80 * GIB), Card("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB)


@pytest.fixture
def needed(tiny_base: Path, tmp_path: Path) -> int:
    """Bytes of one of two GPUs with the whole tiny base."""
    return _estimate(make_run(tmp_path / "work", tiny_base, device="cuda:0", world=2), torch.bfloat16)(1)


def on_cards(patch: pytest.MonkeyPatch, cards: Sequence[Card], *, rank: int = 0) -> None:
    """What `rank` sees of its card and hears of the others'."""
    mine = cards[rank]
    patch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, mine.memory))
    patch.setattr(torch.cuda, "get_device_name", lambda _device: mine.name)
    patch.setattr(torch.cuda, "get_device_capability", lambda _device: mine.capability)

    def gather(value: Any) -> list[Any]:
        if isinstance(value, Card):
            assert value == mine
            return list(cards)
        return [value, *[None] * (len(cards) - 1)]

    patch.setattr(division, "gather_objects", gather)


def run_of(tiny_base: Path, tmp_path: Path, sharding: str = "auto", **options: Any) -> TrainRun:
    return make_run(tmp_path / "work", tiny_base, device="cuda:0", training={"sharding": sharding}, **options)


def test_auto_goes_by_the_smallest_card_of_all_ranks(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, needed: int
) -> None:
    """A card with room for a little less than the whole, and the tenth that is left free."""
    monkeypatch.setattr(division, "peak_bytes", lambda _shape, _targets, setting: needed // setting.shards)
    run = run_of(tiny_base, tmp_path, world=2)
    roomy, tight = (Card("NVIDIA X", (9, 0), int(needed / 0.9) + more) for more in (2, -2))
    for cards, shards in (([roomy, roomy], 1), ([roomy, tight], 2)):
        on_cards(monkeypatch, cards)
        with caplog.at_level(logging.INFO):
            found = divided(run, torch.bfloat16)
        assert (found.shards, found.is_sharded) == (shards, shards > 1)
    of = f"of a GPU's {tight.memory / GIB:.1f} GiB"
    halves = f"by estimate {needed / 2 / GIB:.1f} {of}, and whole {needed / GIB:.1f}"
    assert [record.getMessage() for record in caplog.records] == [
        f"sharding: base whole on each rank (by estimate {needed / GIB:.1f} {of})",
        f"sharding: base in 2 parts ({halves})",
    ]


def test_a_run_on_cpus_is_divided_where_it_is_asked_for(tiny_base: Path, tmp_path: Path) -> None:
    """For real, on two processes."""
    for sharding, said in (("auto", ""), ("full", "base in 2 parts (as asked for)")):
        work = tmp_path / sharding / "run"
        write_rows(work / "rows", [8, 9, 10, 11] * 5)
        runs = [
            make_run(work, tiny_base, rank=rank, world=2, training={"max_steps": 1, "sharding": sharding})
            for rank in range(2)
        ]
        assert in_processes(runs) == [0, 0]
        want = said or "base whole on each rank (auto divides nothing on CPUs)"
        assert json.loads((work / "hardware.json").read_text())["sharding"] == want


def test_one_device_is_asked_nothing(tiny_base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "work", tiny_base)
    assert divided(run, torch.float32) is run
    full = divided(make_run(tmp_path / "work", tiny_base, training={"sharding": "full"}), torch.float32)
    assert (full.shards, str(full.division)) == (1, "base whole on each rank (there is one)")


def test_the_run_counts_as_the_plan_does(tiny_base: Path, tmp_path: Path) -> None:
    """With the rows that its own check has counted, and without."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"What is {i}?", "output": f"It is {i}."}) + "\n" for i in range(40)))

    def planned(mode: str, dataset: Path | None) -> Plan:
        values = {"mode": mode, "model": {"path": "b"}, "dataset": {"path": "d"}, "volume": {"claimName": "tuning"}}
        spec = TuningJobSpec.parse({**values, "resources": {"gpus": 2}})
        return make_plan(spec, base=tiny_base, dataset=dataset)

    def shards_of(run: TrainRun) -> list[int]:
        return [_estimate(run, torch.bfloat16)(shards) for shards in (1, 2)]

    for mode in ("sft", "dpo"):
        run = make_run(tmp_path / mode, tiny_base, mode=mode, device="cuda:0", world=2)
        plan = planned(mode, None)
        assert shards_of(run)[0] == plan.device_gib * GIB
    run = make_run(tmp_path / "counted", tiny_base, device="cuda:0", world=2)
    report = check_dataset(rows, form=MODES["sft"].form_of(run.config), tokenizer_dir=tiny_base, max_length=1024)
    run.work.mkdir()
    (run.work / "data_report.json").write_text(report.model_dump_json())
    plan = planned("sft", rows)
    assert shards_of(run)[0] == plan.device_gib * GIB
    (run.work / "data_report.json").write_text('{"of": "another version"}')
    assert shards_of(run)[0] > plan.device_gib * GIB, "as without rows, which may be longer"


def test_a_base_of_unknown_sizes_is_counted_by_its_parameters(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "unknown"
    base.mkdir()
    for path in tiny_base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    parameters = read_shape(base).parameters
    del config["num_hidden_layers"]
    (base / "config.json").write_text(json.dumps(config))
    takes = _estimate(make_run(tmp_path / "work", base, device="cuda:0", world=2), torch.bfloat16)
    assert takes(1) - takes(2) == parameters


def test_cards_of_several_kinds_are_refused_where_the_base_is_divided(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [A100, A100, A100, H100]
    for rank in (0, 3):  # every rank says it, and none waits for another
        on_cards(monkeypatch, cards, rank=rank)
        assert divided(run_of(tiny_base, tmp_path, world=4), torch.bfloat16).shards == 1, (
            "whole on each there is no need"
        )
    on_cards(monkeypatch, cards)
    with pytest.raises(InputError) as caught:
        divided(run_of(tiny_base, tmp_path, "full", world=4), torch.bfloat16)
    assert str(caught.value) == (
        "training.sharding: is full, which divides the base here, and that needs GPUs of one kind: ranks 0 to 2 have a "
        "NVIDIA A100-SXM4-80GB (compute capability 8.0), rank 3 has a NVIDIA H100 80GB HBM3 (compute capability 9.0); "
        "choose GPUs of one kind (in a cluster by resources.nodeSelector), or set it to none"
    )


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        ([A100, A100], None),
        ([], None),
        ([A100, Card(A100.name, A100.capability, 79 * GIB)], None),
        ([A100, H100, A100], "rank 0 has a .*, rank 1 has a .*H100.*, rank 2 has a .*A100"),
        ([A100, Card("NVIDIA A100-SXM4-80GB MIG 3g.40gb", (8, 0), 40 * GIB)], "rank 1 has a .* MIG 3g"),
    ],
    ids=["alike", "CPUs", "a little less memory", "in turns", "a slice"],
)
def test_what_counts_is_the_name_and_the_compute_capability(cards: list[Card], told: str | None) -> None:
    if told is None:
        refuse_different(cards, asked="auto")
        return
    with pytest.raises(InputError, match=told):
        refuse_different(cards, asked="auto")
