"""Why the pods of an InferenceService make no progress, and what to do about it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from llm_tuning.api.conditions import Reason, ServiceReason
from llm_tuning.api.inference_service import InferenceServiceSpec
from llm_tuning.engines.vllm.log import last_error, remedy
from llm_tuning.errors import EXIT_INPUT
from llm_tuning.pod.contract import CheckResult, parse_result
from tuning_operator.core.cache import DEPLOYMENTS
from tuning_operator.inference_service.children import AGENT_MEMORY
from tuning_operator.inference_service.observed import AGENT, ENGINE, PLAN, ObservedService, ServingPod
from tuning_operator.pods.observed import Workload
from tuning_operator.pods.sidecars import find_failing_sidecar, find_holding_sidecar, find_unready_sidecar
from tuning_operator.pods.stuck import CREATION, PodRequests, events_due, find_stuck, of_words, shown_resources
from tuning_operator.pods.trouble import Trouble

LOG_CHARACTERS = 500
EXIT_KILLED = 137
KILLED = {
    PLAN: (ServiceReason.PLAN_FAILED, "the plan for vLLM"),
    AGENT: (ServiceReason.AGENT_FAILING, "the adapter agent"),
    ENGINE: (ServiceReason.ENGINE_FAILING, "vLLM"),
}
"""By container: the reason, and what it is called."""


def service_events_due(observed: ObservedService, now: datetime) -> float | None:
    """Return in how many seconds Events are to be read for the newest waiting pod; 0 or less: now. None: no need."""
    deployment = observed.parts.get(DEPLOYMENTS)
    if deployment is None or observed.spec is None or not observed.spec.replicas:
        return None
    pods = _waiting(observed)
    if not pods and observed.pods:
        return None
    return events_due(Workload(deployment, pods, observed.warnings), now)


def find_stuck_service(
    observed: ObservedService, spec: InferenceServiceSpec, gpu_resource: str, now: datetime
) -> Trouble | None:
    """Find what the InferenceService is stuck at, or None while it makes progress as far as can be seen."""
    deployment = observed.parts.get(DEPLOYMENTS)
    if deployment is None:
        return None
    asked = _requests(spec, gpu_resource)
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return of_words(CREATION["FailedCreate"], str(condition.get("message", "")), asked)
    for pod in reversed(observed.pods):
        if pod.is_ready:
            continue
        workload = Workload(deployment, (pod,), observed.warnings)
        added = find_failing_sidecar(pod) or find_holding_sidecar(pod, now) or find_unready_sidecar(pod, now)
        if stuck := _failing(pod) or find_stuck(workload, asked) or added:
            return stuck
    return None


def _requests(spec: InferenceServiceSpec, gpu_resource: str) -> PodRequests:
    """Return what a replica of an InferenceService requests."""
    secret = spec.api_key_secret
    return PodRequests(
        claim=spec.volume.claim_name,
        contents="base/ and models/",
        pod="a replica",
        resources=shown_resources(spec.resources.cpu, spec.resources.memory, spec.resources.gpus, gpu_resource),
        lower="lower spec.resources",
        secret_field="spec.apiKeySecret",
        secret_key=secret.key if secret is not None else "apiKey",
        secret=secret.name if secret is not None else None,
    )


def _waiting(observed: ObservedService) -> tuple[ServingPod, ...]:
    return tuple(pod for pod in observed.pods if not pod.is_ready)


def _failing(pod: ServingPod) -> Trouble | None:
    """Diagnose a container that ends again and again; the plan comes first, for without it nothing starts."""
    for name in (PLAN, AGENT, ENGINE):
        ended = _last_end(pod, name)
        if ended is None:
            continue
        if ended.get("exitCode") == EXIT_KILLED:
            return _killed(pod, name, ended)
        message = str(ended.get("message") or "").strip()
        if name == PLAN:
            result = parse_result(message, CheckResult)
            if ended.get("exitCode") == EXIT_INPUT and result is not None:
                return Trouble(ServiceReason.PLAN_FAILED, f"spec.model.path: {result.message}")
            return Trouble(ServiceReason.PLAN_FAILED, _ended(pod, name, ended, "the plan for vLLM cannot be made"))
        if name == AGENT:
            return Trouble(ServiceReason.AGENT_FAILING, _ended(pod, name, ended, "the adapter agent ends"))
        return Trouble(ServiceReason.ENGINE_FAILING, _ended(pod, name, ended, "vLLM ended"))
    return None


def _killed(pod: ServingPod, name: str, ended: dict[str, Any]) -> Trouble:
    """Diagnose a container killed by SIGKILL, whose last log line says nothing of the end."""
    reason, who = KILLED[name]
    log = f"see `kubectl logs {pod.name} -c {name} --previous`"
    if ended.get("reason") != "OOMKilled":
        what = "was killed (exit code 137, SIGKILL): a liveness probe that failed, the node, or a person"
        return Trouble(reason, f"{who} {what}; see `kubectl describe pod {pod.name}`, and {log}")
    if name == ENGINE:
        text = "vLLM used more memory than spec.resources.memory and was ended (OOMKilled); give it more"
        return Trouble(Reason.OUT_OF_MEMORY, text)
    text = f"{who} used more memory than its limit of {AGENT_MEMORY} and was ended (OOMKilled); {log}"
    return Trouble(reason, text + ", and report it as a fault with that log")


def _last_end(pod: ServingPod, name: str) -> dict[str, Any] | None:
    """Return the last end of a container that is not ready since; None where it ended well or not at all."""
    found = pod.status_of(name)
    if found.get("ready"):
        return None
    for state in (found.get("state") or {}, found.get("lastState") or {}):
        ended = state.get("terminated")
        if ended and (ended.get("exitCode") != 0 or name == ENGINE):  # vLLM leaves with 0 when its engine has died
            return dict(ended)
    return None


def _ended(pod: ServingPod, name: str, ended: dict[str, Any], what: str) -> str:
    how = f"exit code {ended.get('exitCode')}"
    words = last_error(str(ended.get("message") or ""), most=LOG_CHARACTERS) or "it left no word"
    fix = f"; {known}" if (known := remedy(words)) else ""
    return f"{what} ({how}): {words}{fix}; see `kubectl logs {pod.name} -c {name} --previous`"
