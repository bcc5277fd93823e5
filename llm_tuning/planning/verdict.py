"""What of a run fits on which size of GPU, how its base is divided there, and what would help where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llm_tuning.models.shape import Linear, ModelShape
from llm_tuning.run.division import LEFT_FREE, Division, divide
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

FEWER_TOKENS = (8192, 4096, 2048, 1024, 512)


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

    @property
    def tight(self) -> bool:
        """Whether it fits with less than a tenth of the memory free."""
        return self.fits and not leaves_a_tenth(self.needed, self.gpu)


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


@dataclass(frozen=True)
class Way:
    """Something to set, and the setting that it gives."""

    words: str
    setting: Setting
    cheap: bool = False
    """It needs no more GPUs, cuts no rows, and costs little time."""


def find_remedy(gpu: Gpu, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting, asked: str) -> str:
    """Return by what the run would fit, leaving a tenth free where that can be had; empty where nothing would do.

    What is slow or cuts rows has more GPUs beside it, which do neither.
    """
    room = gpu.usable_gib * GIB

    def first(ways: Iterator[Way]) -> tuple[Way | None, bool]:
        """Return the first that leaves a tenth free, else the first that fits; and whether it leaves a tenth."""
        tight = None
        for way in ways:
            needed = peak_bytes(shape, targets, way.setting)
            if leaves_a_tenth(needed, gpu):
                return way, True
            if needed <= room:
                tight = tight or way
        return tight, False

    same, leaves = first(_ways(setting, asked))
    if same is not None and same.cheap and leaves:
        return same.words
    more, more_leaves = first(_more_gpus(setting, asked))
    if same is not None and more is not None and more_leaves < leaves:
        more = None
    free = {True: "", False: " with less than a tenth free"}
    found = [(same, leaves), (more, more_leaves)]
    if setting.shards > 1 and more_leaves and not leaves:  # small passes gather a base in parts the more often
        found.reverse()
    return ", or ".join(f"{way.words}{free[tenth]}" for way, tenth in found if way is not None)


def leaves_a_tenth(needed: int, gpu: Gpu) -> bool:
    """Return whether the estimate may be as much too low as `auto` allows for."""
    return needed <= (1 - LEFT_FREE) * gpu.usable_gib * GIB


def _ways(setting: Setting, asked: str) -> Iterator[Way]:
    """Yield what can be done on the same GPUs: smaller passes first, then what is slower or cuts rows."""
    lighter, said = setting, list[str]()
    for tokens in (8192, 4096):
        if setting.longest <= tokens < max(setting.tokens, setting.scored):
            yield Way(f"training.maxTokensPerPass: {tokens}", _with_tokens(setting, tokens), cheap=True)
    if not setting.checkpointing:
        lighter, said = replace(lighter, checkpointing=True), ["training.gradientCheckpointing: true"]
        yield Way(said[0], lighter, cheap=True)
    if asked == "none" and setting.ranks > 1 and not setting.four_bits:  # before anything that cuts rows
        divided = " and ".join(["training.sharding: full", *said])
        yield Way(divided, replace(lighter, shards=setting.ranks), cheap=True)
    for tokens in FEWER_TOKENS:
        if tokens < max(setting.tokens, setting.scored):
            yield Way(" and ".join([*said, _tokens_field(setting, tokens)]), _with_tokens(lighter, tokens))
    if setting.shards == 1 and not setting.four_bits:
        yield Way(" and ".join(["model.quantization: 4bit", *said]), replace(lighter, four_bits=True))


def _more_gpus(setting: Setting, asked: str) -> Iterator[Way]:
    """Yield a base in parts over more GPUs of a node, then over more nodes of eight or more; with whole rows first."""
    said = [*(["training.sharding: full"] if asked == "none" else [])]
    said += [] if setting.checkpointing else ["training.gradientCheckpointing: true"]
    said += ["model.quantization: none"] if setting.four_bits else []
    lighter = replace(setting, checkpointing=True, four_bits=False)
    sizes = [(gpus, setting.nodes) for gpus in (2, 4, 8) if gpus > setting.processes]
    # most nodes have eight at most: two such are there more often than one of sixteen
    sizes += [(max(8, setting.processes), nodes) for nodes in (2, 4, 8, 16) if nodes > setting.nodes]
    sizes += [(16, setting.nodes)] if setting.processes < 16 else []
    for tokens in (None, *FEWER_TOKENS):
        if tokens is not None and tokens >= max(setting.tokens, setting.scored):
            continue
        fewer = lighter if tokens is None else _with_tokens(lighter, tokens)
        for gpus, nodes in sizes:
            more = [f"resources.gpus: {gpus}"] if gpus > setting.processes else []
            more += [f"resources.nodes: {nodes}"] if nodes > setting.nodes else []
            words = " and ".join([*more, *said, *([_tokens_field(setting, tokens)] if tokens else [])])
            times = f"{gpus * nodes / setting.ranks:.3g}"
            yield Way(
                f"{words} ({times} times the rows a step)",
                replace(fewer, processes=gpus, nodes=nodes, shards=gpus * nodes),
            )


def _tokens_field(setting: Setting, tokens: int) -> str:
    field = "maxTokensPerPass" if tokens >= setting.longest else "maxTokensPerPass and maxLength"
    return f"training.{field}: {tokens}"


def _with_tokens(setting: Setting, tokens: int) -> Setting:
    fewer = min(tokens, setting.tokens)
    return replace(
        setting,
        tokens=fewer,
        learned=min(fewer, setting.learned),
        scored=min(tokens, setting.scored),
        longest=min(tokens, setting.longest),
    )
