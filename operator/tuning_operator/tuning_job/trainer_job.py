"""Build the training Job: a plain `batch/v1` Job, so that Kueue, quotas and dashboards know it."""

from __future__ import annotations

from typing import Any

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import REQUIRE_GPU_VARIABLE, TRAIN
from tuning_operator.core.constants import PROGRESS_CA_ANNOTATION, TOKEN_SECONDS
from tuning_operator.core.settings import Settings
from tuning_operator.pods.template import PodParts, build_job, threads
from tuning_operator.reports.audience import audience_of
from tuning_operator.tuning_job.observed import Observed

REPORTING_FOLDER = "/var/run/llm-tuning"
SHARED_MEMORY = "2Gi"
"""NCCL's rings between the processes of several GPUs; the default of 64 MiB is too small for it."""


def build_trainer_job(
    observed: Observed, spec: TuningJobSpec, settings: Settings, start_model_id: str | None
) -> dict[str, Any]:
    """Training from `start_model_id`, or from the base where it is None."""
    resources = spec.resources
    requests: dict[str, Any] = {"cpu": resources.cpu, "memory": resources.memory}
    limits: dict[str, Any] = {"memory": resources.memory}
    if resources.gpus:
        requests[settings.gpu_resource] = limits[settings.gpu_resource] = str(resources.gpus)
    parts = PodParts(image=settings.trainer_image, resources={"requests": requests, "limits": limits})
    threads_each = max(1, threads(resources.cpu) // max(1, resources.gpus))  # one process for each GPU
    parts.environment.append({"name": "OMP_NUM_THREADS", "value": str(threads_each)})
    if resources.gpus and not settings.allow_cpu_fallback:
        parts.environment.append({"name": REQUIRE_GPU_VARIABLE, "value": "1"})
    if resources.gpus > 1:
        memory = {"medium": "Memory", "sizeLimit": SHARED_MEMORY}
        parts.volumes.append({"name": "shm", "emptyDir": memory})
        parts.mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if spec.tracking.credentials_secret is not None:
        parts.environment_from.append({"secretRef": {"name": spec.tracking.credentials_secret.name}})
    if settings.progress_url and settings.ca_pem:
        _add_reporting(parts, observed, settings.progress_url, settings.ca_pem)
    return build_job(observed, spec, settings, role=TRAIN, parts=parts, start_model_id=start_model_id)


def _add_reporting(parts: PodParts, observed: Observed, url: str, ca_pem: str) -> None:
    """Progress goes to the operator over TLS, with a token that is good for this TuningJob alone and no API server."""
    audience = audience_of(observed.namespace, observed.name, observed.uid)
    token = {"path": "token", "audience": audience, "expirationSeconds": TOKEN_SECONDS}
    authority = {"path": "ca.crt", "fieldRef": {"fieldPath": f"metadata.annotations['{PROGRESS_CA_ANNOTATION}']"}}
    sources = [{"serviceAccountToken": token}, {"downwardAPI": {"items": [authority]}}]
    parts.annotations[PROGRESS_CA_ANNOTATION] = ca_pem
    parts.volumes.append({"name": "reporting", "projected": {"sources": sources}})
    parts.mounts.append({"name": "reporting", "mountPath": REPORTING_FOLDER, "readOnly": True})
    path = f"/v1/namespaces/{observed.namespace}/tuningjobs/{observed.name}/status"
    for name, value in {
        "KUBEFLOW_TRAINER_SERVER_URL": url + path,
        "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{REPORTING_FOLDER}/token",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": f"{REPORTING_FOLDER}/ca.crt",
    }.items():
        parts.environment.append({"name": name, "value": value})
