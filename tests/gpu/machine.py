"""What the machine is, and how fast at best: the ceilings that other figures are shares of."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist

from llm_tuning.trainers.gpu import usable_device
from tests.gpu.findings import Finding, Place, below, not_here, same, shown, within

LIBRARIES = ("torch", "triton", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "vllm")
CEILINGS = "ceilings.json"
PRODUCT, COPY = 8192, 2**31
"""Rows and columns of the product; bytes of the copy."""
PRODUCT_TFLOPS = {"H200": (650, 1000), "H100": (500, 1000), "A100": (220, 312)}
"""Of the product in bf16, by name; other cards have no expectation."""
COPY_TBYTES = {"H200": (3.5, 4.9), "H100": (1.5, 3.4), "A100": (1.1, 2.1)}
"""Bytes read and written a second."""


def machine(place: Place) -> Iterator[Finding]:
    """Report versions, and on a GPU architecture, memory and the two ceilings."""
    yield shown("versions", f"Python {platform.python_version()}, " + ", ".join(_versions()))
    if not place.cuda:
        yield from _cpu_product()
        for what in ("architecture", "memory", "product", "copy"):
            yield not_here(f"{what} of a GPU", "needs CUDA")
        return
    yield from _gpu(place)


def _versions() -> Iterator[str]:
    for name in LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"no {name}"


def _cpu_product() -> Iterator[Finding]:
    a, b = torch.randn(2, 256, 256, dtype=torch.float64).unbind()
    got = (a.bfloat16() @ b.bfloat16()).double()
    yield below("bf16 product against fp64", float((got - a @ b).norm() / (a @ b).norm()), 1e-2)


def _gpu(place: Place) -> Iterator[Finding]:
    torch.cuda.set_device(place.device)
    properties = torch.cuda.get_device_properties(place.device)
    name = properties.name
    free, total = torch.cuda.mem_get_info(place.device)
    yield shown("GPU", f"{name}, CUDA {torch.version.cuda}, {total / 2**30:.1f} GiB, {free / 2**30:.1f} free")
    here = properties.major * 10 + properties.minor
    built = [
        int(arch.removeprefix("sm_").rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")
    ]
    fits = any(arch // 10 == here // 10 and arch <= here for arch in built)
    yield Finding.of("torch is built for it", expected=f"one for sm_{here}", seen=built, passed=fits)
    yield same("a run may use it", usable_device([place.device], 0), place.device)
    yield same("TF32 is off", torch.backends.cuda.matmul.allow_tf32, False)

    a = torch.randn(PRODUCT, PRODUCT, device=place.device, dtype=torch.bfloat16)
    tflops = 2 * PRODUCT**3 / _seconds(lambda: a @ a) / 1e12
    block = torch.empty(COPY, device=place.device, dtype=torch.uint8)
    tbytes = 2 * block.numel() / _seconds(block.clone) / 1e12
    for what, seen, known, unit in (
        ("bf16 product", tflops, PRODUCT_TFLOPS, "TFLOP/s"),
        ("copy", tbytes, COPY_TBYTES, "TB/s"),
    ):
        limits = next((limits for card, limits in known.items() if card in name), None)
        yield within(what, seen, *limits, unit) if limits else shown(what, f"{seen:.3g} {unit}")
    (place.scratch / CEILINGS).write_text(json.dumps({"tflops": tflops, "tbytes": tbytes}))


def ceiling_tflops(place: Place) -> float | None:
    """Return the measured ceiling of bf16 products, None where `machine` measured none."""
    path = place.scratch / CEILINGS
    return float(json.loads(path.read_text())["tflops"]) if path.exists() else None


def _seconds(call: object) -> float:
    """Measure the best of five calls on the GPU, after two to warm up."""
    best = float("inf")
    for turn in range(7):
        torch.cuda.synchronize()
        before = time.perf_counter()
        call()  # type: ignore[operator]
        torch.cuda.synchronize()
        if turn > 1:
            best = min(best, time.perf_counter() - before)
    return best


def collectives(place: Place) -> Iterator[Finding]:
    """Run what a run uses of torch.distributed, in a group of one: NCCL on a GPU, gloo in the rehearsal."""
    backend = place.choose(cuda="nccl", cpu="gloo")
    if place.cuda:
        torch.cuda.set_device(place.device)
        yield not_here("two ranks over NCCL", "needs two GPUs: NCCL refuses two ranks on one card")
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "rendezvous"), 1)
        device_id = torch.device(place.device) if place.cuda else None
        dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device_id)
        try:
            wrong = []
            for dtype in (torch.float32, torch.float64, torch.int64, torch.bfloat16):
                tensor = torch.arange(5, device=place.device).to(dtype)
                dist.all_reduce(tensor)
                wrong += [dtype] if tensor.tolist() != [0, 1, 2, 3, 4] else []
            yield same(f"{backend} all_reduce: dtypes with another sum", wrong, [])
            gathered: list[object] = [None]
            dist.all_gather_object(gathered, {"rank": 0})
            yield same(f"{backend} all_gather_object", gathered, [{"rank": 0}])
        finally:
            dist.destroy_process_group()
    yield same(f"{backend} group is gone", dist.is_initialized(), False)
