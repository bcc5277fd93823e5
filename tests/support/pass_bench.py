"""A worker for TuningJobs on an API server in memory: passes one by one, watches that deliver when told to."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_objects import SETTINGS, Raw, after, make_pod, make_tuning_job
from tuning_operator.core.cache import JOBS, PODS, TUNING_JOBS, Cache
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.tuning_job.reconciler import TuningJobReconciler

KEY = ("team", "faq")


@dataclass
class Bench:
    """A worker whose watches deliver when told to."""

    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.clock)
        self.store = Cache({TUNING_JOBS: self.queue.add})
        self.cluster.now = self.now
        self.worker = TuningJobReconciler(self.cluster, self.store, self.queue, SETTINGS, Metrics(), "me", self.now)  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return after(self.seconds)

    def deliver(self) -> None:
        for kind, events in self.cluster.watch.items():
            while events:
                self.store.apply_event(kind, *events.popleft())

    async def look(self) -> None:
        """All events, then passes as long as one is due."""
        self.deliver()
        self.queue.add(KEY)
        while len(self.queue):
            await self.one_pass()

    async def one_pass(self) -> None:
        key = await self.queue.get()
        try:
            await self.worker.reconcile(key)
        finally:
            self.queue.done(key)

    def start(self, **spec: Any) -> None:
        self.cluster.add(TUNING_JOBS, make_tuning_job(**spec))

    @property
    def status(self) -> Raw:
        return dict((self.cluster.get(TUNING_JOBS, "faq") or {})["status"])

    def condition(self, kind: str) -> tuple[str, str]:
        return next((c["status"], c["reason"]) for c in self.status["conditions"] if c["type"] == kind)

    def message(self, kind: str) -> str:
        return str(next(c["message"] for c in self.status["conditions"] if c["type"] == kind))

    def end_job(self, role: str, result: Raw | None, name: str = "pod") -> None:
        """Its pod has succeeded, and the Job is complete."""
        job = self.cluster.get(JOBS, f"faq-{role}")
        assert job is not None
        if result is not None:
            pod = make_pod(role, phase="Succeeded", result=result, job_uid=job["metadata"]["uid"], ended=self.seconds)
            self.cluster.add(PODS, pod)
        time = timestamp(self.now())
        job["status"] = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": time}]}
        self.cluster.change(JOBS, job)
