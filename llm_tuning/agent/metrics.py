"""Metrics of a pod's answers for Prometheus, by route and adapter."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llm_tuning.agent.keeper import Keeper

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LABELS = ("route", "model_id")
CLIENT_LEFT = 499
"""The code of a request whose client went away before the answer was whole, after nginx."""
EFFECTIVE = {"True": 1.0, "False": 0.0, "Unknown": -1.0}


class Metrics:
    """`model_id` is empty for the base, and where no adapter could answer."""

    def __init__(self, keeper: Keeper) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llm_tuning_requests", "Answered requests by HTTP status.", [*LABELS, "code"], registry=self.registry
        )
        self.errors = Counter(
            "llm_tuning_errors",
            "Requests that were refused, failed or were cut by the engine.",
            LABELS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "llm_tuning_prompt_tokens", "Prompt tokens, of answers that report their usage.", LABELS,
            registry=self.registry,
        )  # fmt: skip
        self.completion_tokens = Counter(
            "llm_tuning_completion_tokens",
            "Generated tokens; a streamed answer that does not report its usage counts one a chunk.",
            LABELS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "llm_tuning_first_token_seconds",
            "From the request to the first byte of the answer: the first token where it is streamed.",
            LABELS,
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("llm_tuning_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.registry.register(_Adapters(keeper))

    def count(self, labels: tuple[str, str], status: int) -> None:
        """Count a request. One whose client left is no error: pages of a chat cancel their streams all day."""
        self.requests.labels(*labels, str(status)).inc()
        if status >= 400 and status != CLIENT_LEFT:
            self.errors.labels(*labels).inc()


class _Adapters(Collector):
    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterable[GaugeMetricFamily]:
        report = self._keeper.report()
        yield GaugeMetricFamily("llm_tuning_engine_up", "Whether vLLM answers.", value=float(report.engine_up))
        loaded = GaugeMetricFamily("llm_tuning_adapter_loaded", "Whether the engine has it.", labels=["model_id"])
        effective = GaugeMetricFamily(
            "llm_tuning_adapter_effective", "1 proven, 0 without or with another effect, -1 unknown.",
            labels=["model_id"],
        )  # fmt: skip
        for adapter in report.adapters:
            loaded.add_metric([adapter.model_id], float(adapter.loaded))
            effective.add_metric([adapter.model_id], EFFECTIVE[adapter.effective])
        yield from (loaded, effective)
