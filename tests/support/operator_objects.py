"""Kubernetes objects as the operator sees them: builders with only what a test cares about as arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from llm_tuning.api.kube import API_VERSION
from llm_tuning.api.tuning_job import KIND, Progress
from llm_tuning.pod.roles import CHECK, ROLES, TRAIN
from tuning_operator.core.cache import JOBS
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.constants import LABEL_INDEX, LABEL_JOB, LABEL_ROLE, LABEL_UID, MANAGED_BY, MANAGED_BY_LABEL
from tuning_operator.core.desired import Desired
from tuning_operator.core.settings import Settings
from tuning_operator.pods.trouble import Reported
from tuning_operator.tuning_job.observed import Observed, build_observed

Raw = dict[str, Any]
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
"""When the TuningJob of a test was created."""
UID = "11111111-2222-3333-4444-555555555555"
MODEL_ID = "ft_sft_tiny_1767323045_666ff6"
SETTINGS = Settings(namespace="llm-tuning", operator_image="operator:1", trainer_image="trainer:1")
FETCHED = {
    "ok": True,
    "reason": "Fetched",
    "message": "hf://owner/tiny is at sources/hf/owner/tiny/abc123",
    "sources": {"model": {"revision": "abc123", "path": "sources/hf/owner/tiny/abc123", "bytes": 9}},
}
CHECKED = {"ok": True, "reason": "DatasetValid", "message": "12 of 12 rows are kept"}
TRAINED = {
    "ok": True,
    "reason": "Trained",
    "message": "10 steps",
    "modelId": MODEL_ID,
    "adapterPath": f"models/{MODEL_ID}",
    "mlflowRunId": "0123abcd",
    "heldOutRows": 2,
    "registered": True,
    "evaluation": {"baseLoss": 3.0, "tunedLoss": 1.0},
}


def after(seconds: float) -> datetime:
    """That long after START."""
    return START + timedelta(seconds=seconds)


def make_tuning_job(
    name: str = "faq",
    *,
    uid: str = UID,
    generation: int = 1,
    status: Raw | None = None,
    deleting: bool = False,
    **spec: Any,
) -> Raw:
    """A TuningJob in namespace `team`; further arguments are fields of its spec."""
    body = {
        "mode": "sft",
        "model": {"path": "base/tiny"},
        "dataset": {"path": "datasets/faq.jsonl"},
        "volume": {"claimName": "tuning"},
    }
    metadata: Raw = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "generation": generation,
        "creationTimestamp": timestamp(START),
    }
    if deleting:
        metadata["deletionTimestamp"] = timestamp(START)
    raw: Raw = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {**body, **spec}}
    return raw if status is None else {**raw, "status": status}


def make_status(**conditions: str) -> Raw:
    """A status in which conditions are `Type="Status"` or `Type="Status/Reason"`; others are unknown."""
    listed = []
    for kind, text in conditions.items():
        status, _, reason = text.partition("/")
        listed.append(
            {
                "type": kind,
                "status": status,
                "reason": reason or "Known",
                "message": "",
                "observedGeneration": 1,
                "lastTransitionTime": timestamp(START),
            }
        )
    return {"observedGeneration": 1, "phase": "Training", "modelId": MODEL_ID, "conditions": listed}


def make_job(
    role: str = TRAIN,
    *,
    name: str = "faq",
    uid: str | None = None,
    owner: str = UID,
    owner_name: str | None = None,
    created: float = 0,
    complete: float | None = None,
    failed: str | None = None,
    fails: str | None = None,
    failures: int = 0,
    retries: int = 3,
    suspended: bool = False,
    deleting: bool = False,
    nodes: int = 1,
) -> Raw:
    """A child Job; `complete` is when, `failed` the reason (at 60 s), `fails` that while pods have not ended,
    `failures` the controller's own count."""
    metadata: Raw = {
        "name": f"{name}-{role}",
        "namespace": "team",
        "uid": uid or f"job-{role}",
        "creationTimestamp": timestamp(after(created)),
        "labels": labels(role, owner, name),
        "ownerReferences": [{"kind": KIND, "name": owner_name or name, "uid": owner, "controller": True}],
    }
    if deleting:
        metadata["deletionTimestamp"] = timestamp(after(created))
    status: Raw = {"failed": failures} if failures else {"active": nodes} if nodes > 1 else {}
    if complete is not None:
        status["conditions"] = [_condition("Complete", after(complete))]
    elif failed is not None:
        status["conditions"] = [_condition("Failed", after(60), reason=failed, message="the Job has failed")]
    elif fails is not None:
        status["conditions"] = [_condition("FailureTarget", after(60), reason=fails, message="the Job fails")]
    spec: Raw = {"backoffLimit": retries if nodes == 1 else 0, "suspend": suspended}
    if nodes > 1:
        spec["completions"] = nodes
    return {"metadata": metadata, "spec": spec, "status": status}


def labels(role: str, owner: str, name: str) -> dict[str, str]:
    """Of a Job and its pods."""
    return {MANAGED_BY_LABEL: MANAGED_BY, LABEL_ROLE: role, LABEL_UID: owner, LABEL_JOB: name}


def make_pod(
    role: str = TRAIN,
    *,
    number: int = 1,
    phase: str = "Running",
    created: float = 0,
    scheduled: bool | str | None = True,
    waiting: tuple[str, str] | None = None,
    exit_code: int = 0,
    ended: float = 59,
    reason: str = "",
    result: Raw | str = "",
    disrupted: bool = False,
    job_uid: str | None = None,
    owner: str = UID,
    index: int | None = None,
    node: str | None = None,
    deleting: bool = False,
) -> Raw:
    """A pod of the child of that role; `scheduled` may be the scheduler's message, `result` the termination message."""
    state: Raw = {}
    if phase == "Running":
        state = {"running": {"startedAt": timestamp(after(created + 1))}}
    elif phase in ("Succeeded", "Failed"):
        message = result if isinstance(result, str) else json.dumps(result)
        state = {"terminated": {"exitCode": exit_code, "message": message, "finishedAt": timestamp(after(ended))}}
        state["terminated"]["reason"] = reason or ("Completed" if exit_code == 0 else "Error")
    elif waiting is not None:
        state = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
    conditions = []
    if scheduled is True:
        conditions.append(_condition("PodScheduled", after(created)))
    elif scheduled:
        conditions.append(_condition("PodScheduled", after(created), "False", "Unschedulable", str(scheduled)))
    if disrupted:
        conditions.append(_condition("DisruptionTarget", after(ended), reason="EvictionByEvictionAPI"))
    indexed = {} if index is None else {LABEL_INDEX: str(index)}
    spec: Raw = {} if node is None else {"nodeName": node}
    leaves: Raw = {}
    if deleting:
        leaves = {"deletionTimestamp": timestamp(after(ended + 30)), "deletionGracePeriodSeconds": 30}
    return {
        "metadata": leaves
        | {
            "name": f"faq-{role}-{number}",
            "namespace": "team",
            "uid": f"pod-{role}-{number}",
            "creationTimestamp": timestamp(after(created)),
            "labels": labels(role, owner, "faq") | indexed,
            "ownerReferences": [{"kind": "Job", "name": f"faq-{role}", "uid": job_uid or f"job-{role}"}],
        },
        "spec": spec
        | {
            "containers": [{"name": ROLES[role].container, "image": "operator:1" if role == CHECK else "trainer:1"}],
        },
        "status": {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [{"name": ROLES[role].container, "state": state}] if state else [],
        },
    }


def jobs_in(desired: Desired) -> list[Raw]:
    """The Jobs that are to be made."""
    return [body for kind, body in desired.create if kind == JOBS]


def with_sidecar(pod: Raw, name: str, state: str | int = "running", *, kind: str = "containers", **waiting: str) -> Raw:
    """`pod` as a webhook changes it: one more container, `running`, `waiting`, or ended with an exit code.

    `kind` is containers, initContainers (a native sidecar) or ephemeralContainers. The kubelet sorts by name.
    """
    states: dict[Any, Raw] = {
        "running": {"running": {"startedAt": timestamp(START)}},
        "waiting": {"waiting": waiting},
    }
    ended = {"terminated": {"exitCode": state, "message": "a log", "finishedAt": timestamp(START)}}
    status = {"name": name, "image": f"{name}:1", "state": states.get(state, ended)}
    listed = f"{kind.removesuffix('s')}Statuses"
    statuses = sorted([*pod["status"].get(listed, []), status], key=lambda status: str(status["name"]))
    spec = {**pod["spec"], kind: [{"name": name, "image": f"{name}:1"}, *pod["spec"].get(kind, [])]}
    return {**pod, "spec": spec, "status": {**pod["status"], listed: statuses}}


def make_warning(about: Raw | str, reason: str, message: str, *, at: float = 10) -> Raw:
    """A Warning Event about an object, or about the claim of that name."""
    involved = {"uid": about["metadata"]["uid"]} if isinstance(about, dict) else {}
    if isinstance(about, str):
        involved = {"kind": "PersistentVolumeClaim", "name": about, "uid": "claim"}
    return {
        "metadata": {"creationTimestamp": timestamp(START)},
        "involvedObject": involved,
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": timestamp(after(at)),
    }


def make_observed(
    job: Raw | None = None,
    *,
    jobs: Iterable[Raw] = (),
    pods: Iterable[Raw] = (),
    warnings: Iterable[Raw] = (),
    adapter: Raw | None = None,
    progress: Progress | None = None,
    reported: Reported | None = None,
    policies: Iterable[Raw] = (),
    chain: tuple[str, ...] = (),
    headless: Raw | None = None,
) -> Observed:
    """What is observed of `job`, by default a plain one."""
    raw = job if job is not None else make_tuning_job()
    reported = reported or (Reported(progress) if progress is not None else None)
    return build_observed(
        raw,
        jobs=jobs,
        pods=pods,
        warnings=warnings,
        adapter=adapter,
        reported=reported,
        policies=policies,
        chain=chain,
        headless=headless,
    )


def _condition(kind: str, at: datetime, status: str = "True", reason: str = "", message: str = "") -> Raw:
    condition = {"type": kind, "status": status, "lastTransitionTime": timestamp(at)}
    return condition | {"reason": reason, "message": message}
