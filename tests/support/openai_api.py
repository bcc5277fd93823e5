"""What the tests of the fine-tuning API stand on: a backend that holds TuningJobs in a list, and runs in `models/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_tuning.client.objects import TuningJobView
from llm_tuning.models.layout import CHECKPOINTS, METRICS, WORK_FOLDER
from llm_tuning.models.manifest import BaseRecord, Manifest, TrainingRecord, write_manifest
from llm_tuning.models.metrics_file import MetricsFile
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.files import FileStore
from llm_tuning.openai_api.found import Found

SETTINGS = Settings.parse({"organization": "acme", "bases": {"tiny": {"path": "base/tiny"}}})
FINISHED = "2026-12-01T10:00:00Z"
MIB = 2**20


@dataclass
class ListedJobs:
    """A backend that can only be asked for its jobs."""

    root: Path
    claim: str = "tuning"
    held: list[TuningJobView] = field(default_factory=list)

    async def jobs(self, labels: Mapping[str, str] | None = None) -> Found[TuningJobView]:
        return Found(self.held)

    async def run(self) -> None:
        pass

    async def close(self) -> None:
        pass


def make_context(root: Path, *, file_bytes: int = MIB, total_bytes: int = 4 * MIB) -> Context:
    """Build a server's parts over the folder of a claim."""
    store = FileStore(root, file_bytes=file_bytes, total_bytes=total_bytes)
    return Context(ListedJobs(root), SETTINGS, store)  # type: ignore[arg-type] # the files ask no more of it


def make_job(name: str, dataset: Mapping[str, str], *, model_id: str = "", **metadata: Any) -> TuningJobView:
    """Build a TuningJob that reads `dataset`; with a `model_id` it has succeeded."""
    conditions = [
        {"type": kind, "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": FINISHED}
        for kind in ("Succeeded", "Finished")
    ]
    status = {"modelId": model_id, "completionTime": FINISHED, "conditions": conditions} if model_id else {}
    return TuningJobView.of(
        {
            "metadata": {"name": name, "namespace": "team", "uid": name, "creationTimestamp": FINISHED, **metadata},
            "spec": {
                "mode": "sft",
                "model": {"path": "base/tiny"},
                "dataset": dict(dataset),
                "volume": {"claimName": "tuning"},
            },
            "status": status,
        }
    )


def make_run(root: Path, model_id: str, lines: Sequence[tuple[int, Mapping[str, float]]], **manifest: Any) -> Path:
    """Write the files of a finished adapter into `models/`, with `lines` of metrics (step, figures)."""
    folder = root / "models" / model_id
    folder.mkdir(parents=True)
    _write_metrics(folder, lines)
    given = {"training": TrainingRecord(steps=lines[-1][0], tokens=1234), "created_at": FINISHED, **manifest}
    base = BaseRecord(path="base/tiny", name="tiny", weight_hash="0" * 64)
    write_manifest(folder, Manifest(model_id=model_id, mode="sft", base=base, **given))
    return folder


def make_work(
    root: Path, model_id: str, lines: Sequence[tuple[int, Mapping[str, float]]], checkpoints: Sequence[int]
) -> Path:
    """Write what a run under way has in `models/.work/`."""
    folder = root / "models" / WORK_FOLDER / model_id
    for step in checkpoints:
        (folder / CHECKPOINTS / f"checkpoint-{step}").mkdir(parents=True)
    _write_metrics(folder, lines)
    return folder


def _write_metrics(folder: Path, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    metrics = MetricsFile(folder / METRICS)
    for step, figures in lines:
        metrics.log(step, figures)
    metrics.close()
