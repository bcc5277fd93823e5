"""The Kubeflow Trainer status protocol: POST where the run is to the endpoint that the pod's environment names.

    POST $KUBEFLOW_TRAINER_SERVER_URL     Authorization: Bearer <content of the file $KUBEFLOW_TRAINER_SERVER_TOKEN>
    {"trainerStatus": {"lastUpdatedTime": RFC 3339, "progressPercentage": 0..100, "estimatedRemainingSeconds": n,
                       "metrics": [{"name": "loss", "value": "2.1"}, ...]}}

The names of metrics are those that transformers' KubeflowCallback sends. That callback itself is not used: it posts
in the training step with a time-out of five seconds, so that a silent endpoint can cost five seconds a step.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from llm_tuning.core.ca import trusting
from llm_tuning.core.figures import ON_THE_WIRE, wire_name
from llm_tuning.progress.snapshot import Snapshot

log = logging.getLogger(__name__)

REQUEST_SECONDS = 2.0
"""Time-out of one request; only the progress thread waits."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another server."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass
class StatusEndpoint:
    """Posts snapshots to `url`. A failure is logged once and never raised; the next interval tries again."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    interval_seconds: float = 5.0
    may_block: bool = True
    _failing: bool = False
    _tls: tuple[int, ssl.SSLContext] | None = None

    __hash__ = object.__hash__

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the endpoint that a trainer pod is given; None outside of one."""
        url = os.environ.get("KUBEFLOW_TRAINER_SERVER_URL")
        if not url:
            return None
        token, ca = (os.environ.get(f"KUBEFLOW_TRAINER_SERVER_{name}") for name in ("TOKEN", "CA_CERT"))
        return cls(url, Path(token) if token else None, Path(ca) if ca else None)

    def show(self, now: Snapshot) -> None:
        self._post(now)

    def close(self, last: Snapshot) -> None:
        self._post(last)

    def _post(self, now: Snapshot) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            if self.token_file is not None:
                # Read each time: the kubelet replaces a projected token before it expires.
                headers["Authorization"] = f"Bearer {self.token_file.read_text().strip()}"
            request = urllib.request.Request(self.url, json.dumps(status_message(now)).encode(), headers)
            with self._opener().open(request, timeout=REQUEST_SECONDS):
                self._failing = False
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not self._failing:
                log.warning("progress cannot be reported to the status endpoint: %s", error)
            self._failing = True

    def _opener(self) -> urllib.request.OpenerDirector:
        # No proxy: the endpoint is inside the cluster.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if self.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=self._tls_context()))
        return urllib.request.build_opener(*handlers)

    def _tls_context(self) -> ssl.SSLContext:
        """Build a TLS context for the CA in `ca_file` of now, for it may be rotated; without one, for the system's CAs.

        Kept while the file stays the same: reading the system's CAs takes 50 ms.
        """
        version = self.ca_file.stat().st_mtime_ns if self.ca_file else 0
        if self._tls is None or self._tls[0] != version:
            self._tls = (version, trusting(self.ca_file) if self.ca_file else ssl.create_default_context())
        return self._tls[1]


def status_message(now: Snapshot) -> dict[str, Any]:
    """Build the body of a POST."""
    progress = now.progress()
    metrics = {name: value for field, name in ON_THE_WIRE.items() if (value := getattr(progress, field)) is not None}
    metrics |= {wire_name(name): value for name, value in now.metrics.items()}  # unrounded, and perhaps not finite
    status: dict[str, Any] = {
        "lastUpdatedTime": datetime.now(UTC).isoformat(),
        "progressPercentage": progress.percent,
        "metrics": [{"name": name, "value": str(value)} for name, value in {**metrics, **now.words}.items()],
    }
    if progress.remaining_seconds is not None:
        status["estimatedRemainingSeconds"] = progress.remaining_seconds
    return {"trainerStatus": status}
