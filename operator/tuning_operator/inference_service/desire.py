"""What an InferenceService wants next: its parts, what its agents are to serve, and what its status says. Pure.

Ready is a promise: every replica answers on each route, and each adapter does what it did at training. It rests on
what each pod's agent reports; only reported facts enter the status.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from llm_tuning.agent.contract import AdapterReport, DesiredRoutes, DesiredTarget
from llm_tuning.api.conditions import AdapterReason, Reason, ServiceConditionType, ServiceReason
from llm_tuning.api.inference_service import AdapterStatus, InferenceServiceStatus
from tuning_operator.core.cache import BUDGETS, DEPLOYMENTS, SERVING
from tuning_operator.core.conditions import FALSE, SPEC_UNKNOWN, TRUE, UNKNOWN, Conditions
from tuning_operator.core.constants import LABEL_SERVICE, LONGEST_LOOK_SECONDS
from tuning_operator.core.defaults import with_service_defaults
from tuning_operator.core.desired import NORMAL, WARNING, Desired, EventRule, ObjectRef, events_of
from tuning_operator.core.drift import has_drifted
from tuning_operator.core.resource import dump_status, shown
from tuning_operator.core.settings import Settings
from tuning_operator.inference_service.children import build_parts, part_name
from tuning_operator.inference_service.fetch import Base, find_base
from tuning_operator.inference_service.observed import ObservedService, ServingPod
from tuning_operator.inference_service.routes import routes_of
from tuning_operator.inference_service.stuck import find_stuck_service, service_events_due
from tuning_operator.pods.gpus import find_gpu_trouble
from tuning_operator.pods.stuck import find_refusal
from tuning_operator.pods.trouble import Trouble

C = ServiceConditionType
R = ServiceReason
QUIET = (Reason.FETCHING, R.PENDING, R.STARTING, R.ROLLING)
"""Of Ready=False: the normal course of things, worth no Event."""
EVENTS = (
    EventRule(C.READY, TRUE, NORMAL),
    EventRule(C.READY, FALSE, WARNING, but=QUIET),
    EventRule(C.STALLED, TRUE, WARNING),
    EventRule(C.ADAPTERS_EFFECTIVE, TRUE, NORMAL),
    EventRule(C.ADAPTERS_EFFECTIVE, FALSE, WARNING),
)


def desire_service(observed: ObservedService, settings: Settings, now: datetime) -> Desired:
    """Decide everything that is wanted of this InferenceService now."""
    routes = routes_of(observed)
    if observed.is_deleting:
        return Desired()  # owner references clean up
    if observed.spec is None or routes is None:
        return _refuse_spec(observed, now)
    desired = Desired()
    base = find_base(observed, with_service_defaults(observed.spec, settings.defaults), settings, now, desired)
    return _Pass(observed, base, routes, desired, settings=settings, now=now).run()


def _refuse_spec(observed: ObservedService, now: datetime) -> Desired:
    """Set SpecInvalid where the stored object does not fit this version's models; no child is made."""
    conditions = Conditions(C, observed.status.conditions, observed.generation, now)
    conditions.set(C.READY, UNKNOWN, Reason.SPEC_INVALID, SPEC_UNKNOWN)
    conditions.set(C.STALLED, TRUE, Reason.SPEC_INVALID, shown(observed.problems))
    update = {"observed_generation": observed.generation, "conditions": conditions.as_list()}
    desired = Desired()
    _record(desired, observed, observed.status.model_copy(update=update))
    return desired


def _record(desired: Desired, observed: ObservedService, status: InferenceServiceStatus) -> None:
    """Put the status into `desired`, with Events for what it changes."""
    desired.status = dump_status(status)
    desired.events = events_of(EVENTS, observed.status.conditions, status.conditions)


class _Pass:
    def __init__(
        self,
        observed: ObservedService,
        base: Base,
        routes: DesiredRoutes,
        desired: Desired,
        *,
        settings: Settings,
        now: datetime,
    ) -> None:
        self.o, self.base, self.routes, self.settings, self.now = observed, base, routes, settings, now
        self.spec, self.desired = base.spec, desired
        self.refused = find_gpu_trouble(self.spec.resources.gpus, settings.gpu_resource)
        """Why no replica is made or changed."""
        self.conditions = Conditions(C, observed.status.conditions, observed.generation, now)

    def run(self) -> Desired:
        self._parts()
        silent = [pod for pod in self.o.pods if pod.is_ready and pod.report is None]
        if silent and self.o.reports_due:  # if it were called not ready now, it would be written twice at each start
            self.desired.requeue(2.0)
            return self.desired
        adapters = self._adapters()
        self._judge(adapters, silent)
        deployment = self.o.parts.get(DEPLOYMENTS, {}).get("status") or {}
        status = InferenceServiceStatus(
            observed_generation=self.o.generation,
            url=f"http://{self.o.name}.{self.o.namespace}.svc",
            replicas=int(deployment.get("replicas") or 0),
            ready_replicas=len([pod for pod in self.o.pods if pod.is_ready]),
            selector=f"{LABEL_SERVICE}={self.o.name}",
            model=self.base.status,
            progress=self.base.progress,
            adapters=adapters,
            conditions=self.conditions.as_list(),
        )
        _record(self.desired, self.o, status)
        return self.desired

    # --- what is wanted --------------------------------------------------------------------------------------------

    def _parts(self) -> None:
        wanted = build_parts(self.o, self.spec, self.settings, self.routes)
        if self.refused is not None:
            wanted.pop(DEPLOYMENTS, None)
        for kind in SERVING:
            there = self.o.parts.get(kind)
            if kind not in wanted:
                if there is not None and kind == BUDGETS:
                    metadata = there["metadata"]
                    self.desired.delete.append(ObjectRef(kind, metadata["name"], metadata["uid"]))
            elif there is not None:
                if "deletionTimestamp" in there["metadata"]:
                    self.desired.requeue(2.0)
                elif has_drifted(wanted[kind], there):
                    self.desired.apply.append((kind, wanted[kind]))
            elif kind not in self.o.taken:
                self.desired.create.append((kind, wanted[kind]))

    # --- what is reported-------------------------------------------------------------------------------------------

    def _adapters(self) -> list[AdapterStatus]:
        """Build the status of each adapter once, in the order of the routes."""
        found: dict[tuple[str | None, str | None], AdapterStatus] = {}
        for target in (target for route in self.routes.routes for target in route.targets):
            key = (target.model_id, target.tuning_job)
            if key not in found:
                found[key] = self._adapter(target)
        return list(found.values())

    def _adapter(self, target: DesiredTarget) -> AdapterStatus:
        known: dict[str, Any] = {"model_id": target.model_id, "tuning_job": target.tuning_job}
        if target.model_id is None:
            return AdapterStatus(**known, reason=target.reason, message=target.message)
        ready = [pod for pod in self.o.pods if pod.is_ready]
        reported = [(pod, _of(pod, target.model_id)) for pod in ready or self.o.pods]
        loaded = sum(report is not None and report.loaded for pod, report in reported if pod.is_ready)
        decisive = _decisive(reported)
        if decisive is None:
            message = "no agent has reported it yet"
            return AdapterStatus(**known, loaded_replicas=loaded, reason=R.NO_REPORT, message=message)
        pod, report = decisive
        differs = any(other is None or other.reason != report.reason for _, other in reported)
        message = f"{pod.name}: {report.message}" if differs else report.message
        effective: Literal["True", "False", "Unknown"] = report.effective
        return AdapterStatus(
            **known, loaded_replicas=loaded, effective=effective, reason=report.reason, message=message[:1024]
        )

    def _judge(self, adapters: list[AdapterStatus], silent: Sequence[ServingPod]) -> None:
        ready = [pod for pod in self.o.pods if pod.is_ready]
        self._say_loaded(adapters, len(ready))
        self._say_effective(adapters)
        stalled = self._stalled()
        if stalled is None:
            self.conditions.set(C.STALLED, FALSE, R.NOT_STALLED)
        else:
            self.conditions.set_steadily(C.STALLED, TRUE, *stalled)
        refused = (self.refused.reason, self.refused.message) if self.refused is not None else None
        problem = refused or self._locked(ready) or self._not_ready(adapters, ready, silent)
        if problem is None:
            routes = len(self.spec.routes)
            message = f"{len(ready)} replica{'s' * (len(ready) != 1)} answer{'s' * (len(ready) == 1)} on {routes} route"
            self.conditions.set(C.READY, TRUE, R.READY, message + "s" * (routes != 1))
            if self.base.waiting is not None:  # another base is on its way
                self.conditions.set(C.RECONCILING, TRUE, self.base.waiting.reason, self.base.waiting.message)
            else:
                self.conditions.set(C.RECONCILING, FALSE, R.SETTLED)
            return
        reason, message = stalled if stalled is not None and not ready else problem
        self.conditions.set_steadily(C.READY, FALSE, reason, message)
        moving = problem[0] in (Reason.FETCHING, R.STARTING, R.ROLLING, R.REPLICAS_NOT_READY, R.NO_REPORT, *_UNSETTLED)
        if moving:
            self.conditions.set_steadily(C.RECONCILING, TRUE, *problem)
        else:
            self.conditions.set(C.RECONCILING, FALSE, R.SETTLED)

    def _say_loaded(self, adapters: list[AdapterStatus], ready: int) -> None:
        missing = [adapter for adapter in adapters if adapter.loaded_replicas < ready or adapter.model_id is None]
        if not adapters:
            self.conditions.set(C.ADAPTERS_LOADED, TRUE, R.NO_ADAPTERS, "no route names an adapter")
        elif not ready:
            self.conditions.set(C.ADAPTERS_LOADED, UNKNOWN, R.REPLICAS_NOT_READY, "no replica is ready")
        elif missing:
            first = missing[0]
            message = f"{_named(first)} is loaded on {first.loaded_replicas} of {ready} ready replicas: {first.message}"
            self.conditions.set(C.ADAPTERS_LOADED, FALSE, first.reason, _counted(message, missing))
        else:
            message = f"{len(adapters)} on each of {ready} ready replicas"
            self.conditions.set(C.ADAPTERS_LOADED, TRUE, R.LOADED, message)

    def _say_effective(self, adapters: list[AdapterStatus]) -> None:
        without = [adapter for adapter in adapters if adapter.effective == "False"]
        unknown = [adapter for adapter in adapters if adapter.effective == "Unknown"]
        if not adapters:
            self.conditions.set(C.ADAPTERS_EFFECTIVE, TRUE, R.NO_ADAPTERS, "no route names an adapter")
        elif without:
            message = _counted(f"{_named(without[0])}: {without[0].message}", without)
            self.conditions.set(C.ADAPTERS_EFFECTIVE, FALSE, without[0].reason, message)
        elif unknown:
            message = _counted(f"{_named(unknown[0])}: {unknown[0].message}", unknown)
            self.conditions.set(C.ADAPTERS_EFFECTIVE, UNKNOWN, unknown[0].reason, message)
        else:
            message = "each adapter moves the answers as training did, proven on every ready replica"
            self.conditions.set(C.ADAPTERS_EFFECTIVE, TRUE, R.EFFECTIVE, message)

    def _not_ready(
        self, adapters: list[AdapterStatus], ready: list[ServingPod], silent: Sequence[ServingPod]
    ) -> tuple[str, str] | None:
        """Return reason and message of what keeps the InferenceService from Ready, gravest first; None: nothing."""
        replicas = self.spec.replicas
        if not replicas:
            return R.NO_REPLICAS, "spec.replicas is 0"
        deployment = self.o.parts.get(DEPLOYMENTS)
        if deployment is None:
            first = self.base.waiting or Trouble(R.STARTING, "its pods are being made")
            return first.reason, first.message
        for adapter in adapters:
            if adapter.model_id is None or adapter.effective == "False" or adapter.reason in _FAILED:
                return adapter.reason, f"{_named(adapter)}: {adapter.message}"
        status = deployment.get("status") or {}
        seen = int(status.get("observedGeneration") or 0) >= int(deployment["metadata"].get("generation") or 0)
        if not seen or int(status.get("updatedReplicas") or 0) < replicas or len(self.o.pods) > replicas:
            updated = int(status.get("updatedReplicas") or 0)
            if not ready:
                return R.STARTING, "its pods are being made"
            return R.ROLLING, f"{updated} of {replicas} replicas have the current spec"
        if len(ready) < replicas:
            starting = f"{len(ready)} of {replicas} replicas are ready"
            return (R.REPLICAS_NOT_READY if ready else R.STARTING), starting
        if silent:
            return R.NO_REPORT, f"the agent of pod {silent[0].name} has not reported for a while; see its log"
        if any(pod.report is not None and pod.report.revision != self.routes.revision for pod in ready):
            return AdapterReason.LOADING, "the replicas do not serve the newest routes yet"
        for adapter in adapters:
            if adapter.loaded_replicas < len(ready) or adapter.reason in _UNSETTLED:
                return adapter.reason, f"{_named(adapter)}: {adapter.message}"
        return None

    def _locked(self, pods: Sequence[ServingPod]) -> tuple[str, str] | None:
        """Return reason and message if an agent has an empty API key, and so answers no client; else None."""
        secret = self.spec.api_key_secret
        if secret is None or not any(pod.report is not None and pod.report.locked for pod in pods):
            return None
        return R.API_KEY_EMPTY, (
            f"spec.apiKeySecret: the key {secret.key} of Secret {secret.name} was empty when a pod started, so every "
            f"request is refused; put a key in, then kubectl rollout restart deployment {self.o.name}"
        )

    def _stalled(self) -> tuple[str, str] | None:
        if self.refused is not None:
            return self.refused.reason, self.refused.message
        if self.o.taken:
            kind = self.o.taken[0]
            taken = f"{kind}/{part_name(self.o.name, kind)}"
            self.desired.requeue(LONGEST_LOOK_SECONDS)
            return Reason.NAME_TAKEN, (
                f"{taken} exists already and belongs to another owner; delete it, or use another name"
            )
        for refused in self.o.refusals.values():
            stuck = find_refusal(refused, "object")
            return stuck.reason, stuck.message
        if (locked := self._locked(self.o.pods)) is not None:
            return locked
        if self.base.stalled is not None:
            return self.base.stalled.reason, self.base.stalled.message
        due = service_events_due(self.o, self.now)
        if due is not None:
            self.desired.needs_events |= due <= 0
            self.desired.requeue(due if due > 0 else LONGEST_LOOK_SECONDS / 3)
        found = find_stuck_service(self.o, self.spec, self.settings.gpu_resource, self.now)
        return None if found is None else (found.reason, found.message)


_FAILED = (AdapterReason.LOAD_FAILED, AdapterReason.TOO_MANY_ADAPTERS, AdapterReason.ADAPTER_NOT_FOUND)
_UNSETTLED = (AdapterReason.ENGINE_DOWN, AdapterReason.LOADING, AdapterReason.PROVING, R.NO_REPORT)


def _of(pod: ServingPod, model_id: str) -> AdapterReport | None:
    adapters = pod.report.adapters if pod.report is not None else ()
    return next((adapter for adapter in adapters if adapter.model_id == model_id), None)


def _decisive(
    reported: Sequence[tuple[ServingPod, AdapterReport | None]],
) -> tuple[ServingPod, AdapterReport] | None:
    """Return the report that counts for all replicas: the worst; None if none is bad and a replica has not reported."""
    known = [(pod, report) for pod, report in reported if report is not None]
    for effective in ("False", "Unknown"):
        for pod, report in known:
            if report.effective == effective:
                return pod, report
    return known[0] if known and len(known) == len(reported) else None


def _named(adapter: AdapterStatus) -> str:
    return adapter.model_id or f"TuningJob {adapter.tuning_job}"


def _counted(message: str, adapters: Sequence[AdapterStatus]) -> str:
    others = len(adapters) - 1
    return f"{message} (and {others} more)" if others else message
