"""The TuningJob custom resource: a tuning run as one object in a cluster.

Its groups are those of TuningConfig; what differs is where things are. In a cluster everything lies on one claim, so
paths are relative to it, a dataset may also be a ConfigMap's, and a start adapter may be named by the job that makes
it. The CRD is generated from these models (see `crd`), and descriptions are what `kubectl explain` shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from llm_tuning.api.inference_service import ServeSpec
from llm_tuning.api.kube import (
    DNS_LABEL,
    DNS_SUBDOMAIN,
    SUBDOMAIN,
    Condition,
    ConfigMapKeyRef,
    CpuQuantity,
    Line,
    MemoryQuantity,
    PlacementSpec,
    RelativePath,
    SecretRef,
    Time,
    VolumeSpec,
    check_name,
)
from llm_tuning.api.structural import RULES, rule
from llm_tuning.api.tuning import (
    AdapterRef,
    DatasetSpec,
    LoraSpec,
    Mode,
    ModelId,
    ModelSpec,
    PpoSpec,
    TrackingSpec,
    TrainingSpec,
    TuningConfig,
    check_ppo_settings,
)
from llm_tuning.api.wire import WireModel
from llm_tuning.core.model import ApiModel, FieldError
from llm_tuning.errors import InputError, Problem

KIND, PLURAL, SINGULAR, SHORT_NAME = "TuningJob", "tuningjobs", "tuningjob", "tj"
NAME_CHARACTERS = 50
"""Of a TuningJob: its Jobs and their pods append to it, and names end at 63."""

MUTABLE = ("suspend", "ttl_seconds_after_finished")
"""Fields of the spec that may change; all others decide what is trained and stay as they were applied."""

IMMUTABLE = "cannot be changed after creation; delete the TuningJob and apply it anew, or use another name"


class JobAdapterRef(ApiModel):
    """An adapter to start from: exactly one of `tuningJob` and `modelId`."""

    model_config = ConfigDict(
        json_schema_extra={
            RULES: [rule("has(self.tuningJob) != has(self.modelId)", "must have exactly one of tuningJob and modelId")]
        }
    )

    tuning_job: (
        Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS, pattern=DNS_SUBDOMAIN)] | None
    ) = Field(
        None,
        description="Name of a TuningJob in this namespace; this one waits until that one has succeeded and starts from its adapter.",
    )

    model_id: ModelId | None = Field(None, description="model_id of a finished adapter on the claim, of the same base.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.tuning_job is None) == (self.model_id is None):
            raise ValueError("must have exactly one of tuningJob and modelId")
        return self


class JobModelSpec(ApiModel):
    """The base model."""

    path: RelativePath = Field(
        description="Folder of the base model on the claim, such as base/qwen3-0.6b: config.json, safetensors weights and tokenizer. Relative, without `..`."
    )

    adapter: JobAdapterRef | None = Field(
        None,
        description="Adapter to start from, by tuningJob or modelId; training goes on from it and, in ppo, measures against it. Without it training starts at the base itself.",
    )

    quantization: Literal["none", "4bit"] = Field(
        "none", description="`4bit` loads the base with bitsandbytes (QLoRA); it needs a GPU."
    )


class JobDatasetSpec(ApiModel):
    """The training rows: exactly one of `path` and `configMap`."""

    model_config = ConfigDict(
        json_schema_extra={
            RULES: [rule("has(self.path) != has(self.configMap)", "must have exactly one of path and configMap")]
        }
    )

    path: RelativePath | None = Field(
        None,
        description="JSON array, JSON Lines or Parquet file of rows on the claim, such as datasets/faq.json. Relative, without `..`.",
    )

    config_map: ConfigMapKeyRef | None = Field(
        None, description="The file as a key of a ConfigMap, for data sets of up to 1 MiB."
    )

    skip_invalid_rows: bool = Field(
        False,
        description="Train on the rows that pass the check instead of refusing the file; the condition still counts the others.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.path is None) == (self.config_map is None):
            raise ValueError("must have exactly one of path and configMap")
        return self


class JobTrackingSpec(ApiModel):
    """Where MLflow keeps the run."""

    uri: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = Field(
        None,
        description="MLflow tracking URI, such as http://mlflow.mlops.svc:5000. Without it the run keeps a private store beside the adapter.",
    )

    experiment_name: Annotated[str, StringConstraints(min_length=1, max_length=250)] = Field(
        "llm_tuning", description="MLflow experiment."
    )

    credentials_secret: SecretRef | None = Field(
        None,
        description="Secret whose keys become environment variables of the trainer: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID, ...",
    )


class ResourcesSpec(PlacementSpec):
    """What the trainer's pod is given, and where its pods may run."""

    gpus: Annotated[int, Field(ge=0, le=16)] = Field(
        1, description="GPUs (nvidia.com/gpu) of the trainer, data-parallel from 2 on; 0 trains on the CPU."
    )

    cpu: CpuQuantity = Field(
        "2",
        description="CPU cores that the trainer requests, such as 4, 0.5 or 500m; it may use more where there are more.",
    )

    memory: MemoryQuantity = Field(
        "8Gi", description="Memory of the trainer with its unit, request and limit: above it the trainer is ended."
    )


SERVES_BASE_NAME = "must not be the base's name, under which the base itself answers; use another one"
_PPO_SETTINGS = {to_camel(name): field.default for name, field in PpoSpec.model_fields.items()}


class TuningJobSpec(WireModel):
    """What is to be trained. Only suspend and ttlSecondsAfterFinished can be changed afterwards."""

    model_config = ConfigDict(
        json_schema_extra={
            RULES: [
                rule(
                    f"self.mode == 'ppo' || self.ppo.{name} == {float(default)!r}",
                    "is set but mode is not ppo; set mode: ppo or remove it",
                    field=f".ppo.{name}",
                )
                for name, default in _PPO_SETTINGS.items()
            ]
            + [
                rule(
                    "!has(self.serve) || (self.serve.name != self.model.path && "
                    "!self.model.path.endsWith('/' + self.serve.name))",
                    SERVES_BASE_NAME,
                    field=".serve.name",
                )
            ]
        }
    )

    mode: Mode = Field("sft", description="sft: learn the outputs. ppo: learn from outputs with rewards.")

    model: JobModelSpec = Field(description="The base model.")

    dataset: JobDatasetSpec = Field(description="The training rows: exactly one of path and configMap.")

    volume: VolumeSpec = Field(description="The volume that has it all: base/ datasets/ models/.")

    training: TrainingSpec = Field(default_factory=TrainingSpec, description="How the optimizer goes through the rows.")

    lora: LoraSpec = Field(default_factory=LoraSpec, description="The adapter.")

    ppo: PpoSpec = Field(
        default_factory=PpoSpec, description="How far training from rewards may go; only for mode ppo."
    )

    tracking: JobTrackingSpec = Field(default_factory=JobTrackingSpec, description="Where MLflow keeps the run.")

    resources: ResourcesSpec = Field(
        default_factory=ResourcesSpec, description="What the trainer's pod is given, and where its pods may run."
    )

    queue_name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] | None = Field(
        None, description="Kueue LocalQueue of this namespace; check and training wait for admission there."
    )

    suspend: bool = Field(
        False,
        description="true ends the pods, after a checkpoint, and starts none until it is false again; training then goes on where it was.",
    )

    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = Field(
        None,
        description="Seconds that the check, and each active stretch of the training, may take; without it no limit.",
    )

    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        3,
        description="New starts after a failed pod, each from the last checkpoint. Bad input is never retried, and disruptions do not count.",
    )

    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        None,
        description="Seconds after which a finished TuningJob is deleted; the adapter stays. Without it the object stays.",
    )

    serve: ServeSpec | None = Field(
        None,
        description="Serve the adapter once it is published: makes an InferenceService that outlives this TuningJob.",
    )

    @model_validator(mode="after")
    def _groups_fit_together(self) -> Self:
        check_ppo_settings(self.mode, self.ppo)
        if self.serve is not None and self.model.path.rsplit("/", 1)[-1] == self.serve.name:
            raise FieldError("serve.name", SERVES_BASE_NAME)
        return self


class Progress(ApiModel):
    """How far the training is, as it was last reported."""

    percent: Annotated[int, Field(ge=0, le=100)] = Field(description="Share of the steps that are done, in percent.")

    step: Annotated[int, Field(ge=0)] = Field(0, description="Optimizer steps that are done.")

    total_steps: Annotated[int, Field(ge=0)] | None = Field(None, description="Optimizer steps of the whole run.")

    epoch: float | None = Field(None, description="Passes over the rows that are done.")

    loss: float | None = Field(None, description="Training loss of the last report.")

    tokens_per_second: float | None = Field(None, description="Training speed.")

    remaining_seconds: Annotated[int, Field(ge=0)] | None = Field(None, description="Estimated time to the end.")

    last_update_time: Time = Field("", description="When the trainer reported this (RFC 3339).")


class Evaluation(ApiModel):
    """The held-out rows, scored by the base (or start adapter) and by the tuned model."""

    held_out_rows: int | None = Field(None, description="Rows that were kept out of the training.")

    base_loss: float | None = Field(None, description="Loss of the base, in nats a token.")

    start_loss: float | None = Field(None, description="Loss of the start adapter, where there was one.")

    tuned_loss: float | None = Field(None, description="Loss of the tuned model.")

    base_perplexity: float | None = Field(None, description="Perplexity of the base.")

    tuned_perplexity: float | None = Field(None, description="Perplexity of the tuned model.")

    base_token_accuracy: float | None = Field(None, description="Share of tokens that the base predicts.")

    tuned_token_accuracy: float | None = Field(None, description="Share of tokens that the tuned model predicts.")

    base_reward_weighted_loglik: float | None = Field(
        None, description="ppo: the base's reward-weighted log-likelihood."
    )

    start_reward_weighted_loglik: float | None = Field(None, description="ppo: the start adapter's.")

    tuned_reward_weighted_loglik: float | None = Field(None, description="ppo: the tuned model's.")


class TuningJobStatus(ApiModel):
    """What the operator has found; only it writes here."""

    observed_generation: int | None = Field(None, description="metadata.generation that this status is about.")

    phase: Line | None = Field(None, description="One word for people; programs read the conditions.")

    model_id: Line | None = Field(None, description="Name of the adapter, the same over retries.")

    adapter_path: Line | None = Field(None, description="Folder of the finished adapter on the claim.")

    mlflow_run_id: Line | None = Field(None, description="Run in MLflow.")

    job_name: Line | None = Field(None, description="The Job that runs or ran the training.")

    start_time: Time | None = Field(None, description="When the data check was started (RFC 3339).")

    completion_time: Time | None = Field(None, description="When the TuningJob finished (RFC 3339).")

    start_adapter_model_id: Line | None = Field(
        None, description="The adapter that training starts from, once it is known."
    )

    progress: Progress | None = Field(None, description="How far the training is.")

    evaluation: Evaluation | None = Field(None, description="The held-out rows, base against tuned.")

    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list,
        description="The truth, by type; Finished is True in every terminal case.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class TuningJob(WireModel):
    """The whole object; `metadata` is Kubernetes' own."""

    api_version: Literal["tuning.llmtuning.dev/v1alpha1"] = Field(
        "tuning.llmtuning.dev/v1alpha1", description="Group and version."
    )

    kind: Literal["TuningJob"] = Field("TuningJob", description="Kind.")

    metadata: dict[str, Any] = Field(description="Standard object metadata.")

    spec: TuningJobSpec = Field(description="What is to be trained.")

    status: TuningJobStatus | None = Field(None, description="What the operator has found.")

    @model_validator(mode="after")
    def _plain_short_name(self) -> Self:
        check_name(
            self.metadata,
            pattern=SUBDOMAIN,
            rule="lower case letters, digits, - and .",
            characters=NAME_CHARACTERS,
        )
        return self


def check_unchanged(old: TuningJobSpec, new: TuningJobSpec) -> None:
    """Raise InputError if `new` differs from the applied spec `old` in a field that stays as it was applied."""
    problems = [Problem(path, IMMUTABLE) for path in _changes(old, new, "spec", but=MUTABLE)]
    if problems:
        raise InputError(problems)


def _changes(old: ApiModel, new: ApiModel, at: str, *, but: tuple[str, ...] = ()) -> Iterator[str]:
    for name, field in type(old).model_fields.items():
        before, after, path = getattr(old, name), getattr(new, name), f"{at}.{to_camel(name)}"
        if isinstance(before, ApiModel) and isinstance(after, ApiModel) and field.default is not None:
            yield from _changes(before, after, path)
        elif before != after and name not in but:
            yield path


def read_status(raw: Any) -> TuningJobStatus:
    """The status of an object as it is stored; fields that only another version of the operator knows are left out."""
    return TuningJobStatus.model_validate(raw if isinstance(raw, dict) else {}, strict=False, extra="ignore")


def tuning_config(
    spec: TuningJobSpec, *, root: Path, start_model_id: str | None = None, dataset_file: Path | None = None
) -> TuningConfig:
    """`spec` as the configuration of a run, where the claim is mounted at `root` and a ConfigMap's file is given."""
    adapter = AdapterRef(model_id=start_model_id) if start_model_id else None
    dataset = dataset_file if spec.dataset.path is None else root / spec.dataset.path
    if dataset is None:
        raise ValueError("dataset_file is needed where the dataset is a ConfigMap's")
    return TuningConfig(
        mode=spec.mode,
        model=ModelSpec(path=str(root / spec.model.path), adapter=adapter, quantization=spec.model.quantization),
        dataset=DatasetSpec(path=str(dataset), skip_invalid_rows=spec.dataset.skip_invalid_rows),
        training=spec.training,
        lora=spec.lora,
        ppo=spec.ppo,
        tracking=TrackingSpec(uri=spec.tracking.uri, experiment_name=spec.tracking.experiment_name),
    )
