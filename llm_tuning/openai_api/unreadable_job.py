"""A TuningJob that this server cannot read, as OpenAI's job: what is plain to see of it, and why no more is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_tuning.api.conditions import ConditionType
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.found import Unreadable
from llm_tuning.openai_api.job_request import Kept
from llm_tuning.openai_api.job_view import cancelled_at, created_at, seconds
from llm_tuning.openai_api.names import FILE_ID
from llm_tuning.openai_api.wire import FineTuningJob, JobError, JobStatus, UsedHyperparameters

CODE = "unreadable_object"
USUAL_SEED = 42


def files_of(job: Unreadable) -> set[str]:
    """Return the uploaded files that it names anywhere: it may need them."""
    return set(FILE_ID.findall(job.text))


def view(job: Unreadable, settings: Settings) -> FineTuningJob:
    """Build the answer; its `error` says what cannot be read, whatever its status is."""
    kept, status = Kept.of(job), status_of(job)
    training, model = _group(job, "spec", "training"), _group(job, "spec", "model")
    used = {ours: _whole(training.get(name)) for ours, name in (("n_epochs", "epochs"), ("batch_size", "batchSize"))}
    dataset, seed = _group(job, "spec", "dataset"), _whole(training.get("seed"))
    is_done = status == "succeeded"
    return FineTuningJob(
        id=job.name,
        created_at=created_at(job),
        error=JobError(code=CODE, message=job.why),
        fine_tuned_model=kept.fine_tuned_model if kept is not None and is_done else None,
        finished_at=_finished_at(job, status),
        hyperparameters=UsedHyperparameters(**used, learning_rate_multiplier=None),
        model=kept.model if kept is not None else _text(model.get("path")) or _text(model.get("uri")),
        organization_id=settings.organization,
        result_files=[],
        seed=seed if seed is not None else USUAL_SEED,
        status=status,
        training_file=_file(dataset.get("path")),
        validation_file=_file(dataset.get("evaluation")) or None,
        metadata=kept.metadata if kept is not None else None,
    )


def status_of(job: Unreadable) -> JobStatus:
    """Return OpenAI's word for where it is, as far as its conditions can be seen."""
    true = _true_conditions(job)
    if {ConditionType.FINISHED, ConditionType.SUCCEEDED} <= true:
        return "succeeded"
    if cancelled_at(job) is not None:
        return "cancelled"
    if ConditionType.FINISHED in true:
        return "failed"
    if _group(job, "spec").get("suspend") is True:
        return "paused"
    return "running" if _group(job, "status", "progress") else "queued"


def _true_conditions(job: Unreadable) -> set[str]:
    conditions = _group(job, "status").get("conditions")
    found = [each for each in conditions if isinstance(each, Mapping)] if isinstance(conditions, list) else []
    return {str(each.get("type")) for each in found if each.get("status") == "True"}


def _finished_at(job: Unreadable, status: JobStatus) -> int | None:
    if status == "cancelled":
        return cancelled_at(job)
    is_over = status in ("succeeded", "failed")
    return seconds(_text(_group(job, "status").get("completionTime"))) if is_over else None


def _group(job: Unreadable, *path: str) -> Mapping[str, Any]:
    value: Any = job.raw
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _file(path: object) -> str:
    found = FILE_ID.search(_text(path))
    return found[0] if found is not None else _text(path)
