"""What is there: one TuningJob with its Jobs, pods and Warning Events, as questions that decisions ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property

from llm_tuning.api.tuning_job import KIND, TuningJobSpec, TuningJobStatus, read_status
from llm_tuning.errors import Problem
from llm_tuning.pod.roles import ROLES, PodRole
from tuning_operator.core.constants import LABEL_ROLE
from tuning_operator.core.resource import CustomResource, parse_spec
from tuning_operator.pods.observed import (
    KUEUE_WORKLOAD,
    AdapterJob,
    Child,
    Pod,
    Raw,
    adapter_job,
    event_time,
    is_owned,
    read_time,
)
from tuning_operator.pods.trouble import Reported


@dataclass(frozen=True)
class Observed(CustomResource):
    """One TuningJob and all that belongs to it."""

    spec: TuningJobSpec | None
    children: Mapping[str, Child] = field(default_factory=dict)
    taken: tuple[str, ...] = ()
    """Names of our Jobs that Jobs of another owner have."""
    left_over: tuple[str, ...] = ()
    """Of those, the ones that go by themselves: being deleted, or of a namesake that was deleted."""
    service: Raw | None = None
    """The InferenceService of spec.serve's name, whoever made it."""
    live_pods: tuple[str, ...] = ()
    """Roles of pods that have not ended, with or without their Job."""
    adapter: AdapterJob | None = None
    reported: Reported | None = None
    """The newest report of a pod since the operator started."""
    policies: Mapping[str, Raw] = field(default_factory=dict)
    """Its NetworkPolicies, by name."""
    taken_policies: Mapping[str, bool] = field(default_factory=dict)
    """Names of ours that NetworkPolicies of another owner have, and whether that one goes by itself."""
    headless: Raw | None = None
    """The Service of the training Job's name, whoever made it."""

    @property
    def created(self) -> datetime:
        return read_time(self.raw["metadata"]["creationTimestamp"])

    @cached_property
    def status(self) -> TuningJobStatus:
        return read_status(self.raw.get("status"))

    def holds(self, kind: StrEnum) -> bool:
        """Return whether the status records the condition as True."""
        return any(c.type == kind and c.status == "True" for c in self.status.conditions)

    def message_of(self, kind: StrEnum) -> str:
        """Return the message of the condition that the status has, or an empty one."""
        return next((c.message for c in self.status.conditions if c.type == kind), "")


def build_observed(
    raw: Raw,
    *,
    jobs: Iterable[Raw] = (),
    pods: Iterable[Raw] = (),
    warnings: Iterable[Raw] = (),
    adapter: Raw | None = None,
    reported: Reported | None = None,
    policies: Iterable[Raw] = (),
    spec: TuningJobSpec | None = None,
    chain: tuple[str, ...] = (),
    service: Raw | None = None,
    headless: Raw | None = None,
    roles: Mapping[str, PodRole] = ROLES,
) -> Observed:
    """Put together what belongs to the TuningJob `raw`; `spec` where it was parsed before.

    `jobs` are those of its children's names, whoever owns them; `pods` those labelled with its uid; `warnings` may be
    all of the namespace; `chain` is AdapterJob's.
    """
    problems: tuple[Problem, ...] = ()
    if spec is None:
        spec, problems = parse_spec(TuningJobSpec, raw)
    name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
    own_pods = [Pod(pod) for pod in pods]
    children, taken, left_over = {}, [], []
    jobs, fences = list(jobs), list(policies)
    objects = {uid, *(job["metadata"]["uid"] for job in jobs), *(pod.uid for pod in own_pods)}
    said = tuple(sorted((w for w in warnings if _concerns(w, objects)), key=event_time))
    for job in jobs:
        job_name, job_uid = str(job["metadata"]["name"]), job["metadata"]["uid"]
        if is_owned(job, uid):
            role = job_name.removeprefix(f"{name}-")
            of_job = (Pod(pod.raw, (roles[role].container,)) for pod in own_pods if is_owned(pod.raw, job_uid))
            children[role] = Child(job, tuple(sorted(of_job, key=_age)), said)
            continue
        taken.append(job_name)
        if goes_by_itself(job, name):
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
        reported=reported,
        policies={policy["metadata"]["name"]: policy for policy in fences if is_owned(policy, uid)},
        taken_policies={
            policy["metadata"]["name"]: goes_by_itself(policy, name) for policy in fences if not is_owned(policy, uid)
        },
        service=service,
        headless=headless,
    )


def _concerns(warning: Raw, uids: set[str]) -> bool:
    """Return whether it is about one of these objects, or about any claim or queued work: known by their names only."""
    involved = warning.get("involvedObject", {})
    return involved.get("uid") in uids or involved.get("kind") in ("PersistentVolumeClaim", KUEUE_WORKLOAD)


def goes_by_itself(raw: Raw, name: str) -> bool:
    """Return whether it is being deleted, or belongs to a namesake, which has been."""
    owners = raw["metadata"].get("ownerReferences") or ()
    of_namesake = any(owner.get("kind") == KIND and owner.get("name") == name for owner in owners)
    return of_namesake or "deletionTimestamp" in raw["metadata"]


def _age(pod: Pod) -> tuple[datetime, str]:
    return pod.created, pod.name
