"""The loop that all kinds share: what it counts, retries and lets through."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_objects import SETTINGS, START, make_tuning_job
from tests.support.service_objects import make_service
from tuning_operator.core.cache import INFERENCE_SERVICES, TUNING_JOBS, Cache
from tuning_operator.core.cluster import KIND_NAMES
from tuning_operator.core.errors import LeaseLost, Unavailable
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.core.reconciler import Reconciler
from tuning_operator.inference_service.reconciler import InferenceServiceReconciler
from tuning_operator.tuning_job.reconciler import TuningJobReconciler

OBJECTS = {TUNING_JOBS: make_tuning_job, INFERENCE_SERVICES: make_service}
KINDS: dict[str, type[Reconciler[Any]]] = {
    TUNING_JOBS: TuningJobReconciler,
    INFERENCE_SERVICES: InferenceServiceReconciler,
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


@dataclass
class Loop:
    """One kind's reconciler at work on an API server in memory."""

    kind: str

    def __post_init__(self) -> None:
        self.metrics, self.cluster = Metrics(), MemoryCluster()
        self.name = KIND_NAMES[self.kind].lower()
        self.queue = WorkQueue(metrics=self.metrics.queue(self.name))
        self.cache = Cache({self.kind: self.queue.add})
        self.metrics.watch(self.cache, {self.name: self.queue})
        self.reconciler = KINDS[self.kind](
            self.cluster,  # type: ignore[arg-type]
            self.cache,
            self.queue,
            SETTINGS,
            self.metrics,
            now=lambda: START,
        )

    async def run(self, passes: int) -> None:
        """Until so many reconciles have ended."""
        self.cluster.add(self.kind, OBJECTS[self.kind]())
        for event, raw in list(self.cluster.watch[self.kind]):
            self.cache.apply_event(self.kind, event, raw)
        task = asyncio.create_task(self.reconciler.run())
        try:
            while sum(self.count(result) for result in ("success", "error", "requeue_after")) < passes:
                if task.done():
                    task.result()
                await asyncio.sleep(0)
        finally:
            task.cancel()

    def count(self, result: str) -> float:
        return self.sample("controller_runtime_reconcile_total", controller=self.name, result=result)

    def sample(self, series: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(series, labels) or 0.0


@every_kind
async def test_both_kinds_are_counted_under_their_names(kind: str) -> None:
    """The queue of InferenceServices had no metric, and the alert on a stuck queue did not see it."""
    loop = Loop(kind)
    assert loop.sample("workqueue_depth", name=loop.name) == 0
    loop.queue.add(("team", "somebody"))
    assert loop.sample("workqueue_depth", name=loop.name) == 1
    await loop.run(passes=2)
    assert loop.count("success") + loop.count("requeue_after") >= 2
    assert loop.count("error") == 0
    assert loop.sample("workqueue_adds_total", name=loop.name) >= 2
    assert loop.sample("controller_runtime_reconcile_time_seconds_count", controller=loop.name) >= 2
    assert loop.sample("workqueue_work_duration_seconds_count", name=loop.name) >= 2


@every_kind
@pytest.mark.parametrize(("error", "panics"), [(Unavailable("away"), 0), (KeyError("a bug"), 1)])
async def test_errors_are_counted_and_retried_and_a_fault_of_ours_is_told_apart(
    kind: str, error: Exception, panics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(kind)

    async def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(loop.cluster, "create", fail)
    await loop.run(passes=1)
    assert loop.count("error") == 1
    assert loop.sample("controller_runtime_reconcile_errors_total", controller=loop.name) == 1
    assert loop.sample("controller_runtime_reconcile_panics_total", controller=loop.name) == panics
    assert loop.sample("workqueue_retries_total", name=loop.name) == 1


@every_kind
async def test_a_lost_lease_ends_the_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(kind)

    async def fail(*_: Any) -> Any:
        raise LeaseLost("taken")

    monkeypatch.setattr(loop.cluster, "create", fail)
    with pytest.raises(LeaseLost):
        await loop.run(passes=1)
