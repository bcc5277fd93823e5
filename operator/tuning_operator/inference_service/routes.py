"""What the agents of an InferenceService are to serve: its routes, each target resolved to an adapter. Pure."""

from __future__ import annotations

from llm_tuning.agent.contract import DesiredRoute, DesiredRoutes, DesiredTarget
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.api.inference_service import RouteTarget
from tuning_operator.inference_service.observed import ObservedService


def routes_of(observed: ObservedService) -> DesiredRoutes | None:
    """Resolve the routes; None where there is no spec, or no agent is to serve any more."""
    if observed.spec is None or observed.is_deleting:
        return None
    routes = tuple(
        DesiredRoute(name=route.name, targets=tuple(_resolved(observed, target) for target in route.targets))
        for route in observed.spec.routes
    )
    ranks = [job.rank for job in observed.jobs.values()]
    return DesiredRoutes(routes=routes, rank=max(ranks, default=0))


def _resolved(observed: ObservedService, target: RouteTarget) -> DesiredTarget:
    name = target.tuning_job
    if name is None:
        return DesiredTarget(model_id=target.model_id, weight=target.weight)
    job = observed.jobs.get(name)
    if job is not None and job.succeeded and job.model_id:
        return DesiredTarget(model_id=job.model_id, tuning_job=name, weight=target.weight)
    for known in observed.status.adapters:  # resolved before: it outlives the TuningJob, and a namesake's training
        if known.tuning_job == name and known.model_id is not None:
            return DesiredTarget(model_id=known.model_id, tuning_job=name, weight=target.weight)
    reason = AdapterReason.WAITING_FOR_TUNING_JOB
    message = f"TuningJob {name} has not succeeded yet; its adapter is attached when it does"
    if job is None or not job.exists:
        reason = AdapterReason.TUNING_JOB_NOT_FOUND
        message = f"there is no TuningJob {name} in this namespace; apply it, or name its adapter by modelId"
    elif job.finished:
        reason = AdapterReason.TUNING_JOB_FAILED
        message = f"TuningJob {name} has failed, there is no adapter; take it out of the route, or name another"
    return DesiredTarget(tuning_job=name, weight=target.weight, reason=reason, message=message)
