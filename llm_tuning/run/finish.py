"""Rank 0's frame around a recipe: track and show it while it trains, publish and register what it leaves.

The order is what makes a kill at any moment harmless: all files of the stage, the manifest last, one rename, then the
registry (an index that heals from manifests), then MLflow, and the work folder goes at the very end.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_tuning import __version__
from llm_tuning.core.files import read_json
from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.errors import TryAgain
from llm_tuning.models.adapter import adapted_modules
from llm_tuning.models.base import inspect_base, read_config
from llm_tuning.models.card import write_model_card
from llm_tuning.models.families import family_of
from llm_tuning.models.held_out_scores import score_metrics
from llm_tuning.models.layout import DATA_REPORT, EVALUATION, LOSS_CURVE, METRICS, STAGE, TRAINING
from llm_tuning.models.loss_curve import draw_loss_curve
from llm_tuning.models.manifest import (
    AdapterRecord,
    BaseRecord,
    DatasetRecord,
    FromSource,
    Manifest,
    MlflowRecord,
    RowsRecord,
    StartAdapterRecord,
    TrainingRecord,
    read_manifest,
    utc_now,
)
from llm_tuning.models.metrics_file import read_metrics
from llm_tuning.models.publish import publish
from llm_tuning.models.registry import Registry
from llm_tuning.models.targets import find_targets
from llm_tuning.progress import Progress
from llm_tuning.run.hardware import hardware_metrics, hardware_record, hardware_tags
from llm_tuning.run.reporter import RunReporter
from llm_tuning.run.spec import RunSpec, shown_config
from llm_tuning.tracking import Tracker, summarise

log = logging.getLogger(__name__)

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "mlflow",
)


class Finisher:
    """Context in which rank 0 trains: `reporter` is for the recipe, `publish` for when it has returned."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._tracker = start_tracker(spec)
        self.reporter = RunReporter(Progress(), self._tracker)

    def __enter__(self) -> Finisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reporter.close()
        if error is not None:
            self._tracker.finish("KILLED" if isinstance(error, TryAgain) else "FAILED", artifacts=None)

    def publish(self, devices: list[str]) -> None:
        """Make the stage, which was trained on `devices`, a whole, registered and tracked model.

        Raises TryAgain if stopped before the rename.
        """
        spec = self._spec
        self.reporter.stage("publishing")
        stage = spec.work / STAGE
        hardware = hardware_record(spec)
        if hardware is not None:
            self._tracker.log(summarise(spec.work / METRICS).steps, hardware_metrics(hardware))
        scores = score_metrics(read_json(spec.work / EVALUATION) or {})
        if scores:
            self._tracker.log(summarise(spec.work / METRICS).steps, scores)
        shutil.copyfile(spec.work / METRICS, stage / METRICS)
        curve = draw_loss_curve(read_metrics(spec.work / METRICS), stage / LOSS_CURVE, mode=spec.config.mode)
        tracked = mlflow_record(self._tracker)
        manifest = build_manifest(spec, devices=devices, mlflow=tracked)
        if tracked is None and self._tracker.store is not None:
            manifest = manifest.model_copy(update={"mlflow_fault": self._tracker.reason or "it did not answer in time"})
        write_model_card(stage, manifest, LOSS_CURVE if curve else None)
        raise_if_stopped("before publishing")
        publish(stage, spec.target, manifest)
        self.reporter.close(done=True)
        _after_rename(spec, self._tracker)


def finish_published(spec: RunSpec) -> None:
    """Do what a run that was killed after its rename has left: registry, MLflow, and the work folder goes."""
    if (spec.work / METRICS).exists():
        _after_rename(spec, start_tracker(spec))
    else:
        Registry(spec.output_dir).heal(published=spec.model_id)
        shutil.rmtree(spec.work, ignore_errors=True)


def _after_rename(spec: RunSpec, tracker: Tracker) -> None:
    Registry(spec.output_dir).heal(published=spec.model_id)
    manifest = read_manifest(spec.target)
    result = tracker.finish(
        "FINISHED", artifacts=spec.target, tags=hardware_tags(manifest.hardware if manifest else None)
    )
    if result.note:
        log.warning("%s", result.note)
    elif result.run_id is not None and manifest is not None and manifest.mlflow is None:
        log.info("MLflow at %s has the run after all: %s", result.uri, result.run_id)
    shutil.rmtree(spec.work, ignore_errors=True)


def start_tracker(spec: RunSpec) -> Tracker:
    """Start tracking this run, or resume the MLflow run that an earlier start of it made."""
    config = spec.config
    return Tracker.start(
        config.tracking.uri,
        config.tracking.experiment_name,
        run_name=spec.model_id,
        work_dir=spec.work,
        params=flat(config.model_dump(by_alias=False, exclude={"tracking"}))
        | {"config_hash": spec.config_hash, "devices": ",".join(spec.devices), "adapter_path": str(spec.target)},
        tags={
            "model_id": spec.model_id,
            "mode": config.mode,
            "base": spec.base_name,
            "base_weight_hash": spec.base_weight_hash,
            "llm_tuning.version": __version__,
        },
        dataset={
            "path": config.dataset.path,
            "hash": spec.data_hash,
            **report_counts(read_json(spec.work / DATA_REPORT)),
        },
    )


def build_manifest(spec: RunSpec, *, devices: list[str], mlflow: MlflowRecord | None) -> Manifest:
    """Build the manifest of a run whose recipe has returned; `publish` adds the file hashes."""
    config = spec.config
    report = read_json(spec.work / DATA_REPORT)
    start = read_manifest(spec.start_adapter) if spec.start_adapter else None
    return Manifest(
        model_id=spec.model_id,
        model_name=spec.model_id,
        mode=config.mode,
        created_at=utc_now(),
        base=BaseRecord(
            path=config.model.path,
            name=spec.base_name,
            weight_hash=spec.base_weight_hash,
            source=FromSource.of(config.model.path),
        ),
        start_adapter=StartAdapterRecord(model_id=start.model_id, weight_hash=start.weight_hash) if start else None,
        adapter=adapter_record(spec),
        configuration=shown_config(config).model_dump(mode="json", by_alias=True),
        config_hash=spec.config_hash,
        dataset=dataset_record(spec, report),
        template_hash=spec.template_hash,
        metrics=read_json(spec.work / EVALUATION),
        mlflow=mlflow,
        library_versions=library_versions(),
        training=training_record(spec),
        hardware=hardware_record(spec),
        devices=devices,
        description=f"{config.mode} of {spec.base_name} on {rows_name(config.dataset.path)}",
        tags=[config.mode],
    )


def rows_name(path: str) -> str:
    """Return what a data set is called: by its source where it was fetched, else by its file or folder."""
    source = FromSource.of(path)
    return Path(path).name if source is None else source.uri.partition("?")[0].rpartition("/")[2]


def adapter_record(spec: RunSpec) -> AdapterRecord:
    """Say what the adapter in the stage changes, and why it leaves out the rest."""
    modules = adapted_modules(spec.work / STAGE)
    targets = find_targets(inspect_base(spec.config.model.path), spec.config.lora) if not spec.start_adapter else None
    in_order = [name for name in targets.modules if name in modules] if targets else sorted(modules)
    family = family_of(read_config(Path(spec.config.model.path)))
    return AdapterRecord(modules=in_order, left_out=targets.left_out if targets else {}, model_class=family.model_class)


def mlflow_record(tracker: Tracker) -> MlflowRecord | None:
    """Return where MLflow has the run; None without tracking, or when the store did not answer in time."""
    run_id = tracker.run_id
    if run_id is None or tracker.store is None:
        return None
    return MlflowRecord(run_id=run_id, uri=tracker.store.shown, experiment=tracker.experiment)


def dataset_record(spec: RunSpec, report: dict[str, Any]) -> DatasetRecord:
    """Build the record of the rows, by the report of their check."""
    path, evaluation = spec.config.dataset.path, None
    if spec.evaluation_hash is not None:
        checked = report["evaluation"]
        held_out = checked["path"]
        source = FromSource.of(held_out)
        evaluation = RowsRecord(path=held_out, hash=spec.evaluation_hash, source=source, **report_counts(checked))
    counts = report_counts(report)
    source = FromSource.of(path)
    return DatasetRecord(path=path, hash=spec.data_hash, evaluation=evaluation, report=report, source=source, **counts)


def report_counts(report: dict[str, Any]) -> dict[str, int]:
    """Return the rows read, kept and refused, by the report of their check."""
    return {name: report[name] for name in ("rows", "kept", "refused")}


def training_record(spec: RunSpec) -> TrainingRecord:
    """Summarise the training over all starts of the run.

    A recipe leaves how it ended (`stopped_early`, perhaps a KL of what is saved) in `training.json`.
    """
    ended = read_json(spec.work / TRAINING) or {}
    return TrainingRecord.model_validate(asdict(summarise(spec.work / METRICS)) | ended)


def library_versions() -> dict[str, str]:
    """Return the versions of what made the adapter, this project's own among them."""
    found = {"llm-tuning": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten `{"lora": {"rank": 8}}` to `{"lora.rank": 8}`, as MLflow shows parameters; unset ones are left out."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            result[f"{prefix}{name}"] = value
    return result
