"""What the Jobs of a TuningJob share: names, labels, owner, and a pod under the restricted profile."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from llm_tuning.api.tuning import form_model_id
from llm_tuning.api.tuning_job import KIND, TuningJobSpec
from llm_tuning.errors import EXIT_INPUT
from llm_tuning.pod.contract import DATASET_DIR, INPUT_VARIABLE, ROOT, TERMINATION_LOG, PodInput
from llm_tuning.pod.roles import PodRole
from tuning_operator.core.constants import (
    GRACE_PERIOD_SECONDS,
    LABEL_JOB,
    LABEL_ROLE,
    LABEL_UID,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    QUEUE_LABEL,
)
from tuning_operator.core.settings import Settings
from tuning_operator.pods.template import RESTRICTED, owner_reference, placement, pod_security
from tuning_operator.tuning_job.observed import Observed


@dataclass
class PodParts:
    """What one role adds to the common pod."""

    image: str
    resources: dict[str, Any]
    environment: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    reads_dataset: bool = True
    runtime_class: str | None = None
    has_deadline: bool = True
    """Whether spec.activeDeadlineSeconds is for it."""


def child_name(job_name: str, role: str) -> str:
    """Name the TuningJob's one Job of a role: the API server itself refuses a second one of that name."""
    return f"{job_name}-{role}"


def model_id(observed: Observed, spec: TuningJobSpec) -> str:
    """Form the model_id: the same on every reconcile, so that a retry resumes; another for a namesake."""
    if observed.status.model_id is not None:
        return observed.status.model_id
    base = spec.model.path.rsplit("/", 1)[-1]
    digest = hashlib.sha256(observed.uid.encode()).hexdigest()[:6]
    return form_model_id(spec.mode, base, created=int(observed.created.timestamp()), digest=digest)


def build_job(
    observed: Observed,
    spec: TuningJobSpec,
    settings: Settings,
    *,
    role: PodRole,
    parts: PodParts,
    start_model_id: str | None,
) -> dict[str, Any]:
    """Build a `batch/v1` Job. `suspend` is left to Kueue; bad input fails at once, disruptions cost no retry."""
    labels = {
        MANAGED_BY_LABEL: MANAGED_BY,
        LABEL_JOB: observed.name,
        LABEL_UID: observed.uid,
        LABEL_ROLE: role.name,
    }
    queue = {QUEUE_LABEL: spec.queue_name} if spec.queue_name else {}
    given = PodInput(
        model_id=model_id(observed, spec), spec=spec, start_model_id=start_model_id, gpus=spec.resources.gpus
    )
    template: dict[str, Any] = {"metadata": {"labels": labels}, "spec": _pod(spec, settings, role, parts, given)}
    if parts.annotations:
        template["metadata"]["annotations"] = parts.annotations
    exit_rule = {"containerName": role.container, "operator": "In", "values": [EXIT_INPUT]}
    job: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": child_name(observed.name, role.name),
            "namespace": observed.namespace,
            "labels": labels | queue,
            "ownerReferences": [owner_reference(observed, KIND)],
        },
        "spec": {
            "backoffLimit": spec.retries,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": exit_rule},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": template,
        },
    }
    if spec.active_deadline_seconds is not None and parts.has_deadline:
        job["spec"]["activeDeadlineSeconds"] = spec.active_deadline_seconds
    return job


def _pod(spec: TuningJobSpec, settings: Settings, role: PodRole, parts: PodParts, given: PodInput) -> dict[str, Any]:
    volumes = [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": spec.volume.claim_name}},
        {"name": "tmp", "emptyDir": {}},
        *parts.volumes,
    ]
    mounts = [{"name": "workspace", "mountPath": str(ROOT)}, {"name": "tmp", "mountPath": "/tmp"}, *parts.mounts]
    if spec.dataset.config_map is not None and parts.reads_dataset:
        source = spec.dataset.config_map
        item = {"key": source.key, "path": source.key}
        volumes.append({"name": "dataset", "configMap": {"name": source.name, "items": [item]}})
        mounts.append({"name": "dataset", "mountPath": str(DATASET_DIR), "readOnly": True})
    container: dict[str, Any] = {
        "name": role.container,
        "image": parts.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "llm_tuning.pod", role.name],
        "env": [
            {"name": INPUT_VARIABLE, "value": given.encode()},
            {"name": "HOME", "value": "/tmp"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            *parts.environment,
        ],
        "resources": parts.resources,
        "securityContext": RESTRICTED,
        "terminationMessagePath": str(TERMINATION_LOG),
        # A container that could not even start its program leaves the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
        "securityContext": pod_security(settings),
        "containers": [container],
        "volumes": volumes,
    }
    if parts.runtime_class is not None:
        pod["runtimeClassName"] = parts.runtime_class
    return pod | placement(spec.resources, settings)
