"""What Prometheus reads of a replica of the API: counts and times by endpoint; no key, no file, no model."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
ENDPOINTS = (
    "/v1/files",
    "/v1/files/{file_id}",
    "/v1/files/{file_id}/content",
    "/v1/fine_tuning/jobs",
    "/v1/fine_tuning/jobs/{job_id}",
    "/v1/fine_tuning/jobs/{job_id}/cancel",
    "/v1/fine_tuning/jobs/{job_id}/pause",
    "/v1/fine_tuning/jobs/{job_id}/resume",
    "/v1/fine_tuning/jobs/{job_id}/events",
    "/v1/fine_tuning/jobs/{job_id}/checkpoints",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/chat/completions",
    "/v1/completions",
)
OTHER = "other"
"""The endpoint of what is none: its path could be anything, and each would be a time series."""
METHODS = ("GET", "POST", "DELETE")
_MODEL = "/v1/models/{model}"
"""A model's name may have slashes."""
_PATTERNS = [
    (endpoint, re.compile(re.sub(r"\\{\w+\\}", ".+" if endpoint == _MODEL else "[^/]+", re.escape(endpoint))))
    for endpoint in ENDPOINTS
]


def endpoint_of(path: str) -> str:
    """Return which endpoint a path is, without its ids."""
    return next((endpoint for endpoint, pattern in _PATTERNS if pattern.fullmatch(path)), OTHER)


class Metrics:
    """Of this process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llm_tuning_api_requests", "Answered requests by HTTP status.", ["method", "endpoint", "code"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "llm_tuning_api_request_seconds",
            "From the request to the end of its answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "llm_tuning_api_first_byte_seconds",
            "From the request to the first byte of its answer: the first token of a stream.",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("llm_tuning_api_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.refused = Counter(
            "llm_tuning_api_refused",
            "Requests refused for who sent them: no_key, wrong_key, expired_key or role; not_local without keys.",
            ["reason"],
            registry=self.registry,
        )
        self.uploaded = Counter("llm_tuning_api_upload_bytes", "Bytes of uploads received.", registry=self.registry)

    def count(self, method: str, endpoint: str, status: int) -> None:
        """Count a request."""
        self.requests.labels(method if method in METHODS else OTHER, endpoint, str(status)).inc()
