"""What the Jobs of a TuningJob share: names, labels, owner, and the input of their pods."""

from __future__ import annotations

import hashlib
from typing import Any

from llm_tuning.api.tuning import form_model_id
from llm_tuning.api.tuning_job import KIND, TuningJobSpec
from llm_tuning.pod.contract import DATASET_DIR, INPUT_VARIABLE, NodesInput, PodInput
from llm_tuning.pod.roles import PodRole
from tuning_operator.core.constants import (
    LABEL_JOB,
    LABEL_ROLE,
    LABEL_UID,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    NODES_PORT,
    QUEUE_LABEL,
)
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts, build_job_of, build_pod
from tuning_operator.pods.template import owner_reference
from tuning_operator.tuning_job.observed import Observed


def child_name(job_name: str, role: str) -> str:
    """Name the TuningJob's one Job of a role: the API server itself refuses a second one of that name."""
    return f"{job_name}-{role}"


def model_id(observed: Observed, spec: TuningJobSpec) -> str:
    """Form the model_id: the same on every reconcile, so that a retry resumes; another for a namesake."""
    if observed.status.model_id is not None:
        return observed.status.model_id
    digest = hashlib.sha256(observed.uid.encode()).hexdigest()[:6]
    return form_model_id(spec.mode, spec.base_name, created=int(observed.created.timestamp()), digest=digest)


def labels_of(observed: Observed, role: str | None = None) -> dict[str, str]:
    """Return the labels of what belongs to the TuningJob, or of one role's Job and pods."""
    labels = {MANAGED_BY_LABEL: MANAGED_BY, LABEL_JOB: observed.name, LABEL_UID: observed.uid}
    return labels if role is None else labels | {LABEL_ROLE: role}


def build_job(
    observed: Observed,
    spec: TuningJobSpec,
    settings: Settings,
    *,
    role: PodRole,
    parts: PodParts,
    start_model_id: str | None,
) -> dict[str, Any]:
    """Build the `batch/v1` Job of a role."""
    labels, name = labels_of(observed, role.name), child_name(observed.name, role.name)
    queue = {QUEUE_LABEL: spec.queue_name} if spec.queue_name else {}
    environment: list[dict[str, Any]] = []
    if role.has_spec:
        given = PodInput(
            model_id=model_id(observed, spec), spec=spec, start_model_id=start_model_id, gpus=spec.resources.gpus
        )
        if parts.nodes > 1:
            hosts = [f"{name}-{index}.{parts.subdomain}" for index in range(parts.nodes)]
            given = given.model_copy(update={"nodes": NodesInput(hosts=hosts, port=NODES_PORT)})
        environment.append({"name": INPUT_VARIABLE, "value": given.encode()})
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if spec.dataset.config_map is not None and parts.reads_dataset:
        source = spec.dataset.config_map
        item = {"key": source.key, "path": source.key}
        volumes.append({"name": "dataset", "configMap": {"name": source.name, "items": [item]}})
        mounts.append({"name": "dataset", "mountPath": str(DATASET_DIR), "readOnly": True})
    pod = build_pod(
        role,
        parts,
        settings,
        claim=spec.volume.claim_name,
        asked=spec.resources,
        environment=environment,
        volumes=volumes,
        mounts=mounts,
    )
    metadata = {
        "name": name,
        "namespace": observed.namespace,
        "labels": labels | queue,
        "ownerReferences": [owner_reference(observed, KIND)],
    }
    job = build_job_of(role, parts, pod, metadata=metadata, labels=labels, retries=spec.retries)
    if spec.active_deadline_seconds is not None and parts.has_deadline:
        job["spec"]["activeDeadlineSeconds"] = spec.active_deadline_seconds
    return job
