"""What the operator is told by its Deployment: environment variables TUNING_OPERATOR_*.

NAMESPACE (required): its own. WATCH_NAMESPACES: with commas between; * or nothing: all. OPERATOR_IMAGE, TRAINER_IMAGE
(required). VLLM_IMAGE: of InferenceServices. IMAGE_PULL_POLICY, IMAGE_PULL_SECRETS. PROGRESS_URL: how pods reach the
progress server; empty: none. TLS_FOLDER: its certificates as files, where cert-manager makes them; empty: an authority
of its own. ALLOW_CPU_FALLBACK: train on the CPU where a GPU was asked for and CUDA is missing. CLUSTER_ASSIGNS_USER:
pods name no user of their own. GPU_RESOURCE: what a GPU is called. DEFAULTS: for what custom resources leave out, as
JSON (resources/defaults.py). CHECK_CPU, CHECK_MEMORY: of the data check. POD_NAME: who holds the Lease. HTTP_HOST,
HTTP_PORT, PROGRESS_PORT, WORKERS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from llm_tuning.errors import InputError, Problem
from tuning_operator.core.constants import GPU_RESOURCE
from tuning_operator.core.defaults import Defaults

PREFIX = "TUNING_OPERATOR_"
PULL_POLICY = "Always|IfNotPresent|Never", "Always, IfNotPresent or Never"
CPU = r"[0-9]+(\.[0-9]+)?m?", "a CPU quantity such as 500m or 2"
MEMORY = r"[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?", "a memory quantity such as 1Gi"
RESOURCE = (
    r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
    "a resource such as nvidia.com/gpu",
)
EVERYWHERE = "*"
TRUE, FALSE = ("true", "1"), ("false", "0", "")


@dataclass(frozen=True)
class Settings:
    """See the module; `ca_pem` is filled in once the certificates are there."""

    namespace: str
    operator_image: str
    trainer_image: str
    vllm_image: str = "vllm/vllm-openai:v0.32.0"
    watch_namespaces: tuple[str, ...] = ()
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    progress_url: str | None = None
    tls_folder: Path | None = None
    allow_cpu_fallback: bool = False
    cluster_assigns_user: bool = False
    gpu_resource: str = GPU_RESOURCE
    defaults: Defaults = field(default_factory=Defaults)
    check_cpu: str = "500m"
    check_memory: str = "1Gi"
    pod_name: str | None = None
    http_host: str = ""
    http_port: int = 8080
    progress_port: int = 8443
    workers: int = 8
    ca_pem: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables; raises InputError that names each one that is missing or wrong."""
        problems: list[Problem] = []

        def text(name: str, default: str | None = None) -> str:
            value = environment.get(PREFIX + name, "") or default
            if value is None:
                problems.append(Problem(PREFIX + name, "is required", "the Helm chart sets it"))
            return value or ""

        def names(name: str) -> tuple[str, ...]:
            return tuple(part.strip() for part in text(name, "").split(",") if part.strip())

        def number(name: str, default: int, at_most: int = 65535) -> int:
            value = text(name, str(default))
            if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= at_most:
                problems.append(Problem(PREFIX + name, f"must be a number from 1 to {at_most}, got {value!r}"))
                return default
            return int(value)

        def fitting(name: str, default: str, pattern: str, rule: str) -> str:
            value = text(name, default)
            if re.fullmatch(pattern, value) is None:
                problems.append(Problem(PREFIX + name, f"must be {rule}, got {value!r}"))
            return value

        def switch(name: str) -> bool:
            value = text(name, "").lower()
            if value not in TRUE + FALSE:
                problems.append(Problem(PREFIX + name, f"must be true or false, got {value!r}"))
            return value in TRUE

        def namespaces() -> tuple[str, ...]:
            given = names("WATCH_NAMESPACES")
            if EVERYWHERE not in given:
                return given
            if given != (EVERYWHERE,):
                problems.append(
                    Problem(PREFIX + "WATCH_NAMESPACES", f"must be * alone or names, got {','.join(given)!r}")
                )
            return ()

        def defaults() -> Defaults:
            variable = PREFIX + "DEFAULTS"
            try:
                return Defaults.parse(json.loads(text("DEFAULTS", "{}")), where=variable)
            except json.JSONDecodeError as error:
                problems.append(Problem(variable, f"must be JSON: {error}"))
            except InputError as error:
                problems.extend(error.problems)
            return Defaults()

        folder = text("TLS_FOLDER", "")
        settings = cls(
            namespace=text("NAMESPACE"),
            operator_image=text("OPERATOR_IMAGE"),
            trainer_image=text("TRAINER_IMAGE"),
            vllm_image=text("VLLM_IMAGE", cls.vllm_image),
            watch_namespaces=namespaces(),
            image_pull_policy=fitting("IMAGE_PULL_POLICY", "IfNotPresent", *PULL_POLICY),
            image_pull_secrets=names("IMAGE_PULL_SECRETS"),
            progress_url=text("PROGRESS_URL", "") or None,
            tls_folder=Path(folder) if folder else None,
            allow_cpu_fallback=switch("ALLOW_CPU_FALLBACK"),
            cluster_assigns_user=switch("CLUSTER_ASSIGNS_USER"),
            gpu_resource=fitting("GPU_RESOURCE", GPU_RESOURCE, *RESOURCE),
            defaults=defaults(),
            check_cpu=fitting("CHECK_CPU", "500m", *CPU),
            check_memory=fitting("CHECK_MEMORY", "1Gi", *MEMORY),
            pod_name=text("POD_NAME", "") or None,
            http_host=text("HTTP_HOST", ""),
            http_port=number("HTTP_PORT", 8080),
            progress_port=number("PROGRESS_PORT", 8443),
            workers=number("WORKERS", 8, 1000),
        )
        if problems:
            raise InputError(problems)
        return settings

    def trusting(self, ca_pem: str) -> Settings:
        """The same with the authority that pods are to trust."""
        return replace(self, ca_pem=ca_pem)
