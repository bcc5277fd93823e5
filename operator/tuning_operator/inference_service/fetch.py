"""The base of an InferenceService that is named by URI: fetched by a Job of its own before a replica starts. Pure.

What serves goes on serving while another base is fetched: the Deployment follows the status, where a base is named once
it is on the claim and whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llm_tuning.api.conditions import Reason
from llm_tuning.api.inference_service import KIND, InferenceServiceSpec, ServedModelSpec
from llm_tuning.api.sources import FetchProgress, SourceStatus
from llm_tuning.pod.contract import FetchResult, parse_result
from llm_tuning.pod.roles import FETCH, ROLES
from tuning_operator.core.audience import FETCH_OF_SERVICE, audience_of
from tuning_operator.core.cache import JOBS, NETWORK_POLICIES
from tuning_operator.core.constants import (
    LABEL_FETCHES_FOR,
    LABEL_ROLE,
    LABEL_UID,
    LONGEST_LOOK_SECONDS,
    LOST_RESULT_SECONDS,
    MANAGED_BY,
    MANAGED_BY_LABEL,
)
from tuning_operator.core.desired import Desired, ObjectRef
from tuning_operator.core.drift import has_drifted
from tuning_operator.core.settings import Settings
from tuning_operator.inference_service.observed import ObservedService
from tuning_operator.pods.fetch import CPU, MEMORY, Asked, fetch_parts
from tuning_operator.pods.job import build_job_of, build_pod
from tuning_operator.pods.network import build_policy, online
from tuning_operator.pods.observed import Child, Pod
from tuning_operator.pods.reporting import add_reporting
from tuning_operator.pods.stuck import PodRequests, events_due, find_refusal, find_stuck, shown_resources
from tuning_operator.pods.template import owner_reference
from tuning_operator.pods.trouble import Reported, Trouble

ROLE = ROLES[FETCH]
RETRIES = 6
AGAIN_SECONDS = 300.0
"""After which a fetch that has failed is begun anew: a licence may have been accepted, or room made, since."""
FETCHING = Trouble(Reason.FETCHING, "the base is being fetched; replicas start once it is on the claim and whole")


@dataclass(frozen=True)
class Base:
    """The base that is to be served now, and what is said of one that is not there yet."""

    spec: InferenceServiceSpec
    """With the path of what is served; without any as long as nothing can be."""
    status: SourceStatus | None = None
    waiting: Trouble | None = None
    stalled: Trouble | None = None
    progress: FetchProgress | None = None
    """Of its fetch, as it was last reported."""


def find_base(
    observed: ObservedService, spec: InferenceServiceSpec, settings: Settings, now: datetime, desired: Desired
) -> Base:
    """Return the base, and put what is wanted for its fetch into `desired`."""
    known, asked = observed.status.model, Asked.of("model", spec.model, None)
    if asked is None:
        _clear(observed, desired, but=None)
        return Base(spec)
    name = fetch_name(observed, asked)
    _clear(observed, desired, but=name)
    if known is not None and known.uri == asked.uri and known.path is not None:
        return Base(_at(spec, known), known)
    job = next((job for job in observed.fetches if job.name == name), None)
    found = None if job is None else _found(job, asked)
    if found is not None:
        return Base(_at(spec, found), found)
    served = _at(spec, known) if known is not None and known.path is not None else spec
    fetch = _Fetch(observed, spec, asked, settings, now, desired)
    return Base(served, known, FETCHING, fetch.fence() or fetch.follow(job), _progress(observed, job))


def fetch_name(observed: ObservedService, asked: Asked) -> str:
    """Name the Job of a fetch: another URI or Secret is another Job."""
    digest = hashlib.sha256(f"{asked.uri} {asked.secret}".encode()).hexdigest()[:6]
    return f"{policy_name(observed)}-{digest}"


def policy_name(observed: ObservedService) -> str:
    """Name the NetworkPolicy of the fetching pods; a TuningJob of the same name has its own beside it."""
    return f"{observed.name}-serving-fetch"


def fetch_requests(spec: InferenceServiceSpec) -> PodRequests:
    """Return what the fetching pod requests."""
    secret = spec.model.credentials_secret
    return PodRequests(
        claim=spec.volume.claim_name,
        contents="room for the base",
        pod="the fetch",
        resources=shown_resources(CPU, MEMORY),
        lower="",
        secret_field="spec.model.credentialsSecret",
        secret_key="HF_TOKEN",
        secret=secret.name if secret is not None else None,
    )


def build_fetch(
    observed: ObservedService, spec: InferenceServiceSpec, settings: Settings, asked: Asked
) -> dict[str, Any]:
    """Build the Job; it has none of the labels by which the Service finds its pods."""
    labels = _labels(observed) | {LABEL_ROLE: FETCH}
    name = fetch_name(observed, asked)
    parts = fetch_parts([asked], f"{observed.uid}-{name[-6:]}", settings)
    add_reporting(
        parts,
        settings,
        path=f"/v1/namespaces/{observed.namespace}/inferenceservices/{observed.name}/status",
        audience=audience_of(observed.namespace, observed.name, observed.uid, FETCH_OF_SERVICE),
    )
    pod = build_pod(ROLE, parts, settings, claim=spec.volume.claim_name, asked=spec.resources, environment=[])
    metadata = {
        "name": name,
        "namespace": observed.namespace,
        "labels": labels,
        "ownerReferences": [owner_reference(observed, KIND)],
    }
    return build_job_of(ROLE, parts, pod, metadata=metadata, labels=labels, retries=RETRIES)


def _labels(observed: ObservedService) -> dict[str, str]:
    return {MANAGED_BY_LABEL: MANAGED_BY, LABEL_FETCHES_FOR: observed.name, LABEL_UID: observed.uid}


def _clear(observed: ObservedService, desired: Desired, *, but: str | None) -> None:
    """Delete the Jobs of other fetches than the wanted one."""
    for job in observed.fetches:
        if job.name != but and not job.is_deleting:
            desired.delete.append(ObjectRef(JOBS, job.name, job.uid))


def _at(spec: InferenceServiceSpec, found: SourceStatus) -> InferenceServiceSpec:
    """Return the spec as one gives it for a base on the claim; its name is the one that the URI has."""
    name = spec.model.name or ServedModelSpec(uri=found.uri).base_name
    return spec.model_copy(update={"model": ServedModelSpec(path=found.path, name=name)})


def _found(job: Child, asked: Asked) -> SourceStatus | None:
    """Return what the Job has fetched; None where it has not ended, or its pod is gone."""
    pod = job.done_pod if job.is_complete else None
    result = parse_result(str(pod.terminated.get("message", "")), FetchResult) if pod is not None else None
    source = result.sources.get(asked.field) if result is not None and result.ok else None
    return None if source is None else SourceStatus(uri=asked.uri, revision=source.revision, path=source.path)


@dataclass
class _Fetch:
    """One look at a fetch that is not over."""

    observed: ObservedService
    spec: InferenceServiceSpec
    asked: Asked
    settings: Settings
    now: datetime
    desired: Desired

    def fence(self) -> Trouble | None:
        """Want the NetworkPolicy; returns why there is none."""
        name, there = policy_name(self.observed), self.observed.fetch_policy
        if there is None and name in self.observed.taken_names:
            return self._taken("NetworkPolicy", name)
        selector = {"matchLabels": {LABEL_UID: self.observed.uid, LABEL_ROLE: FETCH}}
        owner = owner_reference(self.observed, KIND)
        wanted = build_policy(name, self.observed.namespace, _labels(self.observed), owner, online(selector))
        if there is None:
            self.desired.create.append((NETWORK_POLICIES, wanted))
        elif has_drifted(wanted, there):
            self.desired.apply.append((NETWORK_POLICIES, wanted))
        refused = self.observed.refusals.get(NETWORK_POLICIES)
        return None if refused is None else find_refusal(refused, "NetworkPolicy")

    def follow(self, job: Child | None) -> Trouble | None:
        """Make the Job, follow it, begin anew after a while; returns what is in the way."""
        if job is None:
            return self._begin()
        if job.is_deleting:
            self.desired.requeue(2.0)
            return None
        if job.has_ended:
            return self._after(job)
        due = events_due(job, self.now)
        if due is not None:
            self.desired.needs_events |= due <= 0
            self.desired.requeue(due if due > 0 else LONGEST_LOOK_SECONDS / 3)
        if job.is_suspended:
            return Trouble(Reason.QUEUED, f"Job {job.name} waits for whoever suspended it to admit it")
        if stuck := find_stuck(job, fetch_requests(self.spec)):
            return stuck
        reported = _reported(self.observed, job)
        if reported is not None and any(pod.running_since is not None for pod in job.pods):
            return reported.waiting  # an attempt that failed before is over
        if not job.failed_pods:
            return None
        cause = _failure(job.failed_pods[-1])
        return Trouble(cause.reason, f"attempt {job.failures} of {job.backoff_limit + 1} failed: {cause.message}")

    def _begin(self) -> Trouble | None:
        name = fetch_name(self.observed, self.asked)
        if name in self.observed.taken_names:
            return self._taken("Job", name)
        self.desired.create.append((JOBS, build_fetch(self.observed, self.spec, self.settings, self.asked)))
        refused = self.observed.refusals.get(JOBS)
        return None if refused is None else find_refusal(refused)

    def _after(self, job: Child) -> Trouble | None:
        """Say how it ended, and delete it after a while: what was in the way may be gone."""
        since = (self.now - job.ended_at).total_seconds() if job.ended_at is not None else 0.0
        wait = LOST_RESULT_SECONDS if job.is_complete else AGAIN_SECONDS  # complete: its pod is gone, or not seen yet
        if since >= wait:
            self.desired.delete.append(ObjectRef(JOBS, job.name, job.uid))
        else:
            self.desired.requeue(wait - since)
        if job.is_complete:
            return None
        again = f"it is begun anew {AGAIN_SECONDS:.0f} s after its end"
        if not job.failed_pods:
            self.desired.needs_pods |= since < LOST_RESULT_SECONDS
            return Trouble(Reason.FETCH_FAILING, f"the fetch has failed, and its pods are gone; {again}")
        cause = _failure(job.failed_pods[-1])
        return Trouble(cause.reason, f"{cause.message}; {again}")

    def _taken(self, kind: str, name: str) -> Trouble:
        self.desired.requeue(LONGEST_LOOK_SECONDS)
        return Trouble(Reason.NAME_TAKEN, f"{kind} {name} has another owner; delete it, or use another name")


def _reported(observed: ObservedService, job: Child) -> Reported | None:
    """Return what a pod of this Job has reported last; None where the last report is of an earlier fetch."""
    reported = observed.reported
    return reported if reported is not None and _is_of(reported.progress, job) else None


def _progress(observed: ObservedService, job: Child | None) -> FetchProgress | None:
    """Return how far the fetch is: by the newest report, or what was known before the operator was restarted."""
    if job is None or job.has_ended:
        return None
    reported, last = _reported(observed, job), observed.status.progress
    if reported is not None:
        fields = {name: getattr(reported.progress, name) for name in FetchProgress.model_fields}
        return FetchProgress(**fields)
    return last if last is not None and _is_of(last, job) else None


def _is_of(progress: FetchProgress, job: Child) -> bool:
    return progress.last_update_time >= str(job.raw["metadata"].get("creationTimestamp", ""))


def _failure(pod: Pod) -> Trouble:
    """Return why a fetching pod failed: by its own result, or else by what the kubelet reports."""
    result = parse_result(str(pod.terminated.get("message", "")), FetchResult)
    if result is not None and not result.ok:
        return Trouble(result.reason, result.message)
    if pod.terminated.get("reason") == "OOMKilled":
        words = f"the fetch used more memory than its limit ({MEMORY}); report it as a fault, with its log"
        return Trouble(Reason.OUT_OF_MEMORY, words)
    return Trouble(Reason.FETCH_FAILING, f"exit code {pod.exit_code}; see `{pod.logs_command}`")
