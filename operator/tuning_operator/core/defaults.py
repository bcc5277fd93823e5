"""What a TuningJob or an InferenceService gets for what it leaves out: the Helm values `defaults`.

Filled in as a reconcile begins, and nowhere else. The stored object stays as its author wrote it, so that whoever reads
it sees what was asked for, nothing immutable is touched, and the CRD knows no cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self, TypeVar

from pydantic import Field, StringConstraints, model_validator

from llm_tuning.api.inference_service import InferenceServiceSpec, ServiceResourcesSpec
from llm_tuning.api.kube import DNS_LABEL, LabelKey, LabelValue, ObjectName, SecretRef, Toleration
from llm_tuning.api.tuning_job import ResourcesSpec, TuningJobSpec
from llm_tuning.core.model import ApiModel, FieldError

Resources = TypeVar("Resources", ResourcesSpec, ServiceResourcesSpec)
Model = TypeVar("Model", bound=ApiModel)


class TrackingDefaults(ApiModel):
    """The MLflow server of TuningJobs without tracking.uri."""

    uri: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = Field(
        None, description="MLflow tracking URI; without it each run keeps a private store."
    )

    credentials_secret: SecretRef | None = Field(
        None, description="Secret for that server, in each watched namespace; never sent to another server."
    )

    @model_validator(mode="after")
    def _credentials_are_for_a_server(self) -> Self:
        if self.credentials_secret is not None and self.uri is None:
            raise FieldError("credentialsSecret", "needs uri: credentials are for one server; set uri too")
        return self


class GpuDefaults(ApiModel):
    """Where pods run whose custom resource asks for GPUs."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = Field(
        None, description="For those without resources.nodeSelector."
    )

    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = Field(
        None, description="For those without resources.tolerations."
    )

    runtime_class_name: ObjectName | None = Field(None, description="For those without resources.runtimeClassName.")


class Defaults(ApiModel):
    """All of them; each stands in for a field as a whole and is never mixed with what was given."""

    tracking: TrackingDefaults = Field(default_factory=TrackingDefaults, description="MLflow.")

    queue_name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] | None = Field(
        None, description="Kueue LocalQueue of TuningJobs without queueName; it must be in each watched namespace."
    )

    gpu: GpuDefaults = Field(default_factory=GpuDefaults, description="Placement of pods with GPUs.")


def with_defaults(spec: TuningJobSpec, defaults: Defaults) -> TuningJobSpec:
    """Return a TuningJob's spec with the operator's defaults where it sets nothing."""
    tracking, wanted = spec.tracking, defaults.tracking
    if tracking.uri is None and wanted.uri is not None:
        secret = tracking.credentials_secret or wanted.credentials_secret
        tracking = tracking.model_copy(update={"uri": wanted.uri, "credentials_secret": secret})
    update: dict[str, object] = {"tracking": tracking, "resources": _placed(spec.resources, defaults.gpu)}
    if spec.queue_name is None:
        update["queue_name"] = defaults.queue_name
    return _updated(spec, update)


def with_service_defaults(spec: InferenceServiceSpec, defaults: Defaults) -> InferenceServiceSpec:
    """Return an InferenceService's spec with the operator's defaults where it sets nothing."""
    return _updated(spec, {"resources": _placed(spec.resources, defaults.gpu)})


def _placed(resources: Resources, gpu: GpuDefaults) -> Resources:
    if not resources.gpus:
        return resources
    given = {name: getattr(gpu, name) for name in GpuDefaults.model_fields}
    return _updated(
        resources,
        {name: value for name, value in given.items() if value is not None and getattr(resources, name) is None},
    )


def _updated(model: Model, update: Mapping[str, object]) -> Model:
    """Return a copy with what differs; a field set to the value it had would count as given by the user in the pod."""
    changes = {name: value for name, value in update.items() if value != getattr(model, name)}
    return model.model_copy(update=changes) if changes else model
