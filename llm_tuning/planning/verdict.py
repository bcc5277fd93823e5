"""What of a run fits on which size of GPU, how its base is divided there, and what would help where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llm_tuning.models.shape import Linear, ModelShape
from llm_tuning.run.division import Division, divide
from llm_tuning.run.hardware import DENSE_BF16_TERAFLOPS
from llm_tuning.run.memory import GIB, peak_bytes
from llm_tuning.run.setting import Setting


@dataclass(frozen=True)
class Gpu:
    """A size of GPU memory as it is sold, and the card that stands for it."""

    gigabytes: int
    card: str
    usable_gib: float
    """The lowest total that nvidia-smi shows on common cards of the size (T4, A10, A100, L40S, A100, H200)."""
    teraflops: float
    """Peak of dense bf16 matrix products."""


GPUS = (
    Gpu(16, "RTX A4000", 14.7, DENSE_BF16_TERAFLOPS["RTX A4000"]),
    Gpu(24, "A10", 22.5, DENSE_BF16_TERAFLOPS["A10"]),
    Gpu(40, "A100", 39.5, DENSE_BF16_TERAFLOPS["A100-SXM4-40GB"]),
    Gpu(48, "L40S", 44.9, DENSE_BF16_TERAFLOPS["L40S"]),
    Gpu(80, "H100", 79.2, DENSE_BF16_TERAFLOPS["H100 80GB HBM3"]),
    Gpu(141, "H200", 140.4, DENSE_BF16_TERAFLOPS["H200"]),
)


@dataclass(frozen=True)
class Verdict:
    """Whether the run fits on one size of GPU, and how long it may take there."""

    gpu: Gpu
    division: Division
    """What training.sharding comes to there."""
    needed: int
    """Bytes of one device with that division."""
    fits: bool
    seconds: tuple[float, float] | None
    """Shortest and longest; None without rows, or where it does not fit."""
    remedy: str
    """What would make it fit; empty where it does, or where nothing of this list would."""


def divide_on(gpu: Gpu, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting, asked: str) -> Division:
    """Return what `asked` of training.sharding comes to on `gpu`."""
    return divide(
        asked,
        lambda shards: peak_bytes(shape, targets, replace(setting, shards=shards)),
        room=int(gpu.usable_gib * GIB),
        processes=setting.processes,
        nodes=setting.nodes,
        four_bits=setting.four_bits,
    )


def judge(
    gpu: Gpu,
    shape: ModelShape,
    targets: tuple[Linear, ...],
    setting: Setting,
    *,
    asked: str,
    seconds_of: float | None = None,
    utilisation: tuple[float, float] = (1.0, 1.0),
) -> Verdict:
    """Judge whether the run fits on `gpu`, and how long it takes; `seconds_of` is its time at one teraflop a second.

    `setting` is that of the whole base, and `asked` training.sharding.
    """
    division = divide_on(gpu, shape, targets, setting, asked)
    there = replace(setting, shards=division.shards)
    needed = peak_bytes(shape, targets, there)
    if needed <= gpu.usable_gib * GIB:
        slowest, fastest = utilisation
        took = None if seconds_of is None else seconds_of / gpu.teraflops
        return Verdict(gpu, division, needed, True, None if took is None else (took / fastest, took / slowest), "")
    return Verdict(gpu, division, needed, False, None, find_remedy(gpu, shape, targets, there, asked))


def find_remedy(gpu: Gpu, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting, asked: str) -> str:
    """Return the first of the ways, from the cheapest on, by which the run would fit; empty where none would."""
    room = gpu.usable_gib * GIB
    return next((words for words, way in _ways(setting, asked) if peak_bytes(shape, targets, way) <= room), "")


def _ways(setting: Setting, asked: str) -> Iterator[tuple[str, Setting]]:
    """Yield (what to set, the setting that it gives): smaller passes first, then what is slower or cuts rows."""
    lighter, said = setting, list[str]()
    for tokens in (8192, 4096):
        if setting.longest <= tokens < max(setting.tokens, setting.scored):
            yield f"training.maxTokensPerPass: {tokens}", _with_tokens(setting, tokens)
    if not setting.checkpointing:
        lighter, said = replace(lighter, checkpointing=True), ["training.gradientCheckpointing: true"]
        yield said[0], lighter
    if asked == "none" and setting.ranks > 1 and not setting.four_bits:  # before anything that cuts rows
        yield " and ".join(["training.sharding: full", *said]), replace(lighter, shards=setting.ranks)
    for tokens in (8192, 4096, 2048, 1024, 512):
        if tokens < max(setting.tokens, setting.scored):
            field = "maxTokensPerPass" if tokens >= setting.longest else "maxTokensPerPass and maxLength"
            yield " and ".join([*said, f"training.{field}: {tokens}"]), _with_tokens(lighter, tokens)
    if setting.four_bits:
        return
    shared, whole = [*(["training.sharding: full"] if asked == "none" else []), *said], setting.shards == 1
    if whole:
        yield " and ".join(["model.quantization: 4bit", *said]), replace(lighter, four_bits=True)
    for gpus in (2, 4, 8):
        if gpus > setting.processes:
            yield (
                " and ".join([f"resources.gpus: {gpus}", *shared]),
                replace(lighter, processes=gpus, shards=gpus * setting.nodes),
            )


def _with_tokens(setting: Setting, tokens: int) -> Setting:
    fewer = min(tokens, setting.tokens)
    return replace(
        setting,
        tokens=fewer,
        learned=min(fewer, setting.learned),
        scored=min(tokens, setting.scored),
        longest=min(tokens, setting.longest),
    )
