"""The settings of a server: the names of bases that scripts may use and what is behind each, limits, names.

One YAML file: the chart's ConfigMap, or what `tune-llm api` makes of its flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from llm_tuning.api.inference_service import ApiKeySecretRef, ServiceResourcesSpec, VllmSpec
from llm_tuning.api.kube import DNS_LABEL, MemoryQuantity, ObjectName, RelativePath, SecretRef
from llm_tuning.api.quantity import parse_quantity
from llm_tuning.api.rules import RuledModel, exactly_one_of
from llm_tuning.api.sources import SECRET_NEEDS_URI, ModelUri, base_name
from llm_tuning.api.tuning import LoraSpec, TrainingSpec
from llm_tuning.api.tuning_job import JobTrackingSpec, ResourcesSpec
from llm_tuning.api.yaml import load_yaml_mapping
from llm_tuning.core.model import PATTERN_WORDS, ApiModel, FieldError
from llm_tuning.errors import InputError, Problem
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.names import BASE_AND_ORGANIZATION, NAME_CHARACTERS, ORGANIZATION_CHARACTERS

BASE_NAME = r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$"
ORGANIZATION = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
PATTERN_WORDS |= {
    BASE_NAME: "a name of letters, digits, -, . and _, beginning and ending with a letter or a digit",
    ORGANIZATION: "a name of lower-case letters, digits and -, beginning and ending with a letter or a digit",
}
BaseName = Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS, pattern=BASE_NAME)]


class Serving(ApiModel):
    """How an InferenceService that this server makes serves a base."""

    on_demand: bool = Field(
        True,
        description="Make an InferenceService for the base with its first fine-tuned model; else one must be there.",
    )

    always: bool = Field(False, description="Make it at once, so that the base itself can be asked.")

    replicas: Annotated[int, Field(ge=0, le=64)] = Field(1, description="Pods, each with a vLLM of its own.")

    resources: ServiceResourcesSpec = Field(
        default_factory=ServiceResourcesSpec, description="What each vLLM is given, and where its pods may run."
    )

    vllm: VllmSpec = Field(default_factory=VllmSpec, description="Engine flags of vLLM: an allow-list.")


class Base(RuledModel):
    """A base model under the name that scripts use."""

    RULES = (exactly_one_of("path", "uri"), SECRET_NEEDS_URI)

    path: RelativePath | None = Field(None, description="Folder of the base on the claim, such as base/qwen3-8b.")

    uri: ModelUri | None = Field(
        None, description="Where it comes from: hf://owner/name[@revision], s3://bucket/prefix."
    )

    credentials_secret: SecretRef | None = Field(None, description="Secret in this namespace for that source.")

    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, description="What a training of it is given.")

    training: TrainingSpec = Field(
        default_factory=TrainingSpec,
        description="What `auto` stands for, and all that OpenAI's requests have no field for.",
    )

    lora: LoraSpec = Field(default_factory=LoraSpec, description="The adapter.")

    queue_name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] | None = Field(
        None, description="Kueue LocalQueue of the trainings."
    )

    tracking: JobTrackingSpec = Field(default_factory=JobTrackingSpec, description="Where MLflow keeps the runs.")

    serving: Serving = Field(default_factory=Serving, description="How it is served.")

    @property
    def source(self) -> str:
        """What it really is, in one line."""
        return self.uri or str(self.path)

    @property
    def model(self) -> dict[str, Any]:
        """The group `model` of a spec that names it."""
        secret = {"credentialsSecret": {"name": self.credentials_secret.name}} if self.credentials_secret else {}
        return {"path": self.path} if self.path is not None else {"uri": self.uri, **secret}

    @property
    def own_name(self) -> str:
        """Its short name in a model_id: the last part of path or URI."""
        return base_name(self.path, self.uri)


class Limits(ApiModel):
    """What one server takes."""

    file_size: MemoryQuantity = Field("4Gi", description="The largest file.")

    total_size: MemoryQuantity = Field("100Gi", description="All files together.")

    requests_per_minute: Annotated[int, Field(ge=0)] = Field(
        600, description="Of one key in each replica; 0: no limit."
    )

    parallel_answers: Annotated[int, Field(ge=0)] = Field(
        256, description="Chats of one key at once in each replica; 0: no limit."
    )

    uploads_per_day: MemoryQuantity | None = Field(None, description="Bytes of one key a day in each replica.")

    @property
    def file_bytes(self) -> int:
        return int(parse_quantity(self.file_size))

    @property
    def total_bytes(self) -> int:
        return int(parse_quantity(self.total_size))

    @property
    def upload_bytes_per_day(self) -> int:
        """0: no limit."""
        return int(parse_quantity(self.uploads_per_day)) if self.uploads_per_day is not None else 0


class Settings(ApiModel):
    """All that a server is told."""

    organization: Annotated[
        str, StringConstraints(min_length=1, max_length=ORGANIZATION_CHARACTERS, pattern=ORGANIZATION)
    ] = Field("local", description="Your name in `ft:` names.")

    claim_name: ObjectName = Field("local", description="The claim with base/, datasets/ and models/.")

    bases: Annotated[dict[BaseName, Base], Field(min_length=1, max_length=64)] = Field(
        description="Bases by the names that scripts use: {gpt-4.1-mini: {uri: hf://Qwen/Qwen3-8B}}."
    )

    limits: Limits = Field(default_factory=Limits, description="What this server takes.")

    wait_seconds: Annotated[int, Field(ge=0, le=300)] = Field(
        30, description="How long a chat waits for a model that is being loaded, before it is answered 503."
    )

    delete_adapters: bool = Field(
        False,
        description="Let `DELETE /v1/models/NAME?adapter=true` remove the adapter itself; models/ is mounted writable.",
    )

    api_key_secret: ApiKeySecretRef | None = Field(
        None, description="Key of the InferenceServices that this server makes."
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for name in self.bases:
            if (length := len(name) + len(self.organization)) > BASE_AND_ORGANIZATION:
                rule = f"and organization must have at most {BASE_AND_ORGANIZATION} characters together, got {length}"
                raise FieldError(f"bases.{name}", f"{rule}; shorten one of them")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; raises InputError with every problem."""
        return cls.parse(load_yaml_mapping(path), where=path.name)

    def service_key(self, value: str | None) -> str | None:
        """Return the key that is sent to services, out of the Secret's value; raises InputError for a wrong one."""
        if self.api_key_secret is None:
            return None
        key = (value or "").strip()  # a Secret made of a file ends with a line break
        if not key or not key.isascii() or not key.isprintable():
            place = f"Secret {self.api_key_secret.name}, key {self.api_key_secret.key}"
            raise InputError(Problem(place, "must have an API key of printable ASCII characters", "put it there"))
        return key

    def base(self, name: str) -> Base:
        """Return a base by the name that a request has; raises ApiError."""
        if name not in self.bases:
            known = ", ".join(sorted(self.bases))
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist here; there are {known}.",
                code="model_not_found",
                param="model",
            )
        return self.bases[name]
