"""A whole plan: the bill of one device, what of it fits where, and how long it may take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    evaluation_parts,
    host_bytes,
    peak_bytes,
    total,
)
from llm_tuning.planning.work import Rows, Steps, count_steps, run_operations
from llm_tuning.run.devices import SCORING_BYTES, tokens_per_pass
from llm_tuning.run.hardware import DENSE_BF16_TERAFLOPS

UTILISATION = ((10**9, (0.03, 0.3)), (25 * 10**8, (0.08, 0.4)))
"""Share of the peak that a run may reach with a base of fewer parameters than the number beside it, from short
micro-batches to full ones: a small base makes a GPU wait for Python. Not yet measured by this project."""
UTILISATION_OF_LARGE = (0.15, 0.45)
"""For other bases. Full training of large models reaches 0.3 to 0.6 (PaLM, arXiv 2204.02311, section 4.1)."""

BATCH_ON_A_GPU = (32, 64)
"""Rows a step that are advised where a step holds less than a micro-batch could."""
FASTER_TOKENS = ((10**9, 16_384), (25 * 10**8, 8192))
"""Tokens a pass that are advised for a base of fewer parameters than the number beside it, on a card with room for
them: the defaults are for 24 GB. By estimate, not yet by measurement."""


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
    """The bill at the peak of a training step."""
    evaluation: Sequence[Part]
    """The bill at the peak of an evaluation or a scoring pass; empty where the run has none."""
    host_gib: float
    """Memory that the pod needs."""
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
        """The larger bill's sum."""
        return max(total(self.parts), total(self.evaluation)) / GIB

    @property
    def pod_fits(self) -> bool:
        """Whether the pod's memory is enough."""
        return self.host_gib <= self.pod_gib


def make_plan(spec: TuningJobSpec, *, base: Path, dataset: Path | None, evaluation: str | Path | None = None) -> Plan:
    """Plan the run of `spec` with the base in a local folder and, for steps and time, the data set in a local file.

    `evaluation` is a local file of rows to evaluate on, or a split of `dataset` (`#validation`).

    Raises InputError for a base that cannot be used, and DatasetRefused for rows with which the run would be refused.
    """
    shape = read_shape(base)
    targets = shape.targets(spec.lora)
    report = rows = steps = operations = None
    if dataset is not None:
        report = check_dataset(
            dataset,
            form=MODES[spec.mode].form_of(spec),
            tokenizer_dir=base,
            max_length=spec.training.max_length,
            skip_invalid_rows=spec.dataset.skip_invalid_rows,
            columns=spec.dataset.columns,
            learn=spec.training.learn,
            learn_reasoning=spec.training.learn_reasoning,
            evaluation=evaluation,
        )
        rows = Rows.of(report)
    processes = spec.resources.ranks
    if report is not None:
        steps = count_steps(report.examples, spec.training, processes=processes, evaluation=_evaluated(spec, report))
    setting = _setting(spec, shape, rows, steps)
    if rows is not None and steps is not None:
        cost = Operations.of(shape, targets, spec.lora.rank)
        operations = run_operations(cost, setting, rows=rows, steps=steps, training=spec.training)
    needed = peak_bytes(shape, targets, setting)
    timed = setting.cuda and setting.number_bytes == 2  # the peaks are those of bf16
    seconds_of = operations / processes / 1e12 if operations is not None and timed else None
    share = _utilisation(shape)
    return Plan(
        shape=shape,
        adapter_parameters=adapter_parameters(targets, spec.lora.rank),
        setting=setting,
        parts=device_parts(shape, targets, setting),
        evaluation=evaluation_parts(shape, targets, setting),
        host_gib=(host_bytes(shape, setting) if setting.cuda else needed) / GIB,
        pod_gib=float(parse_quantity(spec.resources.memory)) / GIB,
        report=report,
        rows=rows,
        steps=steps,
        operations=operations,
        verdicts=[_verdict(gpu, needed, seconds_of, share, _remedy(gpu, shape, targets, setting)) for gpu in GPUS]
        if setting.cuda
        else [],
        notes=[*_notes(spec, shape, targets, setting, rows), *_note_on_evaluation(spec, report)],
    )


def _evaluated(spec: TuningJobSpec, report: Report) -> int | None:
    """Count the rows of the evaluation file: None without one, 0 where it is not on this machine."""
    if report.evaluation is not None:
        return report.evaluation.evaluated
    return None if spec.dataset.evaluation is None else 0


def _setting(spec: TuningJobSpec, shape: ModelShape, rows: Rows | None, steps: Steps | None) -> Setting:
    training, mode, cuda = spec.training, MODES[spec.mode], spec.resources.gpus > 0
    budget = _budget(spec, shape)
    longest = rows.longest if rows is not None else training.max_length
    longest *= mode.memory.sequences  # a row alone may be longer than a micro-batch
    in_a_step = longest * training.batch_size * training.gradient_accumulation_steps
    tokens = max(longest, min(budget, in_a_step))
    learned = rows.learned / rows.tokens if rows is not None else 1.0
    scored = budget
    if rows is not None and steps is not None:
        at_once = steps.training_rows if mode.memory.scoring_passes(steps.epochs) else steps.held_out
        scored = min(budget, int(at_once * rows.mean))
    elif training.eval_fraction == 0 and not mode.memory.scoring_passes(training.epochs):
        scored = 0
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
        scored=max(longest, scored) if scored else 0,
        longest=longest,
        shards=spec.resources.ranks if training.sharding == "full" else 1,
        nodes=spec.resources.nodes,
    )


def _budget(spec: TuningJobSpec, shape: ModelShape) -> int:
    return tokens_per_pass(spec.training, "cuda:0" if spec.resources.gpus > 0 else "cpu", shape.parameters)


def _utilisation(shape: ModelShape) -> tuple[float, float]:
    return next((share for below, share in UTILISATION if shape.parameters < below), UTILISATION_OF_LARGE)


def _verdict(gpu: Gpu, needed: int, seconds_of: float | None, utilisation: tuple[float, float], remedy: str) -> Verdict:
    """Judge whether the run fits on `gpu`, and how long it takes; `seconds_of` is its time at one teraflop a second."""
    if needed <= gpu.usable_gib * GIB:
        slowest, fastest = utilisation
        took = None if seconds_of is None else seconds_of / gpu.teraflops
        return Verdict(gpu, True, None if took is None else (took / fastest, took / slowest), "")
    return Verdict(gpu, False, None, remedy)


def _remedy(gpu: Gpu, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> str:
    """Return the first of the ways, from the cheapest on, by which the run would fit."""
    room = gpu.usable_gib * GIB
    return next((words for words, way in _ways(setting) if peak_bytes(shape, targets, way) <= room), "")


def _ways(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Yield (what to set, the setting that it gives): smaller passes first, then what is slower or cuts rows."""
    lighter, said = setting, list[str]()
    for tokens in (8192, 4096):
        if setting.longest <= tokens < max(setting.tokens, setting.scored):
            yield f"training.maxTokensPerPass: {tokens}", _with_tokens(setting, tokens)
    if not setting.checkpointing:
        lighter, said = replace(lighter, checkpointing=True), ["training.gradientCheckpointing: true"]
        yield said[0], lighter
    for tokens in (8192, 4096, 2048, 1024, 512):
        if tokens < max(setting.tokens, setting.scored):
            field = "maxTokensPerPass" if tokens >= setting.longest else "maxTokensPerPass and maxLength"
            yield " and ".join([*said, f"training.{field}: {tokens}"]), _with_tokens(lighter, tokens)
    if setting.four_bits:
        return
    shared, whole = ["training.sharding: full", *said], setting.shards == 1
    if whole and setting.ranks > 1:
        yield " and ".join(shared), replace(lighter, shards=setting.ranks)
    if whole:
        yield " and ".join(["model.quantization: 4bit", *said]), replace(lighter, four_bits=True)
    for gpus in (2, 4, 8):
        if gpus > setting.processes:
            of_them = [f"resources.gpus: {gpus}", *(shared if whole else said)]
            yield " and ".join(of_them), replace(lighter, processes=gpus, shards=gpus * setting.nodes)


def _with_tokens(setting: Setting, tokens: int) -> Setting:
    fewer = min(tokens, setting.tokens)
    return replace(
        setting,
        tokens=fewer,
        learned=min(fewer, setting.learned),
        scored=min(tokens, setting.scored),
        longest=min(tokens, setting.longest),
    )


def _notes(
    spec: TuningJobSpec, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting, rows: Rows | None
) -> list[str]:
    notes = ["an estimate by formulas (llm_tuning/planning): no GPU has confirmed it yet; leave a tenth free"]
    if setting.cuda:
        slow, fast = _utilisation(shape)
        if setting.number_bytes == 2:
            notes.append(
                f"time: {slow:.0%} to {fast:.0%} of the named card's dense bf16 peak, without start and loading"
            )
        else:
            notes.append("time is not estimated in fp32, which takes several times as long as bf16")
        if spec.training.precision == "auto":
            notes.append(_without_bf16(GPUS[0], shape, targets, replace(setting, number_bytes=4)))
        if setting.four_bits:
            notes.append(_probes(shape, setting))
        if rows is not None:
            notes += _small_steps(spec, rows, _budget(spec, shape))
        notes += _larger_pass(spec, shape, targets, setting)
    else:
        notes.append("time is not estimated on a CPU: it depends on the cores far more than on the model")
    if shape.experts:
        notes.append("a mixture of experts: their layers and routing are modelled roughly")
    largest = activation_bytes(shape, shape.linears, setting)
    if setting.cuda and largest > base_bytes(shape, setting) + CUDA_CONTEXT_BYTES and not setting.checkpointing:
        notes.append("most are activations: training.gradientCheckpointing makes them small, and a run a third slower")
    return notes


def _note_on_evaluation(spec: TuningJobSpec, report: Report | None) -> list[str]:
    if report is None or report.evaluation is not None or spec.dataset.evaluation is None:
        return []
    return ["dataset.evaluation is not on this machine: its rows are not checked, and not in the time"]


def _without_bf16(gpu: Gpu, shape: ModelShape, targets: tuple[Linear, ...], fp32: Setting) -> str:
    """Say what the run takes in fp32 on a card without bf16 of this size, and what would make it fit."""
    needed = peak_bytes(shape, targets, fp32) / GIB
    said = f"a card without bf16 (T4) trains in fp32, far slower: {needed:.1f} GiB there"
    if needed <= gpu.usable_gib:
        return f"{said}, which fits {gpu.gigabytes} GB"
    remedy = _remedy(gpu, shape, targets, fp32)
    help_ = f"would fit with {remedy}" if remedy else "a larger GPU"
    return f"{said}, {needed - gpu.usable_gib:.1f} GiB too much for {gpu.gigabytes} GB; {help_}"


def _larger_pass(spec: TuningJobSpec, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> list[str]:
    """Say on which cards a small base has room for larger passes than by default."""
    tokens = next((tokens for below, tokens in FASTER_TOKENS if shape.parameters < below), 0)
    if spec.training.max_tokens_per_pass is not None or tokens <= setting.longest:
        return []
    learned = tokens * setting.learned // setting.tokens
    full = replace(setting, tokens=tokens, learned=learned, scored=tokens if setting.scored else 0)
    needed = peak_bytes(shape, targets, full)
    smallest = next((gpu for gpu in GPUS if needed <= gpu.usable_gib * GIB), None)
    if smallest is None:
        return []
    said = f"training.maxTokensPerPass {tokens} fits GPUs of {smallest.gigabytes} GB and more"
    fewest, most = BATCH_ON_A_GPU
    return [f"{said}: faster with a base this small, with training.batchSize {fewest} to {most}"]


def _probes(shape: ModelShape, setting: Setting) -> str:
    """Say what the end of a run on 4 bits takes, which is no part of the bill: without it the run goes on."""
    needed = base_bytes(shape, replace(setting, four_bits=False)) + SCORING_BYTES + CUDA_CONTEXT_BYTES
    dtype = "bf16" if setting.number_bytes == 2 else "fp32"
    return (
        f"4 bits: at its end the run loads the base in {dtype} to score the proof's probes, {needed / GIB:.1f} GiB; on "
        "a smaller GPU they are scored on 4 bits, and a small effect may not be provable"
    )


def _small_steps(spec: TuningJobSpec, rows: Rows, budget: int) -> list[str]:
    """Say that a GPU is kept waiting where the rows of a step are fewer tokens than a micro-batch takes."""
    tokens = rows.mean * spec.training.batch_size * spec.training.gradient_accumulation_steps
    if tokens >= budget:
        return []
    fewest, most = BATCH_ON_A_GPU
    said = f"a step holds some {tokens:,.0f} tokens a GPU, less than the {budget:,} that a pass takes"
    if spec.training.batch_size >= fewest:
        return [said]
    return [f"{said}: training.batchSize {fewest} to {most} keeps a GPU busier (fewer steps: another run)"]
