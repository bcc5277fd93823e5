"""What is there: one TuningJob with its Jobs, pods and Warning Events, as questions that `reconcile` asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from llm_tuning.api.conditions import ConditionType
from llm_tuning.api.tuning_job import KIND, Progress, TuningJobSpec, TuningJobStatus, read_status
from llm_tuning.errors import InputError, Problem
from llm_tuning.pod.contract import CHECK, REPORT, TRAIN
from tuning_operator.core.constants import LABEL_ROLE

Raw = Mapping[str, Any]
ROLES = (CHECK, TRAIN, REPORT)
STARTING = (None, "ContainerCreating", "PodInitializing")
"""Reasons for which a container waits that are the normal course."""


@dataclass(frozen=True)
class Pod:
    """A pod of a child Job, which has one container; or of an InferenceService, which has more."""

    raw: Raw

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def created(self) -> datetime:
        return read_time(self.raw["metadata"]["creationTimestamp"])

    @property
    def phase(self) -> str:
        return str(self.raw.get("status", {}).get("phase", "Pending"))

    @property
    def has_ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @cached_property
    def _state(self) -> Raw:
        statuses = self.raw.get("status", {}).get("containerStatuses") or [{}]
        return dict(statuses[0].get("state") or {})

    @cached_property
    def _waiting(self) -> Raw:
        """The status of the container that waits for the worst reason: one that is only starting is none."""
        status = self.raw.get("status", {})
        statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        waiting = [s for s in statuses if (s.get("state") or {}).get("waiting")]
        bad = (s for s in waiting if s["state"]["waiting"].get("reason") not in STARTING)
        return next(bad, next(iter(waiting), {}))

    @property
    def waiting(self) -> Raw:
        """reason and message of a container that cannot start; empty otherwise."""
        return dict((self._waiting.get("state") or {}).get("waiting") or {})

    @property
    def waiting_image(self) -> str:
        """The image of that container."""
        containers = self.raw["spec"]["containers"]
        named = (c for c in containers if c.get("name") == self._waiting.get("name"))
        return str(self._waiting.get("image") or next(named, containers[0]).get("image"))

    @property
    def terminated(self) -> Raw:
        """exitCode, reason and message of a container that has ended; empty otherwise."""
        return dict(self._state.get("terminated") or {})

    @property
    def running_since(self) -> datetime | None:
        started = (self._state.get("running") or {}).get("startedAt")
        return read_time(started) if started else None

    @property
    def ended_at(self) -> datetime | None:
        ended = self.terminated.get("finishedAt")
        return read_time(ended) if ended else None

    @property
    def is_disrupted(self) -> bool:
        """Evicted, preempted or drained away: no fault of its own, and no retry of the Job."""
        return self.condition("DisruptionTarget").get("status") == "True"

    @property
    def is_set_up(self) -> bool:
        """Volumes and network are there: what Events say of them is over, and the image may take its time."""
        return self.condition("PodReadyToStartContainers").get("status") == "True"

    def condition(self, kind: str) -> Raw:
        """The pod's condition of that type, or an empty one."""
        return next((c for c in self.raw.get("status", {}).get("conditions") or () if c["type"] == kind), {})


@dataclass(frozen=True)
class Child:
    """A Job of the TuningJob with its pods, oldest first, and the Warning Events that may be about it, newest last."""

    raw: Raw
    pods: tuple[Pod, ...] = ()
    warnings: tuple[Raw, ...] = ()

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def created(self) -> datetime:
        return read_time(self.raw["metadata"]["creationTimestamp"])

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]

    @property
    def is_suspended(self) -> bool:
        """Kueue has not admitted it, or took it back."""
        return bool(self.raw["spec"].get("suspend"))

    @property
    def is_complete(self) -> bool:
        return self._condition("Complete") is not None

    @property
    def failure(self) -> Raw | None:
        """The Job's condition Failed, or None."""
        return self._condition("Failed")

    @property
    def has_ended(self) -> bool:
        return self.is_complete or self.failure is not None

    @property
    def has_failed(self) -> bool:
        """Failed by itself: pods of a Job that is being deleted are ended from outside."""
        return self.failure is not None and not self.is_deleting

    @property
    def ended_at(self) -> datetime | None:
        condition = self._condition("Complete") or self._condition("Failed")
        return read_time(condition["lastTransitionTime"]) if condition else None

    @property
    def newest_pod(self) -> Pod | None:
        return self.pods[-1] if self.pods else None

    @property
    def failed_pods(self) -> list[Pod]:
        """Those that the Job counts as failures."""
        return [pod for pod in self.pods if pod.phase == "Failed" and not pod.is_disrupted]

    @property
    def failures(self) -> int:
        """How often a pod has failed, by the Job's own count or by what is seen where that is more."""
        return max(len(self.failed_pods), int(self.raw.get("status", {}).get("failed") or 0))

    @property
    def succeeded_pod(self) -> Pod | None:
        return next((pod for pod in self.pods if pod.phase == "Succeeded"), None)

    @property
    def backoff_limit(self) -> int:
        return int(self.raw["spec"].get("backoffLimit", 6))

    def warnings_about(self, *, uid: str | None = None, claim: str | None = None) -> list[Raw]:
        """Warning Events about a Job or pod of that uid, or about the claim of that name; newest first."""
        wanted = ("uid", uid) if uid is not None else ("name", claim)
        return [w for w in reversed(self.warnings) if w.get("involvedObject", {}).get(wanted[0]) == wanted[1]]

    def _condition(self, kind: str) -> Raw | None:
        conditions = self.raw.get("status", {}).get("conditions") or ()
        return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


@dataclass(frozen=True)
class AdapterJob:
    """The TuningJob whose adapter this one starts from, as far as it is there."""

    name: str
    exists: bool = False
    finished: bool = False
    succeeded: bool = False
    model_id: str | None = None
    rank: int = 0
    """Of its LoRA, by its spec."""
    chain: tuple[str, ...] = ()
    """This job, the one that it waits for itself, and so on: TuningJobs that have not finished."""


@dataclass(frozen=True)
class CustomResource:
    """An object of one of our kinds, and who it is."""

    raw: Raw

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.raw["metadata"].get("generation", 1))

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]


@dataclass(frozen=True)
class Observed(CustomResource):
    """One TuningJob and all that belongs to it."""

    spec: TuningJobSpec | None
    problems: tuple[Problem, ...] = ()
    """Why `spec` is None: the stored object does not fit this version's models."""
    children: Mapping[str, Child] = field(default_factory=dict)
    taken: tuple[str, ...] = ()
    """Names of our Jobs that Jobs of somebody else have."""
    left_over: tuple[str, ...] = ()
    """Of those, the ones that go by themselves: being deleted, or of a namesake that was deleted."""
    refused: str | None = None
    """What the API server said when it refused the Job that this pass wanted."""
    service: Raw | None = None
    """The InferenceService of spec.serve's name, whoever made it."""
    service_refused: str | None = None
    """What the API server said when it refused that."""
    live_pods: tuple[str, ...] = ()
    """Roles of pods that have not ended, with or without their Job."""
    adapter: AdapterJob | None = None
    progress: Progress | None = None
    """The newest report of the trainer since the operator started."""

    @property
    def created(self) -> datetime:
        return read_time(self.raw["metadata"]["creationTimestamp"])

    @cached_property
    def status(self) -> TuningJobStatus:
        return read_status(self.raw.get("status"))

    def holds(self, kind: ConditionType) -> bool:
        """Whether the status records the condition as True."""
        return any(c.type == kind and c.status == "True" for c in self.status.conditions)


def build_observed(
    raw: Raw,
    *,
    jobs: Iterable[Raw] = (),
    pods: Iterable[Raw] = (),
    warnings: Iterable[Raw] = (),
    adapter: Raw | None = None,
    progress: Progress | None = None,
    spec: TuningJobSpec | None = None,
    chain: tuple[str, ...] = (),
    service: Raw | None = None,
) -> Observed:
    """Put together what belongs to the TuningJob `raw`; `spec` where it was parsed before.

    `jobs` are those of its children's names, whoever owns them; `pods` those labelled with its uid; `warnings` may be
    all of the namespace; `chain` is AdapterJob's.
    """
    problems: tuple[Problem, ...] = ()
    if spec is None:
        try:
            spec = TuningJobSpec.parse(raw.get("spec") or {}, where="spec")
        except InputError as error:
            problems = error.problems
    name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
    own_pods = [Pod(pod) for pod in pods]
    children, taken, left_over = {}, [], []
    jobs = list(jobs)
    objects = {uid, *(job["metadata"]["uid"] for job in jobs), *(pod.uid for pod in own_pods)}
    said = tuple(sorted((w for w in warnings if _concerns(w, objects)), key=event_time))
    for job in jobs:
        job_name, job_uid = str(job["metadata"]["name"]), job["metadata"]["uid"]
        if is_owned(job, uid):
            of_job = tuple(sorted((pod for pod in own_pods if is_owned(pod.raw, job_uid)), key=_age))
            children[job_name.removeprefix(f"{name}-")] = Child(job, of_job, said)
            continue
        taken.append(job_name)
        if "deletionTimestamp" in job["metadata"] or _is_of_namesake(job, name):
            left_over.append(job_name)
    live = (pod.raw["metadata"].get("labels", {}).get(LABEL_ROLE, "") for pod in own_pods if not pod.has_ended)
    start = spec.model.adapter.tuning_job if spec is not None and spec.model.adapter is not None else None
    return Observed(
        raw=raw,
        spec=spec,
        problems=problems,
        children=children,
        taken=tuple(taken),
        left_over=tuple(left_over),
        live_pods=tuple(live),
        adapter=None if start is None else adapter_job(start, adapter, chain),
        progress=progress,
        service=service,
    )


def adapter_job(name: str, raw: Raw | None, chain: tuple[str, ...]) -> AdapterJob:
    """A TuningJob as those see it that want its adapter."""
    if raw is None:
        return AdapterJob(name)
    status = read_status(raw.get("status"))
    true = {condition.type for condition in status.conditions if condition.status == "True"}
    return AdapterJob(
        name,
        exists=True,
        finished=ConditionType.FINISHED in true,
        succeeded=ConditionType.SUCCEEDED in true,
        model_id=status.model_id,
        rank=((raw.get("spec") or {}).get("lora") or {}).get("rank") or 0,
        chain=chain,
    )


def read_time(text: str) -> datetime:
    """An RFC 3339 time of Kubernetes."""
    return datetime.fromisoformat(text)


def event_time(event: Raw) -> datetime:
    """When an Event last happened."""
    series = (event.get("series") or {}).get("lastObservedTime")
    times = (series, event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((read_time(time) for time in times if time), datetime.fromtimestamp(0, UTC))


def _concerns(warning: Raw, uids: set[str]) -> bool:
    """About one of these objects, or about a claim: those are known by name only."""
    involved = warning.get("involvedObject", {})
    return involved.get("uid") in uids or involved.get("kind") == "PersistentVolumeClaim"


def is_owned(raw: Raw, uid: str) -> bool:
    """Whether an object has the owner of that uid."""
    return any(owner.get("uid") == uid for owner in raw["metadata"].get("ownerReferences") or ())


def _is_of_namesake(raw: Raw, name: str) -> bool:
    owners = raw["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == KIND and owner.get("name") == name for owner in owners)


def _age(pod: Pod) -> tuple[datetime, str]:
    return pod.created, pod.name
