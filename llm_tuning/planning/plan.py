"""A whole plan: the bill of one device, what of it fits where, and how long it may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_tuning.api.quantity import parse_quantity
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.data.check import check_dataset
from llm_tuning.data.report import Report
from llm_tuning.models.operations import Operations
from llm_tuning.models.shape import Linear, ModelShape, adapter_parameters, read_shape
from llm_tuning.modes import MODES
from llm_tuning.planning.memory import (
    CUDA_CONTEXT_BYTES,
    GIB,
    Part,
    Setting,
    activation_bytes,
    base_bytes,
    device_parts,
    host_bytes,
)
from llm_tuning.planning.work import Rows, Steps, count_steps, run_operations
from llm_tuning.run.devices import tokens_per_pass

UTILISATION = (0.15, 0.45)
"""Share of the peak that a run may reach, from short micro-batches on a small model to long ones on a large. Training
of large models reaches 0.3 to 0.6 (PaLM, arXiv 2204.02311, section 4.1); of a LoRA with small batches less. Not yet
measured by this project."""


@dataclass(frozen=True)
class Gpu:
    """A size of GPU memory as it is sold, and the card that stands for it."""

    gigabytes: int
    card: str
    usable_gib: float
    """The lowest total that nvidia-smi shows on common cards of the size (T4, A10, A100, L40S, A100, H200)."""
    teraflops: float
    """Peak of dense bf16 matrix products, by the card's data sheet."""


GPUS = (
    Gpu(16, "RTX A4000", 14.7, 77),
    Gpu(24, "A10", 22.5, 125),
    Gpu(40, "A100", 39.5, 312),
    Gpu(48, "L40S", 44.9, 362),
    Gpu(80, "H100", 79.2, 989),
    Gpu(141, "H200", 140.4, 989),
)


@dataclass(frozen=True)
class Verdict:
    """Whether the run fits on one size of GPU, and how long it may take there."""

    gpu: Gpu
    fits: bool
    seconds: tuple[float, float] | None
    """Shortest and longest; None without rows, or where it does not fit."""
    remedy: str
    """What would make it fit; empty where it does, or where nothing of this list would."""


@dataclass(frozen=True)
class Plan:
    """What is known before a run."""

    shape: ModelShape
    adapter_parameters: int
    setting: Setting
    parts: Sequence[Part]
    host_gib: float
    """Memory that the pod needs, where there are GPUs: the base goes through it."""
    pod_gib: float
    """Memory that the spec gives it."""
    report: Report | None
    rows: Rows | None
    steps: Steps | None
    operations: float | None
    verdicts: Sequence[Verdict]
    """Empty for a run on the CPU."""
    notes: Sequence[str]

    @property
    def device_gib(self) -> float:
        """The bill's sum."""
        return sum(part.size for part in self.parts) / GIB

    @property
    def pod_fits(self) -> bool:
        """Whether the pod's memory is enough."""
        return self.host_gib <= self.pod_gib


def make_plan(spec: TuningJobSpec, *, base: Path, dataset: Path | None) -> Plan:
    """Plan the run of `spec` with the base in a local folder and, for steps and time, the data set in a local file.

    Raises InputError for a base that cannot be used, and DatasetRefused for rows with which the run would be refused.
    """
    shape = read_shape(base)
    targets = shape.targets(spec.lora)
    report = rows = steps = operations = None
    if dataset is not None:
        report = check_dataset(
            dataset,
            form=MODES[spec.mode].rows,
            tokenizer_dir=base,
            max_length=spec.training.max_length,
            skip_invalid_rows=spec.dataset.skip_invalid_rows,
        )
        rows = Rows.of(report)
    setting = _setting(spec, shape, rows)
    if report is not None:
        steps = count_steps(report.kept, spec.training, processes=setting.processes)
    if rows is not None and steps is not None:
        cost = Operations.of(shape, targets, spec.lora.rank)
        operations = run_operations(cost, setting, rows=rows, steps=steps, training=spec.training)
    parts = device_parts(shape, targets, setting)
    needed = sum(part.size for part in parts)
    seconds_of = operations / setting.processes / 1e12 if operations is not None and setting.cuda else None
    return Plan(
        shape=shape,
        adapter_parameters=adapter_parameters(targets, spec.lora.rank),
        setting=setting,
        parts=parts,
        host_gib=(host_bytes(shape, setting) if setting.cuda else needed) / GIB,
        pod_gib=float(parse_quantity(spec.resources.memory)) / GIB,
        report=report,
        rows=rows,
        steps=steps,
        operations=operations,
        verdicts=[_verdict(gpu, needed, seconds_of, _remedy(gpu, shape, targets, setting)) for gpu in GPUS]
        if setting.cuda
        else [],
        notes=_notes(shape, setting),
    )


def _setting(spec: TuningJobSpec, shape: ModelShape, rows: Rows | None) -> Setting:
    training, mode, cuda = spec.training, MODES[spec.mode], spec.resources.gpus > 0
    budget = tokens_per_pass(training, "cuda:0" if cuda else "cpu", shape.parameters)
    longest = rows.longest if rows is not None else training.max_length  # a row alone may be longer than a micro-batch
    in_a_step = longest * training.batch_size * training.gradient_accumulation_steps
    tokens = max(longest, min(budget, in_a_step))
    learned = rows.learned / rows.tokens if rows is not None else 1.0
    bf16 = training.precision == "bf16" or (training.precision == "auto" and cuda)
    return Setting(
        memory=mode.memory,
        rank=spec.lora.rank,
        dropout=mode.uses_dropout and spec.lora.dropout > 0,
        tokens=tokens,
        learned=min(tokens, int(tokens * min(1.0, 1.5 * learned))),  # a micro-batch may have more of them than the mean
        number_bytes=2 if bf16 else 4,
        four_bits=spec.model.quantization == "4bit",
        checkpointing=training.gradient_checkpointing,
        cuda=cuda,
        processes=max(1, spec.resources.gpus),
        start_adapter=spec.model.adapter is not None,
    )


def _verdict(gpu: Gpu, needed: int, seconds_of: float | None, remedy: str) -> Verdict:
    """Judge whether the run fits on `gpu`, and how long it takes; `seconds_of` is its time at one teraflop a second."""
    if needed <= gpu.usable_gib * GIB:
        slowest, fastest = UTILISATION
        took = None if seconds_of is None else seconds_of / gpu.teraflops
        return Verdict(gpu, True, None if took is None else (took / fastest, took / slowest), "")
    return Verdict(gpu, False, None, remedy)


def _remedy(gpu: Gpu, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> str:
    """Return the first of the ways, from the cheapest on, by which the run would fit."""
    ways: list[tuple[str, Setting]] = []
    lighter, said = setting, list[str]()
    if not setting.checkpointing:
        lighter, said = replace(lighter, checkpointing=True), ["training.gradientCheckpointing: true"]
        ways.append((said[0], lighter))
    for tokens in (2048, 1024, 512):
        if tokens < setting.tokens:
            fewer = replace(lighter, tokens=tokens, learned=min(tokens, lighter.learned))
            limit = f"maxTokensPerPass and maxLength: {tokens}"
            ways.append((" and ".join([*said, f"training.{limit}"]), fewer))
    if not setting.four_bits:
        lighter, said = replace(lighter, four_bits=True), ["model.quantization: 4bit", *said]
        ways.append((" and ".join(said), lighter))
    for words, way in ways:
        if sum(part.size for part in device_parts(shape, targets, way)) <= gpu.usable_gib * GIB:
            return words
    return ""


def _notes(shape: ModelShape, setting: Setting) -> list[str]:
    notes = ["an estimate by formulas (llm_tuning/planning): no GPU has confirmed it yet; leave a tenth free"]
    if setting.cuda:
        slow, fast = UTILISATION
        notes.append(f"time: {slow:.0%} to {fast:.0%} of the named card's dense bf16 peak, without start and loading")
        if setting.number_bytes == 2:
            notes.append("a card without bf16 (T4, V100) trains in fp32: twice the memory, and far slower")
    else:
        notes.append("time is not estimated on a CPU: it depends on the cores far more than on the model")
    if shape.experts:
        notes.append("a mixture of experts: their layers and routing are modelled roughly")
    largest = activation_bytes(shape, shape.linears, setting)
    if setting.cuda and largest > base_bytes(shape, setting) + CUDA_CONTEXT_BYTES and not setting.checkpointing:
        notes.append("most are activations: training.gradientCheckpointing makes them small, and a run a third slower")
    return notes
