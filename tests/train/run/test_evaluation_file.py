"""A file of rows to evaluate on, end to end: the same run as one whose split held those very rows out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.cli.report import print_result
from llm_tuning.data.reading import data_hash
from llm_tuning.data.splitting import PromptGroups, split
from llm_tuning.errors import InputError
from llm_tuning.models.manifest import Manifest, read_manifest
from llm_tuning.run.tune import check_run, tune

MODES = pytest.mark.parametrize("mode", ["sft", "ppo", "dpo"])  # kto divides its rows by their labels, too
ROWS = [
    {"prompt": f"What is {i} plus {i}?", "output": f"It is {2 * i}{'!' * (i % 7)}.", "reward": (i % 5) - 2.0}
    for i in range(40)
]


def rows_of(mode: str, rows: Sequence[Any]) -> list[Any]:
    """The rows as the mode takes them."""
    if mode != "dpo":
        return list(rows)
    return [{"prompt": row["prompt"], "chosen": row["output"], "rejected": "I do not know."} for row in rows]


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def config(base: Path, rows: Path, mode: str, **dataset: Any) -> TuningConfig:
    return TuningConfig.parse(
        {
            "mode": mode,
            "model": {"path": str(base)},
            "dataset": {"path": str(rows), **{name: str(value) for name, value in dataset.items()}},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "precision": "fp32"},
            "lora": {"rank": 4},
        }
    )


def trained(of: TuningConfig, model_id: str) -> Manifest:
    tune(of, RunOptions(devices="cpu", model_id=model_id))
    manifest = read_manifest(Path("models") / model_id)
    assert manifest is not None
    return manifest


def scores(manifest: Manifest) -> dict[str, Any]:
    return {name: manifest.metrics[name] for name in ("base", "tuned", "held_out_rows", "held_out_prompts")}


def adapter_hash(model_id: str) -> str:
    return hashlib.sha256((Path("models") / model_id / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """The rows that a run trains on and those that it holds out, in their order."""
    monkeypatch.chdir(tmp_path)
    groups = PromptGroups()
    for row in ROWS:
        groups.add([{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["output"]}])
    trains, held_out = split(groups.keys(), 0.05, 42)
    return [ROWS[i] for i in trains], [ROWS[i] for i in held_out]


@MODES
def test_it_is_the_run_whose_split_held_them_out(
    tiny_base: Path, tmp_path: Path, halves: tuple[list[Any], list[Any]], mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, held_out = (
        written(tmp_path / f"{name}.json", rows_of(mode, part)) for name, part in zip(("t", "e"), halves, strict=True)
    )
    one = trained(config(tiny_base, written(tmp_path / "all.json", rows_of(mode, ROWS)), mode), "one")
    two = trained(config(tiny_base, rows, mode, evaluation=held_out), "two")
    assert adapter_hash("two") == adapter_hash("one")
    assert scores(two) == scores(one)
    assert two.config_hash != one.config_hash
    assert two.metrics["left_out_rows"] == 0
    assert two.dataset is not None
    assert two.dataset.evaluation is not None
    assert (two.dataset.evaluation.hash, two.dataset.evaluation.kept) == (data_hash(held_out), 2)
    probes = json.loads(Path("models/two/parity.json").read_text())
    assert probes["source"] == "held_out"
    asked = {probe["messages"][0]["content"] for probe in probes["probes"]}
    assert asked == {row["prompt"] for row in halves[1]}
    assert (
        "On 2 held-out rows from e.json of 2 prompts that no training row has"
        in Path("models/two/README.md").read_text()
    )
    print_result(Path("models"), "two")
    assert "\nevaluation  " in capsys.readouterr().out


def test_rows_that_training_has_seen_are_scored_nowhere(
    tiny_base: Path, tmp_path: Path, halves: tuple[list[Any], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    trains, held_out = halves
    rows = written(tmp_path / "t.json", trains)
    clean = trained(config(tiny_base, rows, "sft", evaluation=written(tmp_path / "e.json", held_out)), "clean")
    mixed = written(tmp_path / "m.json", [trains[3], *held_out, trains[0] | {"output": "Another answer."}])
    found = trained(config(tiny_base, rows, "sft", evaluation=mixed), "mixed")
    assert scores(found) == scores(clean)
    assert found.metrics["left_out_rows"] == 2
    assert "from m.json (without 2 whose prompt a training row has)" in Path("models/mixed/README.md").read_text()
    print_result(Path("models"), "mixed")
    assert "without 2 whose prompt a training row has" in capsys.readouterr().out


def test_other_rows_to_evaluate_on_are_another_run(
    tiny_base: Path, tmp_path: Path, halves: tuple[list[Any], list[Any]]
) -> None:
    rows, held_out = (written(tmp_path / f"{name}.json", part) for name, part in zip(("t", "e"), halves, strict=True))
    of = config(tiny_base, rows, "sft", evaluation=held_out)
    first = trained(of, "m")
    assert trained(of, "m") == first, "the same again is finished"
    moved = held_out.rename(tmp_path / "moved.json")
    assert trained(config(tiny_base, rows, "sft", evaluation=moved), "m") == first, "it is the content that counts"
    written(moved, [{**row, "output": "Something else."} for row in halves[1]])
    with pytest.raises(InputError, match="is finished with another configuration"):
        tune(config(tiny_base, rows, "sft", evaluation=moved), RunOptions(devices="cpu", model_id="m"))


def test_the_check_of_a_pod_names_the_field(
    tiny_base: Path, tmp_path: Path, halves: tuple[list[Any], list[Any]]
) -> None:
    of = config(tiny_base, written(tmp_path / "t.json", [{}, *halves[0]]), "sft", evaluation=tmp_path / "none.json")
    with pytest.raises(InputError) as error:
        check_run(of, RunOptions(devices="cpu", model_id="m"))
    assert {problem.field for problem in error.value.problems} == {"dataset.path", "dataset.evaluation"}
