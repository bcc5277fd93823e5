"""The messages between operator and agents, and what the pod of an InferenceService is given.

Reading is lenient, since the two may be of different versions.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.api.tuning import ModelId
from llm_tuning.errors import InputError, Problem

INPUT_VARIABLE = "LLM_TUNING_SERVE"
REPORT_URL_VARIABLE = "LLM_TUNING_REPORT_URL"
API_KEY_VARIABLE = "LLM_TUNING_API_KEY"

CONFIG_DIR = Path("/etc/llm-tuning")
"""The ConfigMap: what was wanted when the pod started, and the operator's CA."""
DESIRED_FILE, CA_FILE = "desired.json", "ca.crt"
TOKEN_FILE = Path("/var/run/llm-tuning/token")
PLAN_FILE, LOADS_FILE = "vllm.json", "loads"
"""Beside DRAINED_FILE, in RUN_DIR."""

AGENT_PORT, ENGINE_PORT = 8000, 8001
REPORT_SECONDS = 15.0
"""The longest time between two reports, by the operator's answer: it is held back so long where nothing changes."""
REPORTED_CHARACTERS = 400
"""Of a message in a report: the status of an object holds hundreds of them."""

Effective = Literal["True", "False", "Unknown"]


def _cut(text: object) -> object:
    if not isinstance(text, str):
        return text
    line = " ".join(text.split())
    return line if len(line) <= REPORTED_CHARACTERS else f"{line[: REPORTED_CHARACTERS - 3].rstrip()}..."


Message = Annotated[str, BeforeValidator(_cut)]


class WireMessage(BaseModel):
    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )


class ServeInput(WireMessage):
    """What vLLM is started with; a change of it is a rollout."""

    model_path: str
    """Relative to the claim."""
    base_name: str
    gpus: int
    memory_bytes: int = 0
    """Of vLLM's container."""
    vllm: VllmSpec

    @classmethod
    def decode(cls, text: str) -> Self:
        """Parse the value of the environment variable; raises InputError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            problem = Problem(INPUT_VARIABLE, "is not what the operator writes", "images of one version fit together")
            raise InputError(problem) from None

    def encode(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)


class DesiredTarget(WireMessage):
    """An adapter of a route. Without `model_id` it is not there yet, and `reason` and `message` say why."""

    model_id: ModelId | None = None
    tuning_job: str | None = None
    weight: Annotated[int, Field(ge=0)] = 1
    reason: str = ""
    message: Message = ""


class DesiredRoute(WireMessage):
    """A name that clients use."""

    name: str
    targets: tuple[DesiredTarget, ...]


class DesiredRoutes(WireMessage):
    """What an agent is to serve."""

    routes: tuple[DesiredRoute, ...] = ()
    rank: int = 0
    """The highest rank that the TuningJobs behind the targets train, as far as it is known; for the plan."""

    @property
    def model_ids(self) -> list[str]:
        """Every adapter that is wanted and there, once."""
        targets = (target.model_id for route in self.routes for target in route.targets)
        return list(dict.fromkeys(name for name in targets if name is not None))

    @property
    def revision(self) -> str:
        """The same for the same content."""
        return hashlib.sha256(self.encode().encode()).hexdigest()[:16]

    def encode(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)


class AdapterReport(WireMessage):
    """One adapter on one engine."""

    model_id: str
    loaded: bool = False
    effective: Effective = "Unknown"
    settled: bool = False
    """Proven, or failed with a reason."""
    reason: str = ""
    message: Message = ""


class Report(WireMessage):
    """One agent's state."""

    revision: str = ""
    """Of the DesiredRoutes that it acts on."""
    engine_up: bool = False
    ready: bool = False
    locked: bool = False
    """The API key is empty, so no client is served."""
    adapters: Annotated[tuple[AdapterReport, ...], Field(max_length=2048)] = ()

    def encode(self) -> str:
        return self.model_dump_json(by_alias=True)


def parse_desired(text: str | bytes) -> DesiredRoutes:
    """Parse the desired state that the operator serves; raises InputError."""
    try:
        return DesiredRoutes.model_validate_json(text)
    except ValidationError as error:
        raise InputError(Problem("desired state", f"is not readable ({error.error_count()} faults)")) from None


def parse_report(body: bytes) -> Report:
    """Parse an agent's report; raises InputError, whose text quotes nothing of the body."""
    try:
        return Report.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "body"
        raise InputError(Problem(where, "is not what an agent reports")) from None
