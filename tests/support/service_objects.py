"""InferenceServices and what belongs to them, as the operator sees them."""

from __future__ import annotations

from typing import Any

from llm_tuning.agent.contract import AdapterReport, DesiredRoutes, Report
from llm_tuning.api.inference_service import KIND
from llm_tuning.api.kube import API_VERSION
from tests.support.operator_objects import SETTINGS, START, Raw, make_tuning_job
from tuning_operator.core.cache import DEPLOYMENTS
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.constants import LABEL_SERVICE, LABEL_SERVICE_UID, MANAGED_BY, MANAGED_BY_LABEL
from tuning_operator.core.settings import Settings
from tuning_operator.inference_service.children import build_parts
from tuning_operator.inference_service.observed import ObservedService, build_observed_service
from tuning_operator.inference_service.routes import routes_of

SERVICE_UID = "99999999-2222-3333-4444-555555555555"
ROUTES = [{"name": "support", "targets": [{"modelId": "ft_a"}]}]
FINISHED_JOB = make_tuning_job(
    status={
        "modelId": "ft_of_job",
        "conditions": [
            {"type": kind, "status": "True", "reason": "Succeeded", "lastTransitionTime": timestamp(START)}
            for kind in ("Finished", "Succeeded")
        ],
    }
)


def make_service(name: str = "faq", *, status: Raw | None = None, generation: int = 1, **spec: Any) -> Raw:
    """An InferenceService in namespace `team`; further arguments are fields of its spec."""
    body = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}, "routes": ROUTES}
    metadata: Raw = {
        "name": name,
        "namespace": "team",
        "uid": SERVICE_UID,
        "generation": generation,
        "creationTimestamp": timestamp(START),
    }
    raw: Raw = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {**body, **spec}}
    return raw if status is None else {**raw, "status": status}


def make_serving_pod(name: str = "faq-1", *, ready: bool = True, **status: Any) -> Raw:
    """A pod of it; its uid is `uid-NAME`."""
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(START)},
        {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": timestamp(START)},
        {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": timestamp(START)},
    ]
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "creationTimestamp": timestamp(START),
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, LABEL_SERVICE: "faq", LABEL_SERVICE_UID: SERVICE_UID},
        },
        "spec": {"containers": [{"name": "agent", "image": "operator:1"}, {"name": "vllm", "image": "vllm:1"}]},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }


def told(model_id: str = "ft_a", effective: str = "True", reason: str = "Effective", **fields: Any) -> AdapterReport:
    """What an agent says of one adapter."""
    values = {"loaded": True, "settled": True, "message": f"{reason}, it says", **fields}
    return AdapterReport.model_validate({"model_id": model_id, "effective": effective, "reason": reason, **values})


def observe(
    raw: Raw | None = None,
    *,
    pods: list[Raw] | None = None,
    adapters: dict[str, list[AdapterReport]] | None = None,
    revision: str | None = None,
    applied: bool = True,
    deployment: Raw | None = None,
    **further: Any,
) -> ObservedService:
    """With its parts as they were applied last, all pods up to date; `adapters` by pod name is what agents tell."""
    raw = make_service() if raw is None else raw
    pods = [make_serving_pod()] if pods is None else pods
    bare = build_observed_service(raw, spec=None, parts={}, jobs=further.get("jobs"))
    assert bare.spec is not None, bare.problems
    desired = routes_of(bare)
    assert desired is not None
    parts = dict(build_parts(bare, bare.spec, SETTINGS, desired)) if applied else {}
    if applied:
        replicas = bare.spec.replicas
        status = {"observedGeneration": 1, "replicas": len(pods), "updatedReplicas": replicas, **(deployment or {})}
        parts[DEPLOYMENTS] = {**parts[DEPLOYMENTS], "status": status}
        parts[DEPLOYMENTS]["metadata"] |= {
            "generation": 1,
            "uid": "uid-deployment",
            "creationTimestamp": timestamp(START),
        }
    adapters = {pod["metadata"]["name"]: [told()] for pod in pods} if adapters is None else adapters
    reports = {
        f"uid-{name}": Report(
            revision=desired.revision if revision is None else revision,
            engine_up=True,
            ready=True,
            adapters=tuple(said),
        )
        for name, said in adapters.items()
    }
    return build_observed_service(raw, spec=None, parts=parts, pods=pods, reports=reports, **further)


REPORTING = SETTINGS.model_copy(
    update={"progress_url": "https://op.llm-tuning.svc:8443", "ca_pem": "CERTIFICATE", "vllm_image": "vllm:1"}
)


def serving_parts(settings: Settings = REPORTING, **spec: Any) -> dict[str, Raw]:
    """What the operator makes of a service, by kind; `spec` is as for `make_service`."""
    observed = build_observed_service(make_service(**spec), spec=None, parts={})
    assert observed.spec is not None, observed.problems
    return build_parts(observed, observed.spec, settings, DesiredRoutes())


def pod_spec(settings: Settings = REPORTING, **spec: Any) -> Raw:
    """The spec of its pods."""
    return dict(serving_parts(settings, **spec)[DEPLOYMENTS]["spec"]["template"]["spec"])


def container_of(pod: Raw, name: str) -> Raw:
    """A container of a pod's spec, an init container or one of the others."""
    return next(c for c in [*pod["initContainers"], *pod["containers"]] if c["name"] == name)
