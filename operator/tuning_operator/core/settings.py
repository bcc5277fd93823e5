"""The operator's settings: environment variables TUNING_OPERATOR_* of its Deployment, by the names of the fields below.

The Helm chart sets them; a variable that is empty is one that is not there. A test holds the defaults to values.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from llm_tuning.api.kube import SECRET_NAME
from llm_tuning.core.model import PATTERN_WORDS, ApiModel
from tuning_operator.core.constants import GPU_RESOURCE
from tuning_operator.core.defaults import Defaults

PREFIX = "TUNING_OPERATOR_"
EVERYWHERE = "*"
SWITCH = {"true": True, "1": True, "false": False, "0": False}
CPU = r"^[0-9]+(\.[0-9]+)?m?$"
MEMORY = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"
RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
OPTIONAL_RESOURCE = rf"^({RESOURCE.strip('^$')})?$"
INTERFACE = r"^(=?[A-Za-z0-9][-A-Za-z0-9_.,]{0,63})?$"
ADDRESS = r"^(https?://[^ @]+)?$"
OPTIONAL_SECRET = rf"^({SECRET_NAME.strip('^$')})?$"
PATTERN_WORDS |= {
    ADDRESS: "an address such as https://hub.example, without user and password",
    OPTIONAL_SECRET: "the name of a Secret that begins with llm-tuning-",
    CPU: "a CPU quantity such as 500m or 2",
    MEMORY: "a memory quantity such as 1Gi",
    RESOURCE: "a resource such as nvidia.com/gpu",
    OPTIONAL_RESOURCE: "a resource such as rdma/hca",
    INTERFACE: "a network interface such as eth0, or several with commas between",
}


def _names(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _namespaces(value: object) -> object:
    names = _names(value)
    if isinstance(names, tuple) and EVERYWHERE in names:
        if names != (EVERYWHERE,):
            raise ValueError(f"must be {EVERYWHERE} alone or names, got {value!r}")
        return ()
    return names


def _number(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError(f"must be a whole number, got {value!r}")
    return value


def _switch(value: object) -> object:
    if isinstance(value, str) and value.lower() not in SWITCH:
        raise ValueError(f"must be true or false, got {value!r}")
    return SWITCH[value.lower()] if isinstance(value, str) else value


def _json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"must be JSON, got {value!r}: {error}") from None


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_number)]


class Settings(ApiModel):
    """What the operator's Deployment gives it."""

    model_config = ConfigDict(alias_generator=lambda name: PREFIX + name.upper(), strict=False)

    namespace: str = Field(description="The operator's own.")
    operator_image: str = Field(description="Of data checks, reports and adapter agents.")
    trainer_image: str
    vllm_image: str = Field("vllm/vllm-openai:v0.32.0", description="Of InferenceServices.")
    watch_namespaces: Annotated[tuple[str, ...], BeforeValidator(_namespaces)] = Field(
        (), description="With commas between; * or nothing: all."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: Names = ()
    progress_url: str | None = Field(None, description="How pods reach the progress server; without it there is none.")
    tls_folder: Path | None = Field(
        None, description="Certificates of that server as files, where cert-manager makes them; else a CA of its own."
    )
    allow_cpu_fallback: Switch = Field(
        False, description="Train on the CPU where a GPU was asked for and CUDA is missing."
    )
    cluster_assigns_user: Switch = Field(False, description="Pods name no user of their own.")
    gpu_resource: Annotated[str, StringConstraints(pattern=RESOURCE)] = Field(
        GPU_RESOURCE, description="What a GPU is called."
    )
    defaults: Annotated[Defaults, BeforeValidator(_json)] = Field(
        default_factory=Defaults, description="For what custom resources leave out, as JSON."
    )
    check_cpu: Annotated[str, StringConstraints(pattern=CPU)] = Field("500m", description="Of the data check.")
    check_memory: Annotated[str, StringConstraints(pattern=MEMORY)] = Field("1Gi", description="Of the data check.")
    sources_endpoint: Annotated[str, StringConstraints(pattern=ADDRESS)] = Field(
        "", description="The hub that hf:// is asked of; empty: huggingface.co."
    )
    sources_ca_bundle: str = Field("", description="CAs, as PEM, that fetching pods trust besides their own.")
    sources_proxy: Annotated[str, StringConstraints(pattern=ADDRESS)] = Field("", description="Of fetching pods.")
    sources_no_proxy: str = Field("", description="Hosts that they reach without it, with commas between.")
    sources_credentials_secret: Annotated[str, StringConstraints(pattern=OPTIONAL_SECRET)] = Field(
        "", description="Secret of sources without credentialsSecret, in each watched namespace; it may be missing."
    )
    nodes_interface: Annotated[str, StringConstraints(pattern=INTERFACE)] = Field(
        "", description="Network interface by which the pods of one training exchange gradients; empty: the pod's own."
    )
    nodes_rdma_resource: Annotated[str, StringConstraints(pattern=OPTIONAL_RESOURCE)] = Field(
        "", description="Resource of which each of those pods gets one, such as rdma/hca; empty: none."
    )
    pod_name: str | None = Field(None, description="Holder of the Lease.")
    http_host: str = Field("", description="Address of health and metrics; empty: all of the pod's.")
    http_port: Port = 8080
    progress_port: Port = 8443
    workers: Annotated[int, Field(ge=1, le=1000), BeforeValidator(_number)] = Field(
        8, description="TuningJobs, and as many InferenceServices, that are reconciled at the same time."
    )
    ca_pem: str | None = Field(None, description="CA that pods trust; no variable, the operator fills it in.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables; raises InputError that names each one that is missing or wrong."""
        variables = {PREFIX + name.upper() for name in cls.model_fields if name != "ca_pem"}
        given: dict[str, Any] = {name: value for name, value in environment.items() if name in variables and value}
        return cls.parse(given)

    def with_ca(self, ca_pem: str) -> Settings:
        """Return these settings with the CA that pods are to trust."""
        return self.model_copy(update={"ca_pem": ca_pem})
