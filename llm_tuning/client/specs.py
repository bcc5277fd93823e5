"""From the arguments of `tune` and `serve` to the objects that are sent, with the API server's own verdict before.

What is sent is what was given: defaults are the server's, so that an object says what its author wanted and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from pydantic.alias_generators import to_camel

from llm_tuning.api import inference_service, tuning_job
from llm_tuning.api.inference_service import (
    ApiKeySecretRef,
    InferenceService,
    RolloutSpec,
    Route,
    ServedModelSpec,
    ServeSpec,
    ServiceResourcesSpec,
    VllmSpec,
)
from llm_tuning.api.kube import API_VERSION, VolumeSpec
from llm_tuning.api.mode_fields import ModeName
from llm_tuning.api.tuning import LoraSpec, TrainingSpec
from llm_tuning.api.tuning_job import (
    JobDatasetSpec,
    JobModelSpec,
    JobTrackingSpec,
    ResourcesSpec,
    TuningJob,
)
from llm_tuning.api.uri_rules import is_uri
from llm_tuning.core.model import ApiModel
from llm_tuning.core.suggestions import did_you_mean
from llm_tuning.errors import InputError, Problem
from llm_tuning.modes import DEFAULT_MODE, ModeSettings

Raw = dict[str, Any]
Group = Mapping[str, Any]
"""A part of a spec as YAML has it: {"maxSteps": 4}; models do as well: TrainingSpec(max_steps=4)."""

KINDS: Mapping[str, type[TuningJob | InferenceService]] = {
    tuning_job.KIND: TuningJob,
    inference_service.KIND: InferenceService,
}


class TuneFields(ModeSettings, total=False):
    """Fields of a TuningJob's spec; `model`, `dataset` and `volume` are needed. A text stands for its usual field."""

    mode: ModeName
    model: str | Group | JobModelSpec
    """A text is `model.path`, or `model.uri` where it begins with hf://, s3:// and the like."""
    dataset: str | Group | JobDatasetSpec
    """A text is `dataset.path`, or `dataset.uri`."""
    volume: str | Group | VolumeSpec
    """A text is `volume.claimName`."""
    training: Group | TrainingSpec
    lora: Group | LoraSpec
    tracking: Group | JobTrackingSpec
    resources: Group | ResourcesSpec
    queue_name: str
    suspend: bool
    active_deadline_seconds: int
    retries: int
    ttl_seconds_after_finished: int
    serve: str | Group | ServeSpec
    """A text is `serve.name`."""


class ServeFields(TypedDict, total=False):
    """Fields of an InferenceService's spec. A text stands for its usual field."""

    model: str | Group | ServedModelSpec
    """A text is `model.path`, or `model.uri` where it begins with hf://, s3:// and the like."""
    volume: str | Group | VolumeSpec
    """A text is `volume.claimName`."""
    routes: Sequence[Group | Route]
    replicas: int
    resources: Group | ServiceResourcesSpec
    vllm: Group | VllmSpec
    rollout: Group | RolloutSpec
    api_key_secret: str | Group | ApiKeySecretRef
    """A text is `apiKeySecret.name`."""


_USUAL = {"model": "path", "dataset": "path", "volume": "claimName", "serve": "name", "apiKeySecret": "name"}


def build_tuning_job(name: str | None, fields: TuneFields) -> Raw:
    """Build a TuningJob; without a name the server makes one. Raises InputError with every problem."""
    return checked(_object(tuning_job.KIND, name, f"{fields.get('mode') or DEFAULT_MODE}-", cast(Group, fields)))


def build_inference_service(name: str, fields: ServeFields) -> Raw:
    """Build an InferenceService; raises InputError with every problem."""
    return checked(_object(inference_service.KIND, name, "", cast(Group, fields)))


def serving_fields(job: TuningJob, name: str) -> ServeFields:
    """Return what serves the adapter of `job` on a route `name`: its base, its claim, and the job as target."""
    target = {"tuningJob": str(job.metadata["name"])}
    return {
        "model": _base_of(job),
        "volume": job.spec.volume.claim_name,
        "routes": [{"name": name, "targets": [target]}],
    }


def _base_of(job: TuningJob) -> str | Group:
    """Return the base of `job`; one that was fetched by its folder, under the name that its URI has."""
    model, found = job.spec.model, job.status.model if job.status is not None else None
    if model.path is not None:
        return model.path
    if found is not None and found.path is not None:
        return {"path": found.path, "name": job.spec.base_name}
    secret = {"credentialsSecret": model.credentials_secret} if model.credentials_secret is not None else {}
    return {"uri": model.uri, **secret}


def checked(values: Group | TuningJob | InferenceService) -> Raw:
    """Return the object as it is sent if the API server would take it; raises InputError with every problem."""
    plain = cast(Raw, _plain(values))
    kind = str(plain.get("kind"))
    if kind not in KINDS or plain.get("apiVersion") != API_VERSION:
        rule = f"must be {' or '.join(KINDS)} of {API_VERSION}, got {kind!r} of {plain.get('apiVersion')!r}"
        raise InputError(Problem("kind", rule, did_you_mean(kind, KINDS.keys() - {kind})))
    if not isinstance(plain.get("metadata"), dict):
        raise InputError(Problem("metadata", "is required", "add it, with a name"))
    KINDS[kind].parse({key: value for key, value in plain.items() if key != "status"})
    return plain


def _object(kind: str, name: str | None, prefix: str, fields: Group) -> Raw:
    spec = {to_camel(key): value for key, value in fields.items()}
    spec = {key: _group(key, value) for key, value in spec.items()}
    metadata = {"name": name} if name is not None else {"generateName": prefix}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _group(key: str, value: Any) -> Any:
    """Return the group that a text stands for; a URI is one wherever a path may be."""
    if not isinstance(value, str) or key not in _USUAL:
        return value
    return {"uri" if _USUAL[key] == "path" and is_uri(value) else _USUAL[key]: value}


def _plain(value: Any) -> Any:
    """Dump models as they are written on the wire, what was not set left out."""
    if isinstance(value, ApiModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True) | _identity(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _identity(value: ApiModel) -> Raw:
    """Return kind and version of a whole object, which users leave out."""
    if isinstance(value, TuningJob | InferenceService):
        return {"apiVersion": value.api_version, "kind": value.kind}
    return {}
