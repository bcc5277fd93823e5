"""What `training.precision` becomes on a device, and that a run keeps it on every machine it goes on."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from llm_tuning.core import stopping
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.run.checkpoints import save_checkpoint
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers import precision, sft
from llm_tuning.trainers.precision import computes_in_bf16, precision_of_run, resolve_precision
from tests.support.rows import write_rows
from tests.support.train_run import KeepingReporter, StopsAt, make_run

WITH_BF16, WITHOUT = {"avx512_bf16": True}, {"avx512_bf16": False, "avx2": True}


def on_machine(patch: pytest.MonkeyPatch, features: dict[str, bool]) -> None:
    """What another machine's CPU says of itself, which this one cannot show."""
    patch.setattr(torch.cpu, "get_capabilities", lambda: features)


@pytest.mark.parametrize("features", [{"avx512_bf16": True}, {"amx_bf16": True}, WITHOUT, {}], ids=str)
def test_auto_on_a_cpu_is_bf16_where_it_computes_in_it(
    features: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, features)
    has = any(name.endswith("bf16") and there for name, there in features.items())
    assert resolve_precision("auto", "cpu") == ("bf16" if has else "fp32")
    assert [resolve_precision(asked, "cpu") for asked in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_this_machine_says_what_the_kernel_says_of_it() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert computes_in_bf16("cpu") == any(f" {name}" in flags for name in ("avx512_bf16", "amx_bf16"))


@pytest.fixture
def run(tiny_base: Path, tmp_path: Path) -> TrainRun:
    return make_run(tmp_path, tiny_base, training={"precision": "auto"})


@pytest.mark.parametrize(
    ("machines", "kept"), [((WITH_BF16, WITHOUT), torch.bfloat16), ((WITHOUT, WITH_BF16), torch.float32)]
)
def test_a_run_keeps_what_it_began_with_on_another_machine(
    run: TrainRun,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machines: tuple[dict[str, bool], dict[str, bool]],
    kept: torch.dtype,
) -> None:
    began, goes_on = machines
    on_machine(monkeypatch, began)
    assert precision_of_run(run) is precision_of_run(run) is kept
    assert not caplog.records
    on_machine(monkeypatch, goes_on)
    with caplog.at_level(logging.WARNING):
        assert precision_of_run(run) is kept
    assert "this run began in" in caplog.text


def test_ranks_whose_gpus_differ_are_refused_with_both_names(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rank 1 finds it, with what rank 0 sends; torch.cuda and the collective are patched."""
    monkeypatch.setattr(precision, "computes_in_bf16", lambda _device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    monkeypatch.setattr(precision, "gather_objects", lambda value: [("bf16", "GPU 2 (NVIDIA A10)"), value])
    place = {"device": "cuda:0", "devices": ["cuda:2", "cuda:5"], "rank": 1, "world": 2}
    with pytest.raises(InputError) as caught:
        precision_of_run(make_run(tmp_path, tiny_base, training={"precision": "auto"}, **place))
    assert str(caught.value) == (
        "training.precision: is auto, which is bf16 on GPU 2 (NVIDIA A10) but fp32 on GPU 5 (Tesla T4); set fp32, or "
        "choose GPUs of one kind"
    )
    assert not (tmp_path / "precision.json").exists()


def test_a_run_of_the_version_before_goes_on_in_fp32_on_a_cpu(run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, WITH_BF16)
    save_checkpoint(run.checkpoints, 3, lambda folder: (folder / "optimizer.pt").write_bytes(b""))
    assert precision_of_run(run) is torch.float32


def test_a_run_in_bf16_resumes_to_the_same_bytes_where_bf16_is_emulated(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, reporter: KeepingReporter) -> Path:
        if not (tmp_path / name).exists():
            shutil.copytree(tmp_path / "made", tmp_path / name / "rows")
        training = {"precision": "auto", "batch_size": 4, "learning_rate": 0.01, "epochs": 2}
        run = make_run(tmp_path / name, tiny_base, training=training, reporter=reporter)
        sft.train(run)
        return run.stage

    write_rows(tmp_path / "made", [9, 14, 20, 33, 8, 11, 26, 12])
    on_machine(monkeypatch, WITH_BF16)
    whole = train("whole", KeepingReporter())
    try:
        with pytest.raises(TryAgain):
            train("stopped", StopsAt(3))
    finally:
        stopping._requested.clear()
    on_machine(monkeypatch, WITHOUT)
    resumed = train("stopped", KeepingReporter())
    for file in whole.iterdir():
        assert file.read_bytes() == (resumed / file.name).read_bytes(), file.name
    assert json.loads((whole / "parity.json").read_text())["dtype"] == "bfloat16"
