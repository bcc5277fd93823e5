"""What Prometheus is told of the operator."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tuning_operator.core.cache import Store
from tuning_operator.core.queue import WorkQueue


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
        self.passes = Counter(
            "tuning_operator_passes", "Passes over a TuningJob by result.", ["result"], registry=self.registry
        )
        self.pass_seconds = Histogram("tuning_operator_pass_seconds", "Duration of a pass.", registry=self.registry)
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

    def count_request(self, verb: str, resource: str, status: int) -> None:
        self.requests.labels(verb, resource, str(status)).inc()

    def count_report(self, status: int) -> None:
        self.reports.labels(str(status)).inc()

    def watch(self, store: Store, queue: WorkQueue) -> None:
        """Show the sizes of both."""
        self.registry.register(_Sizes(store, queue))


class _Sizes(Collector):
    def __init__(self, store: Store, queue: WorkQueue) -> None:
        self._store, self._queue = store, queue

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield GaugeMetricFamily("tuning_operator_queue_length", "TuningJobs to be looked at.", value=len(self._queue))
        phases: Tally[str] = Tally(_phase(raw) for raw in self._store.tuning_jobs())
        family = GaugeMetricFamily("tuning_jobs", "TuningJobs by phase.", labels=["phase"])
        for phase, number in sorted(phases.items()):
            family.add_metric([phase], number)
        yield family


def _phase(raw: dict[str, Any]) -> str:
    return str((raw.get("status") or {}).get("phase") or "Pending")
