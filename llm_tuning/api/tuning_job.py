"""The TuningJob custom resource: a tuning run as one object in a cluster.

Its groups are those of TuningConfig; what differs is where things are. In a cluster everything lies on one claim, so
paths are relative to it, a dataset may also be a ConfigMap's, and a start adapter may be named by the job that makes
it. The CRD is generated from these models (see `crd`), and descriptions are what `kubectl explain` shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from llm_tuning.api.inference_service import SERVICE_NAME, ServeSpec
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
from llm_tuning.api.mode_fields import with_score_fields
from llm_tuning.api.rules import Rule, RuledModel, exactly_one_of
from llm_tuning.api.sources import (
    CREDENTIALS,
    SECRET_NEEDS_URI,
    DatasetUri,
    FetchProgress,
    ModelUri,
    SourceStatus,
    base_name,
    is_base_name,
)
from llm_tuning.api.tuning import (
    AdapterRef,
    DatasetSpec,
    ModelId,
    ModelSpec,
    TrackingSpec,
    TuningConfig,
)
from llm_tuning.api.wire import WireModel
from llm_tuning.core.model import ApiModel, FieldError
from llm_tuning.errors import InputError, Problem

M = TypeVar("M", bound=ApiModel)

KIND, PLURAL, SINGULAR, SHORT_NAME = "TuningJob", "tuningjobs", "tuningjob", "tj"
MOST_NODES = 16
NAME_CHARACTERS = 50
"""Of a TuningJob: its Jobs and their pods append to it, and names end at 63."""
NODES_NAME_RULE = (
    "must be lower case letters, digits and -, beginning with a letter, where spec.resources.nodes is above 1"
)
NODES_NAME_REASON = "the pods find each other by a Service of that name"

MUTABLE = ("suspend", "ttl_seconds_after_finished")
"""Fields of the spec that may change; all others decide what is trained and stay as they were applied."""

IMMUTABLE = "cannot be changed after creation; delete the TuningJob and apply it again, or use another name"


class JobAdapterRef(RuledModel):
    """An adapter to start from: exactly one of `tuningJob` and `modelId`."""

    RULES = (exactly_one_of("tuningJob", "modelId"),)

    tuning_job: (
        Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS, pattern=DNS_SUBDOMAIN)] | None
    ) = Field(
        None,
        description="Name of a TuningJob in this namespace; this one waits until that one has succeeded and starts from its adapter.",
    )

    model_id: ModelId | None = Field(None, description="model_id of a finished adapter on the claim, of the same base.")


class JobModelSpec(ModelSpec):
    """The base model: exactly one of `path` and `uri`."""

    RULES = (*ModelSpec.RULES, exactly_one_of("path", "uri"), SECRET_NEEDS_URI)

    path: RelativePath | None = Field(  # type: ignore[assignment] # it may come from a URI, which is a path in later pods
        None,
        description="Folder of the base model on the claim, such as base/qwen3-0.6b: config.json, safetensors weights and tokenizer. Relative, without `..`.",
    )

    uri: ModelUri | None = Field(
        None,
        description="Where the base model comes from: hf://owner/name[@revision] of a hub, or s3://bucket/prefix of any S3 (Google's buckets by their S3-compatible endpoint, AWS_ENDPOINT_URL in the Secret). It is fetched to sources/ on the claim before the data check, once for all that ask for the same commit, pinned in status.model.revision. Safetensors, configuration, tokenizer and templates only.",
    )

    credentials_secret: SecretRef | None = Field(None, description=CREDENTIALS)

    adapter: JobAdapterRef | None = Field(  # type: ignore[assignment] # it may be a job's, which is a model_id later
        None,
        description="Adapter to start from, by tuningJob or modelId; training continues from it. Without it training starts at the base itself.",
    )


class JobDatasetSpec(DatasetSpec):
    """The training rows: exactly one of `path`, `configMap` and `uri`."""

    RULES = (*DatasetSpec.RULES, exactly_one_of("path", "configMap", "uri"), SECRET_NEEDS_URI)

    path: RelativePath | None = Field(  # type: ignore[assignment] # the file may be a ConfigMap's, which is a path in the pod
        None,
        description="File or folder of rows on the claim, such as datasets/faq.json: JSON array, JSON Lines, CSV, TSV, Parquet or Arrow, also with gzip or zstd. `*` in a name takes all files that match; `#name` at the end takes a list in a JSON object, or a split of a folder. Relative, without `..`.",
    )

    evaluation: RelativePath | None = Field(
        None,
        description="File of rows to evaluate on, on the claim, such as datasets/faq-eval.json, of the same mode and columns as the training rows; all of its rows are held out, and no training row is. `#validation` alone is that split of `path`. A row whose prompt is also among the training rows is left out of the scores, and counted. Without it a share of the training rows is held out (training.evalFraction).",
    )

    config_map: ConfigMapKeyRef | None = Field(
        None, description="The file as a key of a ConfigMap, for data sets of up to 1 MiB."
    )

    uri: DatasetUri | None = Field(
        None,
        description="Where the rows come from: hf://datasets/owner/name[@revision]/file or ?split=train of a hub, s3://bucket/key of any S3, or a file https://host/file[#sha256=HEX]. Fetched as model.uri is, pinned in status.dataset.revision.",
    )

    credentials_secret: SecretRef | None = Field(None, description=CREDENTIALS)


class JobTrackingSpec(TrackingSpec):
    """Where MLflow keeps the run."""

    uri: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = Field(
        None,
        description="MLflow tracking URI, such as http://mlflow.mlops.svc:5000. Without it the run keeps a private store beside the adapter.",
    )

    credentials_secret: SecretRef | None = Field(
        None,
        description="Secret whose keys become environment variables of the trainer: MLFLOW_*, AWS_*, AZURE_*, GOOGLE_*, DATABRICKS_*, *_PROXY, PGUSER, PGPASSWORD and the paths of CA bundles. Others are left out, and named in its log.",
    )


class ResourcesSpec(PlacementSpec):
    """What the trainer's pod is given, and where its pods may run."""

    gpus: Annotated[int, Field(ge=0, le=16)] = Field(
        1,
        description="GPUs (nvidia.com/gpu) of the trainer, of each of its pods; data-parallel from 2 on, 0 trains on the CPU.",
    )

    nodes: Annotated[int, Field(ge=1, le=MOST_NODES)] = Field(
        1,
        description="Pods that train the run together, each with all the GPUs, CPU and memory of this group, one rank a GPU. Above 1 the claim must be one that several nodes can mount (ReadWriteMany), and the name one without dots that begins with a letter.",
    )

    cpu: CpuQuantity = Field(
        "2",
        description="CPU cores that the trainer requests, such as 4, 0.5 or 500m; it may use more where there are more.",
    )

    memory: MemoryQuantity = Field(
        "8Gi", description="Memory of the trainer with its unit, request and limit: above it the trainer is ended."
    )

    @property
    def ranks(self) -> int:
        """Processes that train: one for each GPU of each pod."""
        return max(1, self.gpus) * self.nodes


SERVES_BASE_NAME = "must not be the base's name, under which the base itself answers; use another one"
_NOT_THE_BASES_NAME = Rule(
    f"!has(self.serve) || !{is_base_name('self.serve.name')}",
    lambda spec: spec.serve is None or spec.base_name != spec.serve.name,
    SERVES_BASE_NAME,
    "serve.name",
)


class TuningJobSpec(WireModel, TuningConfig):
    """What is to be trained. Only suspend and ttlSecondsAfterFinished can be changed afterwards."""

    RULES = (*TuningConfig.RULES, _NOT_THE_BASES_NAME)

    model: JobModelSpec = Field(description="The base model.")

    dataset: JobDatasetSpec = Field(description="The training rows: exactly one of path, configMap and uri.")

    volume: VolumeSpec = Field(description="The volume that has it all: base/ datasets/ models/.")

    tracking: JobTrackingSpec = Field(default_factory=JobTrackingSpec, description="Where MLflow keeps the run.")

    resources: ResourcesSpec = Field(
        default_factory=ResourcesSpec, description="What the trainer's pod is given, and where its pods may run."
    )

    queue_name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] | None = Field(
        None, description="Kueue LocalQueue of this namespace; check and training wait for admission there."
    )

    suspend: bool = Field(
        False,
        description="true ends the pods, after a checkpoint, and starts none until it is false again; training then resumes from the checkpoint.",
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

    @property
    def base_name(self) -> str:
        """The short name of the base: the last part of its path or URI."""
        return base_name(self.model.path, self.model.uri)


class Progress(FetchProgress):
    """How far the fetch or the training is, as it was last reported."""

    percent: Annotated[int, Field(ge=0, le=100)] = Field(
        description="Share of the bytes that are fetched, or of the steps that are done, in percent."
    )

    step: Annotated[int, Field(ge=0)] = Field(0, description="Optimizer steps that are done.")

    total_steps: Annotated[int, Field(ge=0)] | None = Field(None, description="Optimizer steps of the whole run.")

    epoch: float | None = Field(None, description="Passes over the rows that are done.")

    loss: float | None = Field(None, description="Training loss of the last report.")

    tokens_per_second: float | None = Field(None, description="Training speed.")


@with_score_fields
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

    base_calls_equal: float | None = Field(
        None, description="Share of tool calls that the base makes as the rows have them, on a sample of held-out rows."
    )

    start_calls_equal: float | None = Field(None, description="Share of tool calls as recorded, of the start adapter.")

    tuned_calls_equal: float | None = Field(None, description="Share of tool calls as recorded, of the tuned model.")


class NodeStatus(ApiModel):
    """One pod of a training of several."""

    index: Annotated[int, Field(ge=0)] = Field(description="Which of the pods; 0 has the result.")

    ranks: Line = Field(description="Its ranks of all: `1`, or `2-3` with two GPUs.")

    pod: Line | None = Field(None, description="The pod's name.")

    node: Line | None = Field(None, description="The node that runs it.")

    state: Line = Field(
        description="The pod's phase, or why it does not run: Unschedulable, its container's reason, Terminating, Deleted (from outside) or Missing."
    )


class Attempts(ApiModel):
    """Jobs of a training that have failed and were followed by another: of several pods, or on a full claim."""

    failed: Annotated[int, Field(ge=0)] = Field(
        0,
        description="How many count against spec.retries: not those that the cluster itself ended, or that found no room.",
    )

    job_uid: Line | None = Field(None, description="The Job that was counted last.")

    reason: Line | None = Field(None, description="Why it failed, in one word.")

    message: Annotated[str, Field(max_length=1024)] | None = Field(None, description="The same as a sentence.")

    time: Time | None = Field(
        None,
        description="When it was counted (RFC 3339): the next begins 10 s after the first that counts, 20 s after the second, "
        "and 5 minutes after one that found no room.",
    )


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

    model: SourceStatus | None = Field(None, description="Of model.uri: what it was resolved to, and where it lies.")

    dataset: SourceStatus | None = Field(None, description="Of dataset.uri: the same.")

    progress: Progress | None = Field(None, description="How far the fetch or the training is.")

    evaluation: Evaluation | None = Field(None, description="The held-out rows, base against tuned.")

    nodes: Annotated[list[NodeStatus], Field(max_length=MOST_NODES)] | None = Field(
        None, description="The pods of the training, where resources.nodes is above 1."
    )

    attempts: Attempts | None = Field(
        None, description="What failed so far, where resources.nodes is above 1 or the claim was full."
    )

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
        field = "name" if self.metadata.get("name") is not None else "generateName"
        broken = find_broken_name_rule(str(self.metadata[field]).rstrip("-"), self.spec.resources.nodes)
        if broken is not None:
            raise FieldError(f"metadata.{field}", broken)
        return self


def find_broken_name_rule(name: str, nodes: int) -> str | None:
    """Say why pods of a TuningJob of that name could not find each other, or return None; the CRD has the same rule."""
    if nodes == 1 or re.search(SERVICE_NAME, name):
        return None
    return f"{NODES_NAME_RULE}, got {name}: {NODES_NAME_REASON}; apply it under another name, or with nodes 1"


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
    """Read the status of an object as it is stored; fields that only another version has are left out."""
    return TuningJobStatus.model_validate(raw if isinstance(raw, dict) else {}, strict=False, extra="ignore")


def with_fetched(spec: TuningJobSpec, *, model_path: str | None, dataset_path: str | None) -> TuningJobSpec:
    """Return `spec` with the path on the claim in the place of each URI that was fetched; no later pod knows of URIs."""
    update: dict[str, ApiModel] = {}
    if spec.model.uri is not None and model_path is not None:
        update["model"] = _at_path(spec.model, model_path)
    if spec.dataset.uri is not None and dataset_path is not None:
        update["dataset"] = _at_path(spec.dataset, dataset_path)
    return spec.model_copy(update=update) if update else spec


def _at_path(group: M, path: str) -> M:
    """Return a copy as one gives it with a path; what is not given stays so, since pods get only that."""
    given = {name: getattr(group, name) for name in group.model_fields_set - {"uri", "credentials_secret"}}
    return type(group)(**given | {"path": path})


def tuning_config(
    spec: TuningJobSpec, *, root: Path, start_model_id: str | None = None, dataset_file: Path | None = None
) -> TuningConfig:
    """Build a run's configuration from `spec`: the claim is mounted at `root`, a ConfigMap's file is given.

    A spec with URIs has none: see `with_fetched`.
    """
    dataset = dataset_file if spec.dataset.path is None else root / spec.dataset.path
    if dataset is None:
        raise ValueError("dataset_file is needed where the dataset is a ConfigMap's")
    if spec.model.path is None:
        raise ValueError("model.uri has to be fetched first")
    adapter = AdapterRef(model_id=start_model_id) if start_model_id else None
    return _handed_over(
        TuningConfig,
        spec,
        model=_handed_over(ModelSpec, spec.model, path=str(root / spec.model.path), adapter=adapter),
        dataset=_handed_over(DatasetSpec, spec.dataset, path=str(dataset), evaluation=_evaluation(spec, root)),
        tracking=_handed_over(TrackingSpec, spec.tracking),
    )


def _evaluation(spec: TuningJobSpec, root: Path) -> str | None:
    """Return the evaluation file on the mounted claim; a split alone (`#validation`) is of the data set, wherever that is."""
    given = spec.dataset.evaluation
    return given if given is None or given.startswith("#") else str(root / given)


def _handed_over(to: type[M], value: ApiModel, **differing: Any) -> M:
    """Turn `value`, whose class has all the fields of `to`, into one of those: every field but the `differing`."""
    return to(**{name: getattr(value, name) for name in to.model_fields} | differing)
