"""What a run was computed on: names from the system's files, and the figures that the manifest gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from llm_tuning.models.layout import HARDWARE, METRICS
from llm_tuning.models.manifest import HardwareRecord, hardware_line
from llm_tuning.models.metrics_file import BUSY_SECONDS, STEP_OPERATIONS, MetricsFile
from llm_tuning.run import hardware
from llm_tuning.run.hardware import hardware_metrics, hardware_record, hardware_tags, peak_teraflops
from llm_tuning.run.spec import RunSpec

H200 = {
    "device": "NVIDIA H200",
    "driver": "580.65.06",
    "precision": "bf16",
    "padding_free": True,
    "attention": "varlen_attn",
    "peak_memory": 3 * 2**30,
    "reserved_memory": 4 * 2**30,
}


class Run:
    """As much of a RunSpec as the record needs."""

    def __init__(self, work: Path, devices: int) -> None:
        self.work, self.devices = work, ["cuda:0"] * devices


def record(
    work: Path, found: dict[str, Any], *, teraflops: float | None = 200.0, devices: int = 1
) -> HardwareRecord | None:
    """The record of a run of four steps, each of half a second; the first warms up."""
    (work / HARDWARE).write_text(json.dumps(found))
    metrics = MetricsFile(work / METRICS)
    for step in range(1, 5):
        operations = {} if teraflops is None else {STEP_OPERATIONS: teraflops * 1e12 * 0.5}
        metrics.log(step, operations | ({BUSY_SECONDS: 0.5} if step > 1 else {}))
    metrics.close()
    return hardware_record(cast(RunSpec, Run(work, devices)))


def test_mfu_is_the_model_s_operations_over_the_card_s_peak(tmp_path: Path) -> None:
    found = record(tmp_path, H200)
    assert found is not None
    assert found.teraflops == 200
    assert found.mfu == pytest.approx(200 / 989, rel=1e-2)
    assert hardware_line(found) == (
        "NVIDIA H200 (driver 580.65.06), bf16, peak memory 3.0 GiB of 4.0 GiB reserved, 200 TFLOP/s, MFU 20.2%, "
        "padding-free (attention: varlen_attn)"
    )
    assert hardware_metrics(found) == {
        "hardware/peak_memory_gib": 3.0,
        "hardware/reserved_memory_gib": 4.0,
        "hardware/teraflops": 200.0,
        "hardware/mfu": found.mfu,
        "hardware/padding_free": 1.0,
    }
    assert hardware_tags(found) == {
        "hardware.device": "NVIDIA H200",
        "hardware.driver": "580.65.06",
        "hardware.precision": "bf16",
        "hardware.attention": "varlen_attn",
    }


def test_several_devices_share_the_operations(tmp_path: Path) -> None:
    found = record(tmp_path, H200, devices=4)
    assert found is not None
    assert found.teraflops == 50


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": "fp32"},
        {"device": "NVIDIA H200 MIG 1g.18gb"},
        {"device": "NVIDIA A100-SXM4-40GB and NVIDIA H200"},
        {"device": "AMD EPYC 7763 64-Core Processor", "driver": None},
    ],
    ids=["fp32", "a slice", "two kinds", "a processor"],
)
def test_without_a_peak_there_is_a_speed_and_no_mfu(tmp_path: Path, changed: dict[str, Any]) -> None:
    found = record(tmp_path, H200 | changed)
    assert found is not None
    assert (found.teraflops, found.mfu) == (200, None)
    assert "200 TFLOP/s, padding-free" in hardware_line(found)


def test_what_cannot_be_counted_is_left_out(tmp_path: Path) -> None:
    assert hardware_record(cast(RunSpec, Run(tmp_path, 1))) is None, "a run that an earlier version began"
    found = record(tmp_path, {"device": "cpu", "precision": "fp32"}, teraflops=None)
    assert found is not None
    assert hardware_line(found) == "cpu, fp32"
    assert hardware_metrics(found) == {}
    padded = found.model_copy(update={"padding_free": False, "attention": "eager"})
    assert hardware_line(padded) == "cpu, fp32, rows padded (attention: eager)"
    assert hardware_metrics(padded) == {"hardware/padding_free": 0.0}
    assert hardware_tags(None) == {}
    shared = found.model_copy(update={"sharding": "base in 2 parts (as asked for)"})
    assert hardware_line(shared) == "cpu, fp32, base in 2 parts (as asked for)"
    assert hardware_tags(shared)["hardware.sharding"] == "base in 2 parts (as asked for)"


def test_peaks_are_the_data_sheets_dense_ones() -> None:
    assert peak_teraflops("NVIDIA A100-SXM4-80GB") == 312
    assert peak_teraflops("NVIDIA H100 80GB HBM3") == 989
    assert peak_teraflops("NVIDIA H100 PCIe") == 756
    assert peak_teraflops("Tesla T4") is None, "it has no bf16"


def test_names_come_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info, version, status = tmp_path / "cpuinfo", tmp_path / "version", tmp_path / "status"
    info.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: avx512_bf16\n\nmodel name\t: other\n")
    version.write_text("580.65.06\n")
    status.write_text("Name:\tpython\nVmPeak:\t  200 kB\nVmHWM:\t  100 kB\n")
    for name, path in (("CPU_INFO", info), ("DRIVER_VERSION", version), ("OWN_STATUS", status)):
        monkeypatch.setattr(hardware, name, path)
    assert hardware.cpu_name() == "AMD EPYC 9R14"
    assert hardware.driver_version() == "580.65.06"
    assert hardware.peak_resident_bytes() == 102_400
    for path in (info, version, status):
        path.unlink()
    assert hardware.cpu_name()
    assert hardware.driver_version() is None
    assert hardware.peak_resident_bytes() is None
