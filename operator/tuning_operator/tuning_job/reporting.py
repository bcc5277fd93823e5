"""How a pod of a TuningJob reports where it is."""

from __future__ import annotations

from tuning_operator.core.audience import audience_of
from tuning_operator.core.constants import PROGRESS_CA_ANNOTATION, TOKEN_SECONDS
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.tuning_job.observed import Observed

REPORTING_FOLDER = "/var/run/llm-tuning"


def add_reporting(parts: PodParts, observed: Observed, settings: Settings) -> None:
    """Let the pod report over TLS, with a token that is good for this TuningJob alone and no API server."""
    if not (settings.progress_url and settings.ca_pem):
        return
    audience = audience_of(observed.namespace, observed.name, observed.uid)
    token = {"path": "token", "audience": audience, "expirationSeconds": TOKEN_SECONDS}
    authority = {"path": "ca.crt", "fieldRef": {"fieldPath": f"metadata.annotations['{PROGRESS_CA_ANNOTATION}']"}}
    sources = [{"serviceAccountToken": token}, {"downwardAPI": {"items": [authority]}}]
    parts.annotations[PROGRESS_CA_ANNOTATION] = settings.ca_pem
    parts.volumes.append({"name": "reporting", "projected": {"sources": sources}})
    parts.mounts.append({"name": "reporting", "mountPath": REPORTING_FOLDER, "readOnly": True})
    path = f"/v1/namespaces/{observed.namespace}/tuningjobs/{observed.name}/status"
    for name, value in {
        "KUBEFLOW_TRAINER_SERVER_URL": settings.progress_url + path,
        "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{REPORTING_FOLDER}/token",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": f"{REPORTING_FOLDER}/ca.crt",
    }.items():
        parts.environment.append({"name": name, "value": value})
