"""What happened to a job, out of its conditions and its figures. Pure: the same job gives the same list.

An event's id has its time first, so that ids sort as events do and a page goes on behind one that is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llm_tuning.api.conditions import ConditionType
from llm_tuning.api.kube import Condition
from llm_tuning.client.objects import TuningJobView
from llm_tuning.openai_api.job_request import Kept
from llm_tuning.openai_api.job_view import cancelled_at, created_at, deleted_at, in_request_words, seconds
from llm_tuning.openai_api.models import Named, condition_of
from llm_tuning.openai_api.wire import JobEvent

UNSEEN_SECONDS = 60
"""An operator that runs has seen a job long before."""
Level = Literal["info", "warn", "error"]
_NEWS = {
    ConditionType.FETCHED: "the base is on the volume",
    ConditionType.DATASET_VALID: "files are valid",
    ConditionType.TRAINED: "trained",
    ConditionType.EVALUATED: "evaluated",
    ConditionType.SERVED: "served",
}
"""Conditions that are worth an event when they become True, and what that means."""


class Figures(Protocol):
    """The figures of one step; `run_files.Point` is it."""

    @property
    def step(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def train_loss(self) -> float | None: ...
    @property
    def valid_loss(self) -> float | None: ...
    @property
    def valid_mean_token_accuracy(self) -> float | None: ...


@dataclass(frozen=True)
class _News:
    """One event without its id."""

    at: int
    rank: int
    """The order of those of one second."""
    message: str
    level: Level = "info"
    kind: str = ""
    """What makes it another event than one of the same second and rank; not its message, whose numbers may change."""
    step: int = 0
    data: dict[str, Any] | None = None


def events(job: TuningJobView, points: Iterable[Figures], now: float, model: Named | None = None) -> list[JobEvent]:
    """List what happened, oldest first; `model` is what the job has made, where that is known."""
    found = [*_of_conditions(job, now), *_of_steps(job, points), *_of_model(job, model)]
    return sorted((_event(job, news) for news in found), key=lambda event: event.id)


def _event(job: TuningJobView, news: _News) -> JobEvent:
    digest = hashlib.sha256(f"{job.uid}\n{news.kind}\n{news.level}".encode()).hexdigest()[:6]
    return JobEvent(
        id=f"ftevent-{news.at:010d}{news.rank:02d}{news.step:08d}-{digest}",
        created_at=news.at,
        level=news.level,
        message=in_request_words(news.message),
        type="metrics" if news.data is not None else "message",
        data=news.data,
    )


def _of_conditions(job: TuningJobView, now: float) -> Iterator[_News]:
    created, kept = created_at(job), Kept.of(job)
    yield _News(created, 0, f"job {job.name} is created", kind="created")
    if not job.conditions and now - created > UNSEEN_SECONDS:
        text = "the operator has not seen this job yet; is it running? Whoever runs the cluster knows: kubectl get pods"
        yield _News(created + UNSEEN_SECONDS, 1, text, "warn", kind="unseen")
    for rank, (kind, words) in enumerate(_NEWS.items(), start=10):
        condition = job.conditions.get(kind)
        if condition is not None and condition.status == "True" and (at := seconds(condition.last_transition_time)):
            yield _News(at, rank, f"{words}: {condition.message}", kind=kind)
    cancelled = cancelled_at(job)
    for kind, rank in ((ConditionType.STALLED, 30), (ConditionType.SUSPENDED, 31)):
        if kind == ConditionType.SUSPENDED and cancelled is not None:  # which is how it ends, and it cannot go on
            continue
        condition = job.conditions.get(kind)
        if condition is not None and condition.status == "True" and (at := seconds(condition.last_transition_time)):
            level: Level = "warn" if kind == ConditionType.STALLED else "info"
            yield _News(at, rank, f"{condition.reason}: {condition.message}", level, kind=f"{kind} {condition.reason}")
    if cancelled is not None and not job.has_succeeded:
        yield _News(cancelled, 90, "job is cancelled", kind="cancelled")
    elif (end := job.conditions.get(ConditionType.SUCCEEDED)) is not None and job.is_finished:
        yield _of_end(job, end, kept)


def _of_end(job: TuningJobView, end: Condition, kept: Kept | None) -> _News:
    at = seconds(job.status.completion_time if job.status is not None else None) or created_at(job)
    if end.status == "True":
        model = f", and its model is {kept.fine_tuned_model}" if kept is not None else ""
        return _News(at, 91, f"job has succeeded{model}", kind="succeeded")
    return _News(at, 91, f"job has failed: {end.reason}: {end.message}", "error", kind="failed")


def _of_model(job: TuningJobView, model: Named | None) -> Iterator[_News]:
    at = seconds(job.status.completion_time if job.status is not None else None) or created_at(job)
    if (deleted := deleted_at(job)) is not None:
        yield _News(deleted, 93, "its model is deleted", kind="model deleted")
    elif model is not None and model.service is not None:
        state = "which is ready" if model.service.is_ready else f"which is not ready: {condition_of(model.service)}"
        text = f"{model.name} is a route of InferenceService {model.service.name}, {state}"
        yield _News(at, 92, text, kind="model published")
    elif model is not None and not model.is_coming:
        yield _News(at, 92, f"{model.name} cannot be asked: {model.missing}", "warn", kind="model not published")


def _of_steps(job: TuningJobView, points: Iterable[Figures]) -> Iterator[_News]:
    progress = job.status.progress if job.status is not None else None
    total = progress.total_steps if progress is not None else None
    for point in points:
        figures = {"train_loss": point.train_loss, "valid_loss": point.valid_loss}
        accuracy = {"valid_mean_token_accuracy": point.valid_mean_token_accuracy}
        data = {"step": point.step, "total_steps": total, **figures, **accuracy}
        of = f" of {total}" if total else ""
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items() if value is not None
        )
        yield _News(int(point.time), 50, f"step {point.step}{of}: {shown}", kind="step", step=point.step, data=data)
