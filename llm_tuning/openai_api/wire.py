"""What goes over the wire: OpenAI's objects, field by field, and what each field is worth here.

Each field says by its `Conformance` whether it works, always has one value, or is refused; docs/reference/openai-api.md
is made from here, and a test holds the fields to those of OpenAI's SDK.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema

T = TypeVar("T")


@dataclass(frozen=True)
class Conformance:
    """What a field of OpenAI's is worth here."""

    verdict: Literal["works", "fixed", "refused"]
    note: str = ""


def works(note: str = "") -> Conformance:
    """Say that a field means here what it means there; `note` says what is to be known of it."""
    return Conformance("works", note)


def fixed(note: str) -> Conformance:
    """Say that a field is there, always with one value."""
    return Conformance("fixed", note)


def refused(note: str) -> Conformance:
    """Say that a request with the field is refused, with its name as `param`."""
    return Conformance("refused", note)


class Answer(BaseModel):
    """What is sent; fields without a value are sent as null, as OpenAI does."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Request(BaseModel):
    """What is taken; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Query(BaseModel):
    """Of a URL, where all is text."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Listed(Answer, Generic[T]):
    """A list that comes whole."""

    object: Annotated[Literal["list"], works()] = "list"
    data: Annotated[list[T], works()]


class Page(Listed[T], Generic[T]):
    """A part of a list; the next one is `after` the last id of this one."""

    has_more: Annotated[bool, works()] = False


class ErrorObject(Answer):
    """`error` of every answer that is no success."""

    message: Annotated[str, works("what is wrong, the value, and what would be right")]
    type: Annotated[str, works("by the status: `invalid_request_error`, `authentication_error`, `server_error` ...")]
    param: Annotated[str | None, works("the parameter that is to blame, where one is")]
    code: Annotated[str | None, works("for programs; some are not OpenAI's, where there is no such error there")]


# --- files ------------------------------------------------------------------------------------------------------------


class FileObject(Answer):
    """A file."""

    id: Annotated[str, works("`file-...`; ids sort by time")]
    object: Annotated[Literal["file"], works()] = "file"
    bytes: Annotated[int, works()]
    created_at: Annotated[int, works()]
    expires_at: Annotated[int | None, works("the file goes then, unless an unfinished job needs it")] = None
    filename: Annotated[str, works("as it was uploaded; on the volume the file is called `data.jsonl`")]
    purpose: Annotated[Literal["fine-tune", "fine-tune-results"], works("no other purpose is taken")]
    status: Annotated[
        Literal["uploaded", "processed", "error"], fixed("`processed`: rows are checked by the job, as there")
    ] = "processed"
    status_details: Annotated[str | None, fixed("null: deprecated there, too")] = None


class FileExpiry(Request):
    """When a file goes."""

    anchor: Annotated[Literal["created_at"], works()]
    seconds: Annotated[int, works("3600 to 2592000, as there")]


class FileForm(Request):
    """The parts of `POST /v1/files`, which `upload` reads as a stream."""

    file: Annotated[Any, works("JSON Lines, not compressed; of its name the part behind the last slash")]
    purpose: Annotated[Literal["fine-tune"], works("others are refused")]
    expires_after: Annotated[FileExpiry | None, works()] = None


class Deleted(Answer):
    """What was deleted."""

    id: Annotated[str, works()]
    object: Annotated[Literal["file", "model"], works()]
    deleted: Annotated[bool, fixed("true; what cannot be deleted is refused")] = True


class FileQuery(Query):
    """Which files are listed."""

    after: Annotated[str | None, works()] = None
    limit: Annotated[int, works(), Field(ge=1, le=10_000)] = 10_000
    order: Annotated[Literal["asc", "desc"], works()] = "desc"
    purpose: Annotated[str | None, works()] = None


# --- requests of jobs -------------------------------------------------------------------------------------------------


def _number_or_auto(kind: type[int] | type[float], least: float, most: float) -> Callable[[object], object]:
    what = "a whole number" if kind is int else "a number"

    def check(value: object) -> object:
        if value == "auto":
            return value
        taken = int if kind is int else (int, float)
        if isinstance(value, taken) and not isinstance(value, bool) and least <= value <= most:
            return kind(value)
        raise ValueError(f"must be 'auto', or {what} from {least:g} to {most:g}")

    return check


def _auto(kind: type[int] | type[float], least: float, most: float) -> Any:
    """Validate by hand: pydantic would say of a union what each of its parts says."""
    name = "integer" if kind is int else "number"
    schema = {"anyOf": [{"const": "auto"}, {"type": name, "minimum": least, "maximum": most}]}
    return PlainValidator(_number_or_auto(kind, least, most)), WithJsonSchema(schema)


Epochs = Annotated[int | Literal["auto"], *_auto(int, 1, 1000)]
BatchSize = Annotated[int | Literal["auto"], *_auto(int, 1, 4096)]
Multiplier = Annotated[float | Literal["auto"], *_auto(float, 0.0001, 1000)]
Beta = Annotated[float | Literal["auto"], *_auto(float, 0.0001, 100)]
Text64 = Annotated[str, StringConstraints(max_length=64)]
Text512 = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[Text64, Text512], Field(max_length=16)]


class Hyperparameters(Request):
    """Of `supervised`, and at the old place beside `model`."""

    n_epochs: Annotated[Epochs | None, works("`training.epochs`")] = None
    batch_size: Annotated[BatchSize | None, works("`training.batchSize`: rows per device and step")] = None
    learning_rate_multiplier: Annotated[
        Multiplier | None, works("times the learning rate of the mode (or of the base's settings)")
    ] = None


class DpoHyperparameters(Hyperparameters):
    """Of `dpo`."""

    beta: Annotated[Beta | None, works("`dpo.beta`")] = None


class SupervisedMethod(Request):
    """The mode sft."""

    hyperparameters: Annotated[Hyperparameters | None, works()] = None


class DpoMethod(Request):
    """The mode dpo."""

    hyperparameters: Annotated[DpoHyperparameters | None, works()] = None


class Method(Request):
    """How is trained."""

    type: Annotated[Literal["supervised", "dpo", "reinforcement"], works("`reinforcement` is refused")]
    supervised: Annotated[SupervisedMethod | None, works()] = None
    dpo: Annotated[DpoMethod | None, works()] = None
    reinforcement: Annotated[Any, refused("there are no graders here; the mode ppo learns from recorded rewards")] = (
        None
    )


class MlflowIntegration(Request):
    """Where MLflow has the run; OpenAI has none of it."""

    experiment: Annotated[str, works("`tracking.experimentName`"), StringConstraints(min_length=1, max_length=250)]


class Integration(Request):
    """A place that gets the metrics."""

    type: Annotated[str, works("`mlflow`; others are refused")]
    mlflow: Annotated[MlflowIntegration | None, works("not OpenAI's")] = None
    wandb: Annotated[Any, refused("the metrics are in the result file and in MLflow")] = None


class CreateJob(Request):
    """`POST /v1/fine_tuning/jobs`."""

    model: Annotated[str, works("a name of the list of bases, or a fine-tuned model to go on from")]
    training_file: Annotated[str, works()]
    validation_file: Annotated[str | None, works("`dataset.evaluation`")] = None
    hyperparameters: Annotated[Hyperparameters | None, works("the old place of those of `supervised`")] = None
    method: Annotated[Method | None, works("`supervised` without it")] = None
    seed: Annotated[int | None, works("42 without it, where OpenAI draws one"), Field(ge=0, le=2_147_483_647)] = None
    suffix: Annotated[str | None, works("letters, digits, `-` and `_`; in lower case in the name")] = None
    metadata: Annotated[Metadata | None, works()] = None
    integrations: Annotated[list[Integration] | None, works("`mlflow` only")] = None


class PageQuery(Query):
    """A page of jobs."""

    after: Annotated[str | None, works()] = None
    limit: Annotated[int, works(), Field(ge=1, le=100)] = 20


class EventQuery(PageQuery):
    """A page of events, or of checkpoints."""

    order: Annotated[Literal["asc", "desc"], works("not OpenAI's; newest first without it")] = "desc"


# --- jobs -------------------------------------------------------------------------------------------------------------


class JobError(Answer):
    """Why a job failed."""

    code: Annotated[str, works("the reason of the TuningJob's condition, in snake case")]
    message: Annotated[str, works("its message: rows and fields by their numbers and names")]
    param: Annotated[str | None, works("`training_file`, `validation_file` or `model`, where one is to blame")] = None


class UsedHyperparameters(Answer):
    """Those in use; `auto` is answered as the number that it stands for, and null is what cannot be read."""

    n_epochs: Annotated[int | None, works("null where `training.maxSteps` says how long it trains")]
    batch_size: Annotated[int | None, works()]
    learning_rate_multiplier: Annotated[float | None, works()]


class UsedDpoHyperparameters(UsedHyperparameters):
    """Those of dpo."""

    beta: Annotated[float, works()]


class UsedSupervised(Answer):
    """Of sft."""

    hyperparameters: Annotated[UsedHyperparameters, works()]


class UsedDpo(Answer):
    """Of dpo."""

    hyperparameters: Annotated[UsedDpoHyperparameters, works()]


class UsedMethod(Answer):
    """How is trained; of a job that kubectl made in another mode, `supervised` with no settings."""

    type: Annotated[Literal["supervised", "dpo"], works()]
    supervised: Annotated[UsedSupervised | None, works()] = None
    dpo: Annotated[UsedDpo | None, works()] = None
    reinforcement: Annotated[None, fixed("null: a job that has it is refused")] = None


JobStatus = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled", "paused"]


class FineTuningJob(Answer):
    """A TuningJob as a job."""

    id: Annotated[str, works("the TuningJob's name")]
    object: Annotated[Literal["fine_tuning.job"], works()] = "fine_tuning.job"
    created_at: Annotated[int, works()]
    error: Annotated[
        JobError | None, works("also of a TuningJob that this server cannot read, in any status: `unreadable_object`")
    ] = None
    fine_tuned_model: Annotated[str | None, works("once it has succeeded")] = None
    finished_at: Annotated[int | None, works()] = None
    hyperparameters: Annotated[UsedHyperparameters, works("numbers, never `auto`")]
    model: Annotated[str, works()]
    organization_id: Annotated[str, works("`organization` of the server's settings")]
    result_files: Annotated[list[str], works("one, once it has succeeded")]
    seed: Annotated[int, works()]
    status: Annotated[JobStatus, works("`paused` is OpenAI's word, which the types of its Python SDK lack")]
    trained_tokens: Annotated[int | None, works("tokens of all steps, at the end")] = None
    training_file: Annotated[str, works("of a job that kubectl made, its path")]
    validation_file: Annotated[str | None, works()] = None
    estimated_finish: Annotated[int | None, works("while it trains")] = None
    integrations: Annotated[list[Any] | None, fixed("null: OpenAI's type knows Weights and Biases alone")] = None
    metadata: Annotated[dict[str, str] | None, works()] = None
    method: Annotated[UsedMethod | None, works()] = None


class JobEvent(Answer):
    """Something that happened to a job."""

    id: Annotated[str, works("ids sort by time")]
    object: Annotated[Literal["fine_tuning.job.event"], works()] = "fine_tuning.job.event"
    created_at: Annotated[int, works()]
    level: Annotated[Literal["info", "warn", "error"], works()]
    message: Annotated[str, works()]
    type: Annotated[Literal["message", "metrics"], works()] = "message"
    data: Annotated[dict[str, Any] | None, works("of metrics: step, total_steps, losses, held-out token accuracy")] = (
        None
    )


class CheckpointMetrics(Answer):
    """Figures of a checkpoint."""

    step: Annotated[float | None, works()] = None
    train_loss: Annotated[float | None, works()] = None
    train_mean_token_accuracy: Annotated[float | None, fixed("null: it is not measured in training")] = None
    valid_loss: Annotated[float | None, works()] = None
    valid_mean_token_accuracy: Annotated[float | None, works()] = None
    full_valid_loss: Annotated[float | None, works("of all held-out rows, at the end")] = None
    full_valid_mean_token_accuracy: Annotated[float | None, works("of all held-out rows, at the end")] = None


class JobCheckpoint(Answer):
    """A checkpoint of a job."""

    id: Annotated[str, works()]
    object: Annotated[Literal["fine_tuning.job.checkpoint"], works()] = "fine_tuning.job.checkpoint"
    created_at: Annotated[int, works()]
    fine_tuned_model_checkpoint: Annotated[
        str, works("the model at the end; that of a running job is a name: nothing answers to it or goes on from it")
    ]
    fine_tuning_job_id: Annotated[str, works()]
    metrics: Annotated[CheckpointMetrics, works()]
    step_number: Annotated[int, works()]


# --- models -----------------------------------------------------------------------------------------------------------


class Model(Answer):
    """A base or a fine-tuned model."""

    id: Annotated[str, works()]
    object: Annotated[Literal["model"], works()] = "model"
    created: Annotated[int, works()]
    owned_by: Annotated[str, works("what it really is: `llm-tuning: hf://Qwen/Qwen3-8B`")]
    shutdown_date: Annotated[str | None, fixed("null")] = None


class ModelQuery(Query):
    """How a model is deleted."""

    adapter: Annotated[bool, works("not OpenAI's: `true` removes the adapter, too")] = False
