"""What an InferenceService is made of: ConfigMap, Service, NetworkPolicy, PodDisruptionBudget, Deployment.

The pod template depends on the base, the engine's flags and the resources alone: routes and replicas restart nothing.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from llm_tuning.agent.contract import (
    AGENT_PORT,
    API_KEY_VARIABLE,
    CA_FILE,
    CONFIG_DIR,
    DESIRED_FILE,
    INPUT_VARIABLE,
    REPORT_URL_VARIABLE,
    TOKEN_FILE,
    DesiredRoutes,
    ServeInput,
)
from llm_tuning.agent.starting import RUN_DIR
from llm_tuning.api.inference_service import KIND, InferenceServiceSpec
from llm_tuning.api.quantity import parse_quantity
from llm_tuning.engines.vllm.environment import CACHE_ROOT, cpu_environment
from llm_tuning.pod.contract import ROOT, TERMINATION_LOG
from tuning_operator.core.audience import audience_of
from tuning_operator.core.cache import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, NETWORK_POLICIES, SERVICES
from tuning_operator.core.constants import (
    HASH_ANNOTATION,
    LABEL_SERVICE,
    LABEL_SERVICE_UID,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    TOKEN_SECONDS,
)
from tuning_operator.core.settings import Settings
from tuning_operator.inference_service.observed import AGENT, ENGINE, PLAN, ObservedService
from tuning_operator.inference_service.scripts import START_ENGINE, WAIT_FOR_AGENT
from tuning_operator.pods.network import DNS
from tuning_operator.pods.template import RESTRICTED, owner_reference, placement, pod_security, threads

SERVICE_PORT = 80
AGENT_MEMORY = "1Gi"
"""The limit of the agent and of the plan."""
ROLLING_GRACE_SECONDS = 180
"""The agent lets answers under way end for 150 s; then vLLM does."""
START_SECONDS = 3600
"""A base of hundreds of GB from a network volume; what fails to start is restarted at once all the same."""


def build_parts(
    observed: ObservedService, spec: InferenceServiceSpec, settings: Settings, desired: DesiredRoutes
) -> dict[str, dict[str, Any]]:
    """Build every wanted part, by kind, each with a digest of itself; raises nothing."""
    parts = {
        CONFIG_MAPS: _config_map(desired, settings),
        SERVICES: _service(observed),
        NETWORK_POLICIES: _network_policy(observed, settings),
    }
    if spec.replicas > 1:
        parts[BUDGETS] = _budget(observed)
    if spec.model.path is not None:  # else it is still to be fetched
        parts[DEPLOYMENTS] = _deployment(observed, spec, settings, spec.model.path)
    return {kind: _with_metadata(observed, part) for kind, part in parts.items()}


def part_name(service: str, kind: str) -> str:
    """Name a part: as the InferenceService, but the ConfigMap, which shares its kind with those of users."""
    return f"{service}-serving" if kind == CONFIG_MAPS else service


def selector_of(observed: ObservedService) -> dict[str, str]:
    """Return the labels that the InferenceService's pods, and no others, have."""
    return {LABEL_SERVICE: observed.name, LABEL_SERVICE_UID: observed.uid}


def _with_metadata(observed: ObservedService, part: dict[str, Any]) -> dict[str, Any]:
    kind = str(part.pop("kind"))
    digest = hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
    name = part_name(observed.name, CONFIG_MAPS if kind == "ConfigMap" else "")
    return {
        "apiVersion": part.pop("apiVersion"),
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": observed.namespace,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, **selector_of(observed)},
            "annotations": {HASH_ANNOTATION: digest},
            "ownerReferences": [owner_reference(observed, KIND)],
        },
        **part,
    }


def _config_map(desired: DesiredRoutes, settings: Settings) -> dict[str, Any]:
    """Build the ConfigMap from which an agent starts before its first answer from the operator."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "data": {DESIRED_FILE: desired.encode(), CA_FILE: settings.ca_pem or ""},
    }


def _service(observed: ObservedService) -> dict[str, Any]:
    port = {"name": "http", "port": SERVICE_PORT, "targetPort": AGENT_PORT, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "spec": {"type": "ClusterIP", "selector": selector_of(observed), "ports": [port]},
    }


def _network_policy(observed: ObservedService, settings: Settings) -> dict[str, Any]:
    """Build the NetworkPolicy: in, the agent's port; out, DNS and the operator. A model needs no other network."""
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "spec": {
            "podSelector": {"matchLabels": selector_of(observed)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [{"port": AGENT_PORT, "protocol": "TCP"}]}],
            "egress": [
                DNS,
                {"to": [operator], "ports": [{"port": settings.progress_port, "protocol": "TCP"}]},
            ],
        },
    }


def _budget(observed: ObservedService) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector_of(observed)}},
    }


def _deployment(observed: ObservedService, spec: InferenceServiceSpec, settings: Settings, base: str) -> dict[str, Any]:
    rolling = {"maxSurge": spec.rollout.max_surge, "maxUnavailable": spec.rollout.max_unavailable}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": START_SECONDS,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "selector": {"matchLabels": selector_of(observed)},
            "template": {
                "metadata": {"labels": {MANAGED_BY_LABEL: MANAGED_BY, **selector_of(observed)}},
                "spec": _pod(observed, spec, settings, base),
            },
        },
    }


def _pod(observed: ObservedService, spec: InferenceServiceSpec, settings: Settings, base: str) -> dict[str, Any]:
    given = ServeInput(
        model_path=base,
        base_name=spec.base_name,
        gpus=spec.resources.gpus,
        memory_bytes=int(parse_quantity(spec.resources.memory)),
        vllm=spec.vllm,
    ).encode()
    volumes: list[dict[str, Any]] = [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": spec.volume.claim_name, "readOnly": True}},
        {"name": "config", "configMap": {"name": part_name(observed.name, CONFIG_MAPS)}},
        {"name": "run", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "agent-tmp", "emptyDir": {}},
        # Tensors go from process to process here; the default of 64 MiB is too small.
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    workspace = {"name": "workspace", "mountPath": str(ROOT), "readOnly": True}
    run = {"name": "run", "mountPath": str(RUN_DIR)}
    config = {"name": "config", "mountPath": str(CONFIG_DIR), "readOnly": True}
    agent_tmp = {"name": "agent-tmp", "mountPath": "/tmp"}
    own = [{"name": INPUT_VARIABLE, "value": given}, {"name": "HOME", "value": "/tmp"}]
    agent = _container(
        AGENT,
        settings.operator_image,
        settings,
        command=["python", "-m", "llm_tuning.agent", "serve"],
        env=[*own, *_api_key(spec)],
        resources={"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": AGENT_MEMORY}},
        mounts=[workspace, run, config, agent_tmp],
        ports=[{"name": "http", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        readinessProbe=_probe("/ready", period=2, failures=2),
        livenessProbe=_probe("/live", period=10, failures=6),
    )
    if settings.progress_url and settings.ca_pem:
        url = f"{settings.progress_url}/v1/namespaces/{observed.namespace}/inferenceservices/{observed.name}/report"
        agent["env"].append({"name": REPORT_URL_VARIABLE, "value": url})
        audience = audience_of(observed.namespace, observed.name, observed.uid, "inferenceservice")
        token = {"path": TOKEN_FILE.name, "audience": audience, "expirationSeconds": TOKEN_SECONDS}
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
        agent["volumeMounts"].append({"name": "token", "mountPath": str(TOKEN_FILE.parent), "readOnly": True})
    plan = _container(
        PLAN,
        settings.operator_image,
        settings,
        command=["python", "-m", "llm_tuning.agent", "plan"],
        env=own,
        # It hashes the base where no trainer has noted its hash, and that reads it whole.
        resources={"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": AGENT_MEMORY}},
        mounts=[workspace, run, config, agent_tmp],
    )
    engine = _container(
        ENGINE,
        settings.vllm_image,
        settings,
        command=["python3", "-c", START_ENGINE],
        env=_engine_environment(spec),
        resources=_resources(spec, settings.gpu_resource),
        mounts=[
            workspace,
            run,
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        # Through the agent: vLLM listens on the pod's loopback only.
        startupProbe=_probe("/engine", period=2, failures=START_SECONDS // 2),
        livenessProbe=_probe("/engine", period=10, failures=6),
        lifecycle={"preStop": {"exec": {"command": ["python3", "-c", WAIT_FOR_AGENT]}}},
    )
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_of(observed)},
    }
    has_class = spec.resources.gpus and spec.resources.runtime_class_name
    runtime_class = {"runtimeClassName": spec.resources.runtime_class_name} if has_class else {}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": ROLLING_GRACE_SECONDS,
        "securityContext": pod_security(settings),
        "topologySpreadConstraints": [spread],
        "initContainers": [plan],
        "containers": [agent, engine],
        "volumes": volumes,
        **placement(spec.resources, settings),
        **runtime_class,
    }


def _container(
    name: str,
    image: str,
    settings: Settings,
    *,
    command: list[str],
    env: list[dict[str, Any]],
    resources: dict[str, Any],
    mounts: list[dict[str, Any]],
    **further: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "env": list(env),
        "resources": resources,
        "securityContext": RESTRICTED,
        "terminationMessagePath": str(TERMINATION_LOG),
        # A container that ends leaves the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": list(mounts),
        **further,
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": AGENT_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
        "successThreshold": 1,
    }


def _api_key(spec: InferenceServiceSpec) -> list[dict[str, Any]]:
    if spec.api_key_secret is None:
        return []
    reference = {"name": spec.api_key_secret.name, "key": spec.api_key_secret.key}
    return [{"name": API_KEY_VARIABLE, "valueFrom": {"secretKeyRef": reference}}]


def _engine_environment(spec: InferenceServiceSpec) -> list[dict[str, Any]]:
    """Build the engine's environment: what vLLM itself cannot know; the rest is in the plan."""
    values = {"HOME": "/tmp"} | CACHE_ROOT
    if not spec.resources.gpus:
        values |= cpu_environment(int(parse_quantity(spec.resources.memory)))
        values["OMP_NUM_THREADS"] = str(threads(spec.resources.cpu))
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(spec: InferenceServiceSpec, gpu_resource: str) -> dict[str, Any]:
    asked = spec.resources
    requests: dict[str, Any] = {"cpu": asked.cpu, "memory": asked.memory}
    limits: dict[str, Any] = {"memory": asked.memory}
    if asked.gpus:
        requests[gpu_resource] = limits[gpu_resource] = str(asked.gpus)
    return {"requests": requests, "limits": limits}
