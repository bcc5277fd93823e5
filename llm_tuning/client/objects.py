"""The custom resources as the client gives them out: the models of llm_tuning.api, with the questions people ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Self, TypeVar, cast

from pydantic import ValidationError

from llm_tuning.api.conditions import ConditionType, ServiceConditionType
from llm_tuning.api.inference_service import InferenceService, InferenceServiceSpec, InferenceServiceStatus
from llm_tuning.api.inference_service import read_status as read_service_status
from llm_tuning.api.kube import Condition
from llm_tuning.api.tuning_job import TuningJob, TuningJobSpec, TuningJobStatus, read_status
from llm_tuning.client.errors import TuningFailed
from llm_tuning.core.model import ApiModel, input_error
from llm_tuning.errors import InputError
from llm_tuning.progress.snapshot import Snapshot

T = TypeVar("T")
S = TypeVar("S", bound=ApiModel)
Raw = dict[str, Any]
OnUnreadable = Callable[[Raw, InputError], None]
"""Gets an object that this version cannot read, and why."""


def _status(model: type[S], read: Callable[[Any], S], raw: Mapping[str, Any]) -> S | None:
    try:
        return read(raw["status"]) if raw.get("status") else None
    except ValidationError as error:
        raise input_error(model, error, where=f"{raw['metadata']['name']}: status") from None


def read_each(raws: Iterable[Raw], read: Callable[[Raw], T], on_unreadable: OnUnreadable | None) -> list[T]:
    """Read objects; what one of them cannot be read for goes to `on_unreadable`, and is raised without it."""
    found = []
    for raw in raws:
        try:
            found.append(read(raw))
        except InputError as error:
            if on_unreadable is None:
                raise
            on_unreadable(raw, error)
    return found


class _Object:
    """What both kinds can be asked."""

    metadata: dict[str, Any]
    status: Any

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        return str(self.metadata["namespace"])

    @property
    def uid(self) -> str:
        return str(self.metadata["uid"])

    @property
    def conditions(self) -> dict[str, Condition]:
        """By their type; none before the operator has seen the object."""
        return {} if self.status is None else {condition.type: condition for condition in self.status.conditions}

    def is_true(self, kind: str) -> bool:
        """Return whether that condition is True."""
        return kind in self.conditions and self.conditions[kind].status == "True"

    @property
    def trouble(self) -> str:
        """`REASON: message` of what stalls it; empty where nothing does."""
        stalled = self.conditions.get(ConditionType.STALLED)
        return f"{stalled.reason}: {stalled.message}" if stalled is not None and stalled.status == "True" else ""


class TuningJobView(_Object, TuningJob):
    """A TuningJob as it is in the cluster."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """Parse what the API server answered; raises InputError for what this version cannot read."""
        where = f"{raw['metadata']['name']}: spec"
        status = _status(TuningJobStatus, read_status, raw)
        spec = TuningJobSpec.read(raw["spec"], where=where)
        return cast(Self, cls.model_construct(metadata=dict(raw["metadata"]), spec=spec, status=status))

    @property
    def phase(self) -> str:
        return (self.status.phase if self.status is not None else None) or "Pending"

    @property
    def is_finished(self) -> bool:
        """Nothing of it will run any more."""
        return self.is_true(ConditionType.FINISHED)

    @property
    def has_succeeded(self) -> bool:
        return self.is_finished and self.is_true(ConditionType.SUCCEEDED)

    def raise_if_failed(self) -> None:
        """Raise TuningFailed, with reason and message, if it has finished without an adapter."""
        if self.is_finished and not self.has_succeeded:
            why = self.conditions.get(ConditionType.SUCCEEDED)
            raise TuningFailed(self.name, why.reason if why else "Unknown", why.message if why else "")

    def snapshot(self) -> Snapshot:
        """Return how far the TuningJob is, as the progress displays take it."""
        progress = self.status.progress if self.status is not None else None
        stage = f"{self.name} {self.phase}" + (f" ({self.trouble.split(':')[0]})" if self.trouble else "")
        if progress is None:
            return Snapshot(stage, done=self.is_finished)
        return Snapshot.of(progress, stage, done=self.has_succeeded)

    @property
    def milestone(self) -> tuple[str, str, int]:
        """What is worth a line when it changes: phase, trouble, and each tenth of the way."""
        progress = self.status.progress if self.status is not None else None
        return self.phase, self.trouble, progress.percent // 10 if progress is not None else 0

    def __str__(self) -> str:
        parts = [f"TuningJob {self.name}: {self.phase}"]
        progress = self.status.progress if self.status is not None else None
        if progress is not None and not self.is_finished:
            parts.append(f"{progress.percent} %")
        if progress is not None and progress.loss is not None:
            parts.append(f"loss {progress.loss:.4g}")
        if self.trouble:
            parts.append(self.trouble)
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<{self}>"


class InferenceServiceView(_Object, InferenceService):
    """An InferenceService as it is in the cluster."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """Parse what the API server answered; raises InputError for what this version cannot read."""
        where = f"{raw['metadata']['name']}: spec"
        status = _status(InferenceServiceStatus, read_service_status, raw)
        spec = InferenceServiceSpec.read(raw["spec"], where=where)
        return cast(Self, cls.model_construct(metadata=dict(raw["metadata"]), spec=spec, status=status))

    @property
    def is_ready(self) -> bool:
        """Every replica answers on each route, as it was trained. False while the operator has not seen a change."""
        ready = self.conditions.get(ServiceConditionType.READY)
        seen = ready is not None and ready.observed_generation >= int(self.metadata.get("generation") or 0)
        return seen and self.is_true(ServiceConditionType.READY)

    @property
    def models(self) -> list[str]:
        """What clients may send as `model`: the routes, then the base."""
        return [*(route.name for route in self.spec.routes), self.spec.base_name]

    def snapshot(self) -> Snapshot:
        """Return how many replicas answer, or how far the fetch of a base is, as the progress displays take it."""
        ready = self.conditions.get(ServiceConditionType.READY)
        stage = f"{self.name} {'Ready' if self.is_ready else ready.reason if ready is not None else 'Pending'}"
        fetch = self.status.progress if self.status is not None else None
        if fetch is not None and not self.is_ready:
            return Snapshot.of_fetch(fetch, stage)
        answering = self.status.ready_replicas if self.status is not None else 0
        return Snapshot(stage, step=answering, total_steps=self.spec.replicas, done=self.is_ready)

    @property
    def milestone(self) -> tuple[str]:
        """What is worth a line when it changes."""
        return (str(self),)

    def __str__(self) -> str:
        ready = self.conditions.get(ServiceConditionType.READY)
        if self.is_ready:
            return f"InferenceService {self.name}: Ready"
        why = f"{ready.reason}: {ready.message}" if ready is not None else "Pending"
        return f"InferenceService {self.name}: not Ready, {self.trouble or why}"

    def __repr__(self) -> str:
        return f"<{self}>"


def age_of(time: str, now: datetime | None = None) -> float:
    """Return the seconds since an RFC 3339 time of the API server; 0 where there is none."""
    if not time:
        return 0.0
    return max(0.0, ((now or datetime.now(UTC)) - datetime.fromisoformat(time)).total_seconds())
