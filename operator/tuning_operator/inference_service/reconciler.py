"""Reconcile InferenceServices: what is observed of one, and what its agents are to serve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from llm_tuning.api.inference_service import InferenceServiceSpec
from tuning_operator.core.cache import INFERENCE_SERVICES, JOBS, NETWORK_POLICIES, SERVING, TUNING_JOBS, Key, Raw
from tuning_operator.core.constants import STALE_REPORT_SECONDS
from tuning_operator.core.desired import Desired
from tuning_operator.core.reconciler import Reconciler
from tuning_operator.inference_service.agents import Agents
from tuning_operator.inference_service.children import part_name
from tuning_operator.inference_service.desire import desire_service
from tuning_operator.inference_service.fetch import fetch_name, policy_name
from tuning_operator.inference_service.observed import ObservedService, build_observed_service
from tuning_operator.inference_service.routes import routes_of
from tuning_operator.pods.fetch import Asked
from tuning_operator.pods.reporting import Reports
from tuning_operator.pods.trouble import Reported

FIRST_REPORTS_SECONDS = 20.0
"""After its start the operator waits so long for agents to report: they have lost it, and try again within 15 s."""


@dataclass
class InferenceServiceReconciler(Reconciler[ObservedService]):
    """Reconcile InferenceServices."""

    kind: ClassVar[str] = INFERENCE_SERVICES

    agents: Agents = field(default_factory=Agents)
    started: float = field(default_factory=time.monotonic)
    _reports: Reports = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reports = Reports(self.queue)

    def report(self, key: Key, reported: Reported) -> None:
        """Keep the report of a pod that fetches; it is written with the next reconcile."""
        if (raw := self.cache.get(INFERENCE_SERVICES, *key)) is not None:
            self._reports.take(key, raw["metadata"]["uid"], reported)

    def observe(self, raw: Raw, warnings: Sequence[Raw] = ()) -> ObservedService:
        namespace, name, uid = (raw["metadata"][part] for part in ("namespace", "name", "uid"))
        spec = self.cache.spec_of(raw, InferenceServiceSpec)
        found = {kind: self.cache.get(kind, namespace, part_name(name, kind)) for kind in SERVING}
        targets = (target.tuning_job for route in (spec.routes if spec else ()) for target in route.targets)
        jobs = {job for job in targets if job is not None}
        fetches, policy = self._fetches(raw, spec)
        return build_observed_service(
            raw,
            fetches=fetches,
            fetch_policy=policy,
            spec=spec,
            parts={kind: part for kind, part in found.items() if part is not None},
            pods=self.cache.pods_of(uid),
            reports=self.agents.reports((namespace, name)),
            reported=self._reports.of((namespace, name), uid),
            jobs={job: self.cache.get(TUNING_JOBS, namespace, job) for job in jobs},
            warnings=warnings,
            reports_due=time.monotonic() - self.started < FIRST_REPORTS_SECONDS,
        )

    def _fetches(self, raw: Raw, spec: InferenceServiceSpec | None) -> tuple[list[Raw], Raw | None]:
        """Return the Jobs that fetch a base of this InferenceService, whoever has their name, and their policy."""
        named = build_observed_service(raw, spec=spec, parts={})
        namespace, jobs = named.namespace, self.cache.jobs_of(named.uid)
        asked = Asked.of("model", spec.model, None) if spec is not None else None
        if asked is None:
            return jobs, None
        wanted = self.cache.get(JOBS, namespace, fetch_name(named, asked))
        if wanted is not None and wanted not in jobs:
            jobs.append(wanted)
        return jobs, self.cache.get(NETWORK_POLICIES, namespace, policy_name(named))

    def desire(self, observed: ObservedService) -> Desired:
        return desire_service(observed, self.settings, self.now())

    def forget(self, key: Key) -> None:
        self.agents.forget(key)
        self._reports.forget(key)

    def status_due(self, observed: ObservedService, status: Raw) -> float:
        key = (observed.namespace, observed.name)
        return self._reports.status_due(key, status, observed.raw.get("status") or {})

    def status_written(self, key: Key) -> None:
        self._reports.status_written(key)

    def publish(self, key: Key, observed: ObservedService) -> None:
        """Publish the routes to the agents, which wait for them."""
        if (routes := routes_of(observed)) is not None:
            self.agents.publish(key, routes)
        self.agents.keep_only(key, {pod.uid for pod in observed.pods})
        if observed.pods:  # an agent that falls silent sends nothing to be woken by
            self.queue.add_after(key, STALE_REPORT_SECONDS)
