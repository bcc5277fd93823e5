"""What the operator and its pods exchange: the input in an environment variable, the result as JSON.

The kubelet keeps at most 4 KiB of a termination message, and cuts what is longer without looking: `encode_result`
keeps every result within half of that and whole. Reading is lenient, since operator and pod may be of two versions,
and since a container that left no result has the end of its log there instead (FallbackToLogsOnError).
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from llm_tuning.api.tuning import ModelId
from llm_tuning.api.tuning_job import Evaluation, TuningJobSpec
from llm_tuning.core.model import ApiModel

ROOT = Path("/workspace")
"""Where the claim is mounted in every pod; paths of the spec are relative to it."""
DATASET_DIR = Path("/dataset")
"""Where a ConfigMap's key is mounted as the file of the same name."""
MODELS = "models"
"""The folder of adapters on the claim."""
TERMINATION_LOG = Path("/dev/termination-log")

INPUT_VARIABLE = "LLM_TUNING_POD"
FETCH_VARIABLE = "LLM_TUNING_FETCH"
"""The input of a fetch, whatever kind of object wants it."""
ROOT_VARIABLE = "LLM_TUNING_ROOT"
"""Stands in for ROOT where nothing can be mounted at /workspace: in tests."""
DATASET_DIR_VARIABLE = "LLM_TUNING_DATASET_DIR"
TERMINATION_LOG_VARIABLE = "TERMINATION_LOG"
CREDENTIALS_VARIABLE = "LLM_TUNING_CREDENTIALS"
"""The folder with the keys of the Secret that spec.tracking names, a file each."""
NODE_VARIABLE = "JOB_COMPLETION_INDEX"
"""Kubernetes' own, in each pod of an Indexed Job."""
ADDRESS_VARIABLE = "LLM_TUNING_ADDRESS"
ATTEMPT_VARIABLE = "LLM_TUNING_ATTEMPT"
"""The uid of the Job, the same for all of its pods: a name may lead to a pod of an earlier one for a while."""
"""The pod's own address, of a trainer that is one of several."""
REQUIRE_GPU_VARIABLE = "LLM_TUNING_REQUIRE_GPU"
"""Set to 1 by the operator in pods with GPUs, unless it allows the fall-back to the CPU."""

RESULT_BYTES = 2048
REASON_CHARACTERS = 128
_CUT = "..."


class PodReason(StrEnum):
    """Why a pod ended as it did; TryAgain and a recipe have further ones of their own (`Stopped`, `Busy`)."""

    FETCHED = "Fetched"
    DATASET_VALID = "DatasetValid"
    TRAINED = "Trained"

    SOURCE_NOT_FOUND = "SourceNotFound"
    REVISION_NOT_FOUND = "RevisionNotFound"
    ACCESS_DENIED = "AccessDenied"
    UNSAFE_FORMAT = "UnsafeFormat"
    HASH_MISMATCH = "HashMismatch"
    VOLUME_TOO_SMALL = "VolumeTooSmall"
    RATE_LIMITED = "RateLimited"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    SOURCE_STALLED = "SourceStalled"

    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_INVALID = "DatasetInvalid"
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    BASE_MODEL_INVALID = "BaseModelInvalid"
    ADAPTER_NOT_FOUND = "AdapterNotFound"
    ADAPTER_INVALID = "AdapterInvalid"
    TRACKING_INVALID = "TrackingInvalid"
    PATH_OUTSIDE_VOLUME = "PathOutsideVolume"
    VOLUME_READ_ONLY = "VolumeReadOnly"
    VOLUME_NOT_WRITABLE = "VolumeNotWritable"
    VOLUME_FULL = "VolumeFull"
    INVALID_INPUT = "InvalidInput"
    MODEL_NOT_FOUND = "ModelNotFound"
    """`report` finds neither a finished nor a begun run."""

    UNFINISHED = "Unfinished"
    STOPPED = "Stopped"
    BUSY = "Busy"
    GPU_UNAVAILABLE = "GPUUnavailable"
    DISK_FULL = "DiskFull"
    NODE_MISSING = "NodeMissing"
    NODE_LOST = "NodeLost"

    UNEXPECTED_ERROR = "UnexpectedError"


class NodesInput(ApiModel):
    """The pods that train one run together; which of them one is stands in its environment."""

    hosts: Annotated[list[str], Field(min_length=2, max_length=16)] = Field(
        description="Names under which they reach each other, that of index 0 first."
    )

    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="On which the pod of index 0 listens for them.")


class PodInput(ApiModel):
    """What a pod is to do; the same for all three subcommands of a TuningJob."""

    model_id: ModelId = Field(description="Name of the result, made by the operator once.")

    spec: TuningJobSpec = Field(
        description="The TuningJob's spec, with the operator's defaults for what it leaves out."
    )

    start_model_id: ModelId | None = Field(
        None, description="The adapter to start from; None without one, and in a check that runs before it is known."
    )

    gpus: Annotated[int, Field(ge=0, le=16)] = Field(description="GPUs that the trainer has; 0 trains on the CPU.")

    nodes: NodesInput | None = Field(None, description="Of a trainer that is one of several; None: it trains alone.")

    def encode(self) -> str:
        """Encode the value of the environment variable; what the spec leaves out stays out."""
        return self.model_dump_json(by_alias=True, exclude_unset=True)


class SourceInput(ApiModel):
    """One source that a pod is to fetch."""

    field: Literal["model", "dataset"] = Field(description="The group of the spec that has the uri.")

    uri: Annotated[str, Field(max_length=1024)] = Field(description="As the spec has it.")

    revision: str | None = Field(None, description="What it was resolved to before; None: it is resolved now.")

    credentials: str | None = Field(None, description="Folder with the keys of its Secret, a file each.")


class FetchInput(ApiModel):
    """What a fetching pod is to do."""

    pin: ModelId = Field(description="Name under which the claim keeps what the URIs were resolved to, for a retry.")

    sources: Annotated[list[SourceInput], Field(min_length=1, max_length=2)] = Field(description="In this order.")

    ca_file: str | None = Field(None, description="CAs to trust besides the image's own.")

    def encode(self) -> str:
        """Encode the value of the environment variable."""
        return self.model_dump_json(by_alias=True, exclude_unset=True)


def _one_line(value: Any) -> Any:
    """Join a message to one line of real characters: a condition is shown in a table."""
    return " ".join(value.encode("utf-8", "replace").decode().split()) if isinstance(value, str) else value


def _one_word(value: Any) -> Any:
    return _one_line(value)[:REASON_CHARACTERS] if isinstance(value, str) else value


def _finite(value: Any) -> Any:
    """Return a number that JSON has, else None; a loss may be NaN."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _known(value: Any) -> Any:
    """Drop the scores that this version does not know from an evaluation of another version."""
    if not isinstance(value, dict):
        return value
    names = {name for field in Evaluation.model_fields for name in (field, to_camel(field))}
    return {name: score for name, score in value.items() if name in names}


class _Result(BaseModel):
    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )

    ok: bool
    reason: Annotated[str, BeforeValidator(_one_word)]
    """One CamelCase word, of the condition."""
    message: Annotated[str, BeforeValidator(_one_line)] = ""
    """A sentence or two for the condition: counts, field paths and row numbers, never a word of the data set."""


class CheckResult(_Result):
    """What `check` found: whether a trainer may be started, and why not."""


class FetchedSource(BaseModel):
    """What came of one source."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    revision: str
    path: str
    """Relative to the claim."""
    bytes: int = 0


class FetchResult(_Result):
    """What `fetch` has put on the claim, by the group of the spec that has the URI."""

    sources: dict[str, FetchedSource] = Field(default_factory=dict)


class TrainResult(_Result):
    """What came of `train`, or what `report` read of it; where `ok` is False, the fields of its own say nothing."""

    model_id: str = ""
    adapter_path: str | None = None
    """Relative to the claim: `models/<model_id>`."""
    mlflow_run_id: str | None = None
    evaluation: Annotated[Evaluation | None, BeforeValidator(_known)] = None
    held_out_rows: int = 0
    """0: too few rows for an evaluation, or switched off by evalFraction."""
    registered: bool = False
    steps: int = 0
    """Optimizer steps that were done; 0 where the pod's version does not say."""
    epochs: Annotated[float | None, BeforeValidator(_finite)] = None
    loss: Annotated[float | None, BeforeValidator(_finite)] = None
    """The training loss of the last step."""


PodResult = CheckResult | TrainResult | FetchResult
Result = TypeVar("Result", bound=_Result)


def encode_result(result: PodResult) -> str:
    """Encode `result` as JSON of at most RESULT_BYTES bytes in UTF-8; the message is cut, by whole characters.

    Should the rest alone be too long, which takes an id of absurd length, the fields that say more than ok, reason
    and message go as well.
    """
    text = _encoded(result, result.message)
    if len(text.encode()) <= RESULT_BYTES:
        return text
    if len(_encoded(result, _CUT).encode()) > RESULT_BYTES:
        return encode_result(CheckResult(ok=result.ok, reason=result.reason, message=result.message))
    shortest, longest = 0, len(result.message)  # characters kept: what they take as JSON differs from one to the next
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        fits = len(_encoded(result, result.message[:middle] + _CUT).encode()) <= RESULT_BYTES
        shortest, longest = (middle, longest) if fits else (shortest, middle)
    return _encoded(result, result.message[:shortest].rstrip() + _CUT)


def _encoded(result: PodResult, message: str) -> str:
    values = result.model_dump(mode="json", by_alias=True, exclude_none=True) | {"message": message}
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def parse_result(text: str | None, kind: type[Result]) -> Result | None:
    """Parse the result in a termination message; None where it has none: empty, or the end of a log."""
    try:
        return kind.model_validate_json(text) if text else None
    except (ValidationError, ValueError):
        return None
