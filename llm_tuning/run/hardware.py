"""What a run is computed on: the machine's own names for it, memory, and the peaks that its speed is held against."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from llm_tuning.core.files import read_json
from llm_tuning.models.layout import HARDWARE, METRICS
from llm_tuning.models.manifest import HardwareRecord
from llm_tuning.models.metrics_file import operations_per_second
from llm_tuning.run.spec import RunSpec

DENSE_BF16_TERAFLOPS = {
    "A10": 125,
    "A30": 165,
    "A40": 149.7,
    "A100-SXM4-40GB": 312,
    "A100-SXM4-80GB": 312,
    "A100-PCIE-40GB": 312,
    "A100 80GB PCIe": 312,
    "L4": 121,
    "L40": 181,
    "L40S": 362,
    "H100 80GB HBM3": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H200": 989,
    "H200 NVL": 835,
    "GH200 480GB": 989,
    "B200": 2250,
    "RTX A4000": 77,
    "RTX A6000": 155,
    "RTX 6000 Ada Generation": 364,
    "GeForce RTX 3090": 71,
    "GeForce RTX 4090": 165,
}
"""Peak of bf16 matrix products with fp32 sums and without sparsity, by NVIDIA's data sheets (half the number where they
give that with sparsity alone) and by the name that CUDA gives the card, without "NVIDIA". Another card, or a slice of
one (MIG, vGPU), has another name and so no peak."""

CPU_INFO = Path("/proc/cpuinfo")
DRIVER_VERSION = Path("/sys/module/nvidia/version")
OWN_STATUS = Path("/proc/self/status")


def peak_teraflops(name: str) -> float | None:
    """Return the peak of the card that CUDA calls `name`, None where it is not known."""
    return DENSE_BF16_TERAFLOPS.get(name.removeprefix("NVIDIA "))


def cpu_name() -> str:
    """Return the processor's name, or its architecture where the kernel has no name for it."""
    return _line(CPU_INFO, r"model name\s*: *(.+)") or platform.machine() or "cpu"


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver in the kernel, as nvidia-smi shows it; None where it cannot be read."""
    return _line(DRIVER_VERSION, r"(\S+)")


def peak_resident_bytes() -> int | None:
    """Return the most memory that this process has had resident; getrusage would count its parent's before the exec."""
    kibibytes = _line(OWN_STATUS, r"VmHWM:\s*(\d+) kB")
    return None if kibibytes is None else int(kibibytes) * 1024


def _line(path: Path, pattern: str) -> str | None:
    try:
        found = re.search(f"^{pattern}$", path.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return found[1].strip() if found else None


def hardware_record(spec: RunSpec) -> HardwareRecord | None:
    """Join what the recipe has left of its devices with the speed that the metrics show."""
    found = read_json(spec.work / HARDWARE)
    if found is None:
        return None
    record = HardwareRecord.model_validate(found)
    rate, peak = operations_per_second(spec.work / METRICS), peak_teraflops(record.device)
    if rate is None:
        return record
    teraflops = rate / len(spec.devices) / 1e12
    mfu = teraflops / peak if peak is not None and record.precision == "bf16" else None
    return record.model_copy(update={"teraflops": _three(teraflops), "mfu": mfu and _three(mfu)})


def _three(value: float) -> float:
    return float(f"{value:.3g}")


def hardware_metrics(hardware: HardwareRecord) -> dict[str, float]:
    """Return the figures of `hardware` by their names in MLflow; memory in GiB."""
    figures = {
        "peak_memory_gib": hardware.peak_memory and hardware.peak_memory / 2**30,
        "reserved_memory_gib": hardware.reserved_memory and hardware.reserved_memory / 2**30,
        "teraflops": hardware.teraflops,
        "mfu": hardware.mfu,
        "padding_free": hardware.padding_free,
    }
    return {f"hardware/{name}": float(value) for name, value in figures.items() if value is not None}


def hardware_tags(hardware: HardwareRecord | None) -> dict[str, str]:
    """Return the names in `hardware` as tags of the MLflow run."""
    if hardware is None:
        return {}
    found = {name: getattr(hardware, name) for name in ("device", "driver", "precision", "attention", "sharding")}
    return {f"hardware.{name}": value for name, value in found.items() if value}
