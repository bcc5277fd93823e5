"""What a run was computed on, in all places where it can be read."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from llm_tuning.codes.tune_llm import main, run_tuning
from llm_tuning.models.manifest import read_manifest
from llm_tuning.models.metrics_file import read_metrics
from llm_tuning.models.operations import Operations
from llm_tuning.models.shape import read_shape
from llm_tuning.run.division import Division
from llm_tuning.run.hardware import cpu_name
from llm_tuning.trainers import hardware
from llm_tuning.trainers.flat_rows import RowLayout
from llm_tuning.trainers.policy import Policy
from tests.support.train_run import make_run


def test_a_run_on_the_cpu_says_what_it_took(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    rows = tmp_path / "rows.json"
    made = [{"prompt": f"What is {i}?", "output": f"It is {i}."} for i in range(40)]
    rows.write_text(json.dumps(made))
    with caplog.at_level(logging.INFO, "llm_tuning"):
        run_tuning(
            llm_path=str(tiny_base),
            dataset_path=str(rows),
            devices="cpu",
            model_id="m",
            tracking_uri=str(tmp_path / "mlruns"),
        )
    manifest = read_manifest(tmp_path / "models/m")
    assert manifest is not None
    found = manifest.hardware
    assert found is not None
    assert (found.device, found.driver, found.reserved_memory, found.mfu) == (cpu_name(), None, None, None)
    assert found.precision in ("bf16", "fp32")
    said = [record.getMessage() for record in caplog.records if "padding" in record.getMessage()]
    assert said == ["padding-free: yes; attention: sdpa row by row, since varlen_attn is for GPUs"], "once"
    assert (found.padding_free, found.attention) == (True, said[0].partition("attention: ")[2])
    assert found.peak_memory is not None
    assert 2**27 < found.peak_memory < 2**33, "of a Python with torch"
    assert found.teraflops is not None
    assert 0 < found.teraflops < 10

    lines = list(read_metrics(tmp_path / "models/m/metrics.jsonl"))
    steps = [line for line in lines if "train/operations" in line]
    assert len(steps) == 5
    shape = read_shape(tiny_base)
    cost = Operations.of(shape, shape.linears, 16)
    for line in steps:
        tokens = line["train/tokens"]
        fewest = tokens * (2 * cost.matrices + 3 * cost.adapter)
        assert fewest < line["train/operations"] < fewest + 3 * tokens * 64 * cost.attention + 2 * tokens * cost.head

    assert manifest.mlflow is not None
    kept = MlflowClient(tracking_uri=manifest.mlflow.uri).get_run(manifest.mlflow.run_id).data
    assert kept.tags["hardware.device"] == found.device
    assert kept.tags["hardware.attention"] == found.attention
    assert kept.metrics["hardware/padding_free"] == 1
    assert kept.metrics["hardware/peak_memory_gib"] == pytest.approx(found.peak_memory / 2**30)
    assert kept.metrics["hardware/teraflops"] == found.teraflops
    assert not [name for name in kept.metrics if name in ("train/operations", "train/busy_seconds")]

    card = (tmp_path / "models/m/README.md").read_text()
    assert re.search(
        rf"Hardware: {re.escape(found.device)}, {found.precision}, peak memory .* TFLOP/s, padding-free \(.*\)\.", card
    )
    capsys.readouterr()
    assert main(["report", "m"]) == 0
    assert re.search(rf"hardware  +{re.escape(found.device)}, {found.precision}, peak", capsys.readouterr().out)


def test_on_gpus_it_is_the_card_its_driver_and_the_largest_peaks(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"cuda:0": (3 * 2**30, 5 * 2**30), "cuda:1": (4 * 2**30, 4 * 2**30)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory[device][0])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: memory[device][1])
    monkeypatch.setattr(hardware, "driver_version", lambda: "580.65.06")
    run = make_run(tmp_path / "work", tiny_base)
    other = hardware._of_device("cuda:1")
    monkeypatch.setattr(hardware, "gather_objects", lambda mine: [mine, other])
    policy = SimpleNamespace(dtype=torch.bfloat16, row_layout=RowLayout(True, "varlen_attn"))
    division = Division(2, 2, "by estimate 51.8 of a GPU's 80.0 GiB, and whole 142.5")
    assert hardware.hardware_of(replace(run, device="cuda:0", division=division), cast(Policy, policy)) == {
        "device": "NVIDIA H200",
        "driver": "580.65.06",
        "precision": "bf16",
        "padding_free": True,
        "attention": "varlen_attn",
        "sharding": "base in 2 parts (by estimate 51.8 of a GPU's 80.0 GiB, and whole 142.5)",
        "peak_memory": 4 * 2**30,
        "reserved_memory": 5 * 2**30,
    }
