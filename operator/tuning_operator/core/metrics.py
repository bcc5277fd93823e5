"""What Prometheus scrapes of the operator.

Reconciliations and queues have controller-runtime's and client-go's own names and labels, by kind: the dashboards and
alerts that a platform team has for its other operators show this one, too.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tuning_operator.core.cache import TUNING_JOBS, Cache
from tuning_operator.core.queue import QueueMetrics, WorkQueue

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds: a reconcile that writes nothing takes a millisecond, one that waits for the API server up to a minute."""
RESULTS = ("success", "error", "requeue_after")


class Metrics:
    """Counters that others bump; sizes are read when they are asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tuning_operator_api_requests",
            "Requests to the API server; code 0 where there was no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.reports = Counter(
            "tuning_operator_progress_reports", "Reports of trainers by HTTP status.", ["code"], registry=self.registry
        )
        self.resynced = Counter(
            "tuning_operator_resynced_objects", "Objects that a list healed after a watch.", registry=self.registry
        )
        self.closed_namespaces = Gauge(
            "tuning_operator_closed_namespaces",
            "Watched namespaces that the operator may not read: gone, or without its Role.",
            registry=self.registry,
        )
        self.reconciles = self._counter(
            "controller_runtime_reconcile",
            "Reconciliations by kind and result: success, error, or requeue_after.",
            "controller",
            "result",
        )
        self.errors = self._counter(
            "controller_runtime_reconcile_errors", "Reconciliations that failed and are tried again.", "controller"
        )
        self.panics = self._counter(
            "controller_runtime_reconcile_panics", "Those of them that are a fault of the operator.", "controller"
        )
        self.reconcile_seconds = self._histogram(
            "controller_runtime_reconcile_time_seconds", "Duration of a reconciliation.", "controller"
        )
        self.adds = self._counter("workqueue_adds", "Keys that were added to a queue.", "name")
        self.retries = self._counter("workqueue_retries", "Keys that were added again after a failure.", "name")
        self.queue_seconds = self._histogram(
            "workqueue_queue_duration_seconds", "How long a key waited in the queue.", "name"
        )
        self.work_seconds = self._histogram("workqueue_work_duration_seconds", "How long a key was worked on.", "name")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, label: str) -> Histogram:
        return Histogram(name, text, [label], buckets=BUCKETS, registry=self.registry)

    def count_request(self, verb: str, resource: str, status: int) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, resource, str(status)).inc()

    def count_report(self, status: int) -> None:
        """Count a report of a trainer or an agent."""
        self.reports.labels(str(status)).inc()

    def controller(self, name: str) -> ControllerMetrics:
        """Measure the reconciler of a kind."""
        return ControllerMetrics(self, name)

    def queue(self, name: str) -> QueueMetrics:
        """Measure the queue of a kind."""
        return _QueueMetrics(self, name)

    def watch(self, cache: Cache, queues: Mapping[str, WorkQueue]) -> None:
        """Show the sizes of the cache and of the queues, by their names."""
        self.registry.register(_Sizes(cache, queues))


@dataclass(frozen=True)
class ControllerMetrics:
    """The metrics of one reconciler; every result is there from the start, so that a rate knows its zero."""

    metrics: Metrics
    name: str

    def __post_init__(self) -> None:
        for result in RESULTS:
            self.metrics.reconciles.labels(self.name, result)
        self.metrics.errors.labels(self.name)
        self.metrics.panics.labels(self.name)

    @contextmanager
    def reconcile(self) -> Iterator[None]:
        """Measure a reconcile."""
        with self.metrics.reconcile_seconds.labels(self.name).time():
            yield

    def count(self, result: str, *, panic: bool = False) -> None:
        """Count a reconcile by its result."""
        self.metrics.reconciles.labels(self.name, result).inc()
        if result == "error":
            self.metrics.errors.labels(self.name).inc()
        if panic:
            self.metrics.panics.labels(self.name).inc()


class _QueueMetrics:
    def __init__(self, metrics: Metrics, name: str) -> None:
        self._adds, self._retries = metrics.adds.labels(name), metrics.retries.labels(name)
        self._waited, self._worked = metrics.queue_seconds.labels(name), metrics.work_seconds.labels(name)

    def added(self) -> None:
        self._adds.inc()

    def retried(self) -> None:
        self._retries.inc()

    def got(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def done(self, seconds: float) -> None:
        self._worked.observe(seconds)


class _Sizes(Collector):
    def __init__(self, cache: Cache, queues: Mapping[str, WorkQueue]) -> None:
        self._cache, self._queues = cache, queues

    def collect(self) -> Iterable[GaugeMetricFamily]:
        depth = GaugeMetricFamily("workqueue_depth", "Keys that wait in a queue.", labels=["name"])
        work = GaugeMetricFamily(
            "workqueue_unfinished_work_seconds",
            "Seconds of work that is not done yet, over all workers.",
            labels=["name"],
        )
        longest = GaugeMetricFamily(
            "workqueue_longest_running_processor_seconds", "Of those, the longest.", labels=["name"]
        )
        for name, queue in self._queues.items():
            now = time.monotonic()
            running = [now - since for since in queue.busy_since.values()]
            depth.add_metric([name], len(queue))
            work.add_metric([name], sum(running))
            longest.add_metric([name], max(running, default=0.0))
        yield from (depth, work, longest)
        phases: Tally[str] = Tally(_phase(raw) for raw in self._cache.all(TUNING_JOBS))
        family = GaugeMetricFamily("tuning_jobs", "TuningJobs by phase.", labels=["phase"])
        for phase, number in sorted(phases.items()):
            family.add_metric([phase], number)
        yield family


def _phase(raw: dict[str, Any]) -> str:
    return str((raw.get("status") or {}).get("phase") or "Pending")
