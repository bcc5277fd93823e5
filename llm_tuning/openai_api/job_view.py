"""A TuningJob as OpenAI's job: its status, its error, its figures. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from llm_tuning.api.conditions import ConditionType, Reason
from llm_tuning.client.objects import TuningJobView
from llm_tuning.modes import MODES
from llm_tuning.openai_api import names
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.found import Described
from llm_tuning.openai_api.job_request import DPO, Kept
from llm_tuning.openai_api.wire import (
    FineTuningJob,
    JobError,
    JobStatus,
    UsedDpo,
    UsedDpoHyperparameters,
    UsedHyperparameters,
    UsedMethod,
    UsedSupervised,
)
from llm_tuning.pod.contract import PodReason

_OF_BASE = (PodReason.BASE_MODEL_NOT_FOUND, PodReason.BASE_MODEL_INVALID, PodReason.UNSAFE_FORMAT)
_OF_ADAPTER = (PodReason.ADAPTER_NOT_FOUND, PodReason.ADAPTER_INVALID, Reason.ADAPTER_JOB_FAILED)
_OF_ROWS = (PodReason.DATASET_INVALID, PodReason.DATASET_NOT_FOUND)
_OF_MODEL = (*_OF_BASE, *_OF_ADAPTER)
_UPLOAD = re.compile(rf"(?:[^\s:;,]*/)?{names.UPLOADS}/({names.FILE_ID.pattern})/{re.escape(names.DATA_FILE)}")
_WORDS = {
    "spec.mode to sft": "method.type to supervised",
    "spec.mode to dpo": "method.type to dpo",
    "spec.dataset.evaluation": "validation_file",
    "spec.dataset.path": "training_file",
    "spec.training.epochs": "n_epochs",
    "spec.training.batchSize": "batch_size",
    "spec.dpo.beta": "beta",
    "spec.model.path": "model",
    "spec.model.uri": "model",
    "set spec.suspend to false to resume": "resume the job to go on",
}
"""Fields of the spec that a request has by other names."""
_NO_FIELD = re.compile(r";? or set spec\.dataset\.skipInvalidRows to true to train on the other [\d,]+")
"""Advice that a request has no field for."""


def view(
    job: TuningJobView, settings: Settings, *, trained_tokens: int | None = None, route: str | None = None
) -> FineTuningJob:
    """Build the answer; `route` is the name under which a model of kubectl's is served."""
    kept, status, spec = Kept.of(job), status_of(job), job.spec
    rate, usual = spec.training.resolved_learning_rate(spec.mode), MODES[spec.mode].default_learning_rate
    model_id = job.status.model_id if job.status is not None else None
    is_done = status == "succeeded"
    used: dict[str, Any] = {
        "n_epochs": spec.training.epochs if spec.training.max_steps is None else None,
        "batch_size": spec.training.batch_size,
        "learning_rate_multiplier": kept.learning_rate_multiplier if kept else float(f"{rate / usual:.6g}"),
    }
    return FineTuningJob(
        id=job.name,
        created_at=created_at(job),
        error=error_of(job) if status == "failed" else None,
        fine_tuned_model=(kept.fine_tuned_model if kept else route) if is_done else None,
        finished_at=_finished_at(job, status),
        hyperparameters=UsedHyperparameters(**used),
        model=kept.model if kept else _name_of_base(job, settings),
        organization_id=settings.organization,
        result_files=[names.result_id(model_id)] if is_done and model_id else [],
        seed=spec.training.seed,
        status=status,
        trained_tokens=trained_tokens if is_done else None,
        training_file=_file(spec.dataset.path) or _other_rows(job),
        validation_file=_file(spec.dataset.evaluation),
        estimated_finish=_estimated_finish(job) if status == "running" else None,
        metadata=kept.metadata if kept else None,
        method=_used_method(job, used),
    )


def status_of(job: TuningJobView) -> JobStatus:
    """Return OpenAI's word for where a TuningJob is."""
    if job.has_succeeded:
        return "succeeded"
    if cancelled_at(job) is not None:
        return "cancelled"
    if job.is_finished:
        return "failed"
    return "paused" if job.spec.suspend else _of_chain(job)


def _of_chain(job: TuningJobView) -> JobStatus:
    """Return how far a TuningJob is that is under way."""
    now = job.conditions.get(ConditionType.RECONCILING)
    if now is not None and now.reason in (Reason.SUSPENDED, Reason.SUSPENDING):
        return "queued"  # resumed a moment ago
    if now is None or now.reason in (Reason.PENDING, Reason.QUEUED) or job.trouble:
        return "running" if _has_trained(job) else "queued"
    if not job.is_true(ConditionType.DATASET_VALID):
        return "validating_files"
    return "running" if now.reason == Reason.TRAINING or _has_trained(job) else "queued"


def _has_trained(job: TuningJobView) -> bool:
    progress = job.status.progress if job.status is not None else None
    return progress is not None and progress.step > 0 and job.is_true(ConditionType.DATASET_VALID)


def cancelled_at(job: Described) -> int | None:
    """Return when a job was cancelled; None where it was not."""
    return seconds((job.metadata.get("annotations") or {}).get(names.ANNOTATION_CANCELLED))


def deleted_at(job: Described) -> int | None:
    """Return when the model that a job has made was deleted; None where it was not."""
    return seconds((job.metadata.get("annotations") or {}).get(names.ANNOTATION_MODEL_DELETED))


def created_at(job: Described) -> int:
    """Return when a job was made."""
    return seconds(job.metadata.get("creationTimestamp")) or 0


def seconds(time: str | None) -> int | None:
    """Return a time of Kubernetes' (RFC 3339) in seconds since 1970; None for what is none."""
    try:
        return int(datetime.fromisoformat(time).timestamp()) if time else None
    except ValueError:
        return None


def error_of(job: TuningJobView) -> JobError:
    """Return why a job has failed, in the words of its request."""
    why = job.conditions.get(ConditionType.SUCCEEDED)
    reason, message = (why.reason, why.message) if why is not None else ("Unknown", "")
    return JobError(code=_snake(reason), message=in_request_words(message), param=_param(job, reason, message))


def in_request_words(message: str) -> str:
    """Rewrite a message of a TuningJob: files by their ids, fields by the request's names, others left out."""
    message = _NO_FIELD.sub("", _UPLOAD.sub(r"\1", message))
    for field, word in _WORDS.items():
        message = message.replace(field, word)
    return message


def _param(job: TuningJobView, reason: str, message: str) -> str | None:
    if reason in _OF_MODEL:
        return "model"
    if reason not in _OF_ROWS:
        return None
    dataset = job.spec.dataset
    names_evaluation = dataset.evaluation is not None and dataset.evaluation in message
    names_training = dataset.path is not None and dataset.path in message
    return "validation_file" if names_evaluation and not names_training else "training_file"


def _snake(reason: str) -> str:
    """Write a reason as OpenAI writes codes: DatasetInvalid is dataset_invalid, GPUUnavailable gpu_unavailable."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", reason.replace("GPU", "Gpu")).lower()


def _finished_at(job: TuningJobView, status: JobStatus) -> int | None:
    if status == "cancelled":
        return cancelled_at(job)
    return seconds(job.status.completion_time) if job.is_finished and job.status is not None else None


def _estimated_finish(job: TuningJobView) -> int | None:
    progress = job.status.progress if job.status is not None else None
    if progress is None or progress.remaining_seconds is None:
        return None
    at = seconds(progress.last_update_time)
    return at + round(progress.remaining_seconds) if at is not None else None


def _file(path: str | None) -> str | None:
    """Return the id of an uploaded file, and of any other file its path."""
    return names.file_id_of(path) or path


def _other_rows(job: TuningJobView) -> str:
    """Name rows of a job of kubectl's that are no file on the claim."""
    dataset = job.spec.dataset
    if dataset.config_map is not None:
        return f"configmap/{dataset.config_map.name}/{dataset.config_map.key}"
    return dataset.uri or ""


def _name_of_base(job: TuningJobView, settings: Settings) -> str:
    """Return the name that scripts use for the base of a job of kubectl's, and without one what it is."""
    model = job.spec.model
    for name, base in settings.bases.items():
        if (model.path is not None and model.path == base.path) or (model.uri is not None and model.uri == base.uri):
            return name
    return model.path or str(model.uri)


def _used_method(job: TuningJobView, used: dict[str, Any]) -> UsedMethod | None:
    if job.spec.mode == DPO:
        beta = MODES[DPO].settings_of(job.spec).beta
        return UsedMethod(type="dpo", dpo=UsedDpo(hyperparameters=UsedDpoHyperparameters(**used, beta=beta)))
    if job.spec.mode == "sft":
        return UsedMethod(type="supervised", supervised=UsedSupervised(hyperparameters=UsedHyperparameters(**used)))
    return None
