"""A store that is locked all the while: the run is published, and says why MLflow was not heard of."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.cli.report import print_result
from llm_tuning.models.manifest import read_manifest
from llm_tuning.run.tune import tune
from llm_tuning.tracking import tracker

ROWS = [{"prompt": f"What is {i}?", "output": f"It is {i}."} for i in range(8)]


def test_the_reason_is_in_the_manifest_and_the_report(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracker, "DISK_BUDGET_SECONDS", 0.2)
    Path("rows.json").write_text(json.dumps(ROWS))
    Path("mlruns").mkdir()
    config = TuningConfig.parse(
        {
            "model": {"path": str(tiny_base)},
            "dataset": {"path": "rows.json"},
            "training": {"max_steps": 1, "precision": "fp32"},
            "tracking": {"uri": "mlruns"},
        }
    )
    with sqlite3.connect("mlruns/mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        tune(config, RunOptions(devices="cpu", model_id="m"))
    manifest = read_manifest(Path("models/m"))
    assert manifest is not None
    assert manifest.mlflow is None
    assert manifest.mlflow_fault
    print_result(Path("models"), "m")
    assert f"not known when the adapter was published ({manifest.mlflow_fault})" in capsys.readouterr().out
