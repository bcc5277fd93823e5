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
from llm_tuning.planning.verdict import GPUS, Gpu, Verdict, judge
from llm_tuning.planning.work import run_operations
from llm_tuning.run.devices import SCORING_BYTES, tokens_per_pass
from llm_tuning.run.division import divide
from llm_tuning.run.memory import (
    CUDA_CONTEXT_BYTES,
    GIB,
    Part,
    activation_bytes,
    base_bytes,
    device_parts,
    evaluation_parts,
    host_bytes,
    peak_bytes,
    total,
)
from llm_tuning.run.setting import Rows, Setting, Steps, count_steps_of, setting_of

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
    resources, asked = spec.resources, spec.training.sharding
    if report is not None:
        steps = count_steps_of(spec, report, processes=resources.ranks)
    cuda = resources.gpus > 0
    bf16 = spec.training.precision == "bf16" or (spec.training.precision == "auto" and cuda)
    setting = setting_of(
        spec,
        shape,
        cuda=cuda,
        number_bytes=2 if bf16 else 4,
        processes=max(1, resources.gpus),
        nodes=resources.nodes,
        rows=rows,
        steps=steps,
    )
    if rows is not None and steps is not None:
        cost = Operations.of(shape, targets, spec.lora.rank)
        operations = run_operations(cost, setting, rows=rows, steps=steps, training=spec.training)
    timed = setting.cuda and setting.number_bytes == 2  # the peaks are those of bf16
    seconds_of = operations / resources.ranks / 1e12 if operations is not None and timed else None
    share = _utilisation(shape)
    verdicts = [
        judge(gpu, shape, targets, setting, asked=asked, seconds_of=seconds_of, utilisation=share)
        for gpu in (GPUS if cuda else ())
    ]
    setting = replace(setting, shards=_shards_of_the_bill(spec, verdicts))
    needed = peak_bytes(shape, targets, setting)
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
        verdicts=verdicts,
        notes=[
            *_notes(spec, shape, targets, setting, rows),
            *_note_on_evaluation(spec, report),
            *_note_on_more_gpus(verdicts),
        ],
    )


def _shards_of_the_bill(spec: TuningJobSpec, verdicts: Sequence[Verdict]) -> int:
    """Return how the base is divided in the bill: as little as on any GPU on which the run fits."""
    if not verdicts:
        resources = spec.resources
        return divide(
            spec.training.sharding,
            lambda _shards: 0,
            room=None,
            processes=max(1, resources.gpus),
            nodes=resources.nodes,
            four_bits=spec.model.quantization == "4bit",
        ).shards
    return min((verdict.division.shards for verdict in verdicts if verdict.fits), default=verdicts[-1].division.shards)


def _utilisation(shape: ModelShape) -> tuple[float, float]:
    return next((share for below, share in UTILISATION if shape.parameters < below), UTILISATION_OF_LARGE)


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
            fp32 = replace(setting, number_bytes=4, shards=1)
            notes.append(_without_bf16(GPUS[0], shape, targets, fp32, spec.training.sharding))
        if setting.four_bits:
            notes.append(_probes(shape, setting))
        if rows is not None:
            notes += _small_steps(spec, rows, tokens_per_pass(spec.training, "cuda:0", shape.parameters))
        notes += _larger_pass(spec, shape, targets, setting)
    else:
        notes.append("time is not estimated on a CPU: it depends on the cores far more than on the model")
        notes += _whole_on_cpus(spec, shape, targets, setting)
    if shape.experts:
        notes.append("a mixture of experts: their layers and routing are modelled roughly")
    largest = activation_bytes(shape, shape.linears, setting)
    if setting.cuda and largest > base_bytes(shape, setting) + CUDA_CONTEXT_BYTES and not setting.checkpointing:
        notes.append("most are activations: training.gradientCheckpointing makes them small, and a run a third slower")
    return notes


def _whole_on_cpus(spec: TuningJobSpec, shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> list[str]:
    """Say what `full` would save each pod: `auto` divides nothing on CPUs."""
    if setting.ranks == 1 or setting.four_bits or spec.training.sharding == "full":
        return []
    divided = peak_bytes(shape, targets, replace(setting, shards=setting.ranks)) / GIB
    return [
        "each pod has the whole base: on CPUs it is divided only with training.sharding: full, which takes "
        f"{divided:.1f} GiB in each of {setting.nodes} pods"
    ]


def _note_on_evaluation(spec: TuningJobSpec, report: Report | None) -> list[str]:
    if report is None or report.evaluation is not None or spec.dataset.evaluation is None:
        return []
    return ["dataset.evaluation is not on this machine: its rows are not checked, and not in the time"]


def _note_on_more_gpus(verdicts: Sequence[Verdict]) -> list[str]:
    if not any("resources." in verdict.remedy for verdict in verdicts):
        return []
    return [
        "more GPUs or nodes: each takes training.batchSize rows of a step, so a step learns as many times the rows, "
        "which is another result; lower batchSize as much for the same. A run that has started goes on only with as "
        "many rows a step. Several nodes need a claim that all can mount (ReadWriteMany)"
    ]


def _without_bf16(gpu: Gpu, shape: ModelShape, targets: tuple[Linear, ...], fp32: Setting, asked: str) -> str:
    """Say what the run takes in fp32 on a card without bf16 of this size, and what would make it fit."""
    found = judge(gpu, shape, targets, fp32, asked=asked)
    needed = found.needed / GIB
    said = f"a card without bf16 (T4) trains in fp32, far slower: {needed:.1f} GiB there"
    if found.division.shards > 1:
        said += f" with the base {found.division.how}"
    if found.fits:
        return f"{said}, which fits {gpu.gigabytes} GB" + (" with less than a tenth free" if found.tight else "")
    help_ = f"would fit with {found.remedy}" if found.remedy else "a larger GPU"
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
