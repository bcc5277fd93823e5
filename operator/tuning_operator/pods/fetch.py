"""The pod that fetches sources: the one with a way out of the cluster, and with the credentials for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from llm_tuning.api.inference_service import ServedModelSpec
from llm_tuning.api.tuning_job import JobDatasetSpec, JobModelSpec
from llm_tuning.pod.contract import FETCH_VARIABLE, FetchInput, SourceInput
from tuning_operator.core.constants import SOURCES_CA_ANNOTATION
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.template import small_resources

CPU, MEMORY = "500m", "1Gi"
"""It hashes what it writes; the page cache counts, and gives way."""
CREDENTIALS_FOLDER = "/var/run/llm-tuning-credentials"
CA_FOLDER = "/var/run/llm-tuning-sources"


@dataclass(frozen=True)
class Asked:
    """A source that a spec names by URI."""

    field: Literal["model", "dataset"]
    uri: str
    secret: str | None = None
    revision: str | None = None
    """What it was resolved to before."""

    @classmethod
    def of(
        cls,
        field: Literal["model", "dataset"],
        group: JobModelSpec | JobDatasetSpec | ServedModelSpec,
        revision: str | None,
    ) -> Self | None:
        """Return what a group of a spec asks for; None where it has a path."""
        if group.uri is None:
            return None
        secret = group.credentials_secret.name if group.credentials_secret is not None else None
        return cls(field, group.uri, secret, revision)


def fetch_parts(asked: Sequence[Asked], pin: str, settings: Settings) -> PodParts:
    """Build what fetching adds to the common pod. Secrets are files: whoever reads the pod's spec sees their names."""
    parts = PodParts(
        image=settings.operator_image,
        resources=small_resources(CPU, MEMORY),
        reads_dataset=False,
        has_deadline=False,
        is_online=True,
    )
    sources = []
    for source in asked:
        folder = f"{CREDENTIALS_FOLDER}/{source.field}"
        secret = source.secret or settings.sources_credentials_secret or None
        given: dict[str, Any] = {"field": source.field, "uri": source.uri}
        if source.revision is not None:
            given["revision"] = source.revision
        if secret is not None:
            volume = {"secretName": secret, **({} if source.secret else {"optional": True})}
            parts.volumes.append({"name": f"credentials-{source.field}", "secret": volume})
            parts.mounts.append({"name": f"credentials-{source.field}", "mountPath": folder, "readOnly": True})
            given["credentials"] = folder
        sources.append(SourceInput(**given))
    ca_file = {"ca_file": f"{CA_FOLDER}/ca.crt"} if settings.sources_ca_bundle else {}
    if settings.sources_ca_bundle:
        authority = {"path": "ca.crt", "fieldRef": {"fieldPath": f"metadata.annotations['{SOURCES_CA_ANNOTATION}']"}}
        parts.annotations[SOURCES_CA_ANNOTATION] = settings.sources_ca_bundle
        parts.volumes.append({"name": "sources-ca", "downwardAPI": {"items": [authority]}})
        parts.mounts.append({"name": "sources-ca", "mountPath": CA_FOLDER, "readOnly": True})
    given_to_pod = FetchInput(pin=pin, sources=sources, **ca_file)
    parts.environment.append({"name": FETCH_VARIABLE, "value": given_to_pod.encode()})
    for name, value in {
        "HF_ENDPOINT": settings.sources_endpoint,
        "HTTPS_PROXY": settings.sources_proxy,
        "HTTP_PROXY": settings.sources_proxy,
        "NO_PROXY": settings.sources_no_proxy,
    }.items():
        if value:
            parts.environment.append({"name": name, "value": value})
    return parts
