"""How a pod reports where it is, and what is kept of that between two reconciles."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_tuning.api.tuning_job import Progress
from tuning_operator.core.cache import Key
from tuning_operator.core.constants import PROGRESS_CA_ANNOTATION, PROGRESS_SECONDS, TOKEN_SECONDS
from tuning_operator.core.queue import WorkQueue
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.trouble import Reported

REPORTING_FOLDER = "/var/run/llm-tuning"


def add_reporting(parts: PodParts, settings: Settings, *, path: str, audience: str) -> None:
    """Let the pod report to `path` over TLS, with a token that is good for this object alone and no API server."""
    if not (settings.progress_url and settings.ca_pem):
        return
    token = {"path": "token", "audience": audience, "expirationSeconds": TOKEN_SECONDS}
    authority = {"path": "ca.crt", "fieldRef": {"fieldPath": f"metadata.annotations['{PROGRESS_CA_ANNOTATION}']"}}
    sources = [{"serviceAccountToken": token}, {"downwardAPI": {"items": [authority]}}]
    parts.annotations[PROGRESS_CA_ANNOTATION] = settings.ca_pem
    parts.volumes.append({"name": "reporting", "projected": {"sources": sources}})
    parts.mounts.append({"name": "reporting", "mountPath": REPORTING_FOLDER, "readOnly": True})
    for name, value in {
        "KUBEFLOW_TRAINER_SERVER_URL": settings.progress_url + path,
        "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{REPORTING_FOLDER}/token",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": f"{REPORTING_FOLDER}/ca.crt",
    }.items():
        parts.environment.append({"name": name, "value": value})


@dataclass
class Reports:
    """The newest report of each object's pod, in memory; a status is written for it once in PROGRESS_SECONDS."""

    queue: WorkQueue
    _newest: dict[Key, tuple[str, Reported]] = field(default_factory=dict)
    _written: dict[Key, float] = field(default_factory=dict)

    def take(self, key: Key, uid: str, reported: Reported) -> None:
        """Keep a report of the object with this uid, and have it reconciled when it may be written.

        What a fetch waits for, or has resolved, is of now: that reconcile is at once.
        """
        before = self.of(key, uid)
        progress = with_last_loss(reported.progress, before.progress if before is not None else None)
        self._newest[key] = (uid, replace(reported, progress=progress))
        is_news = before is None or (before.revisions, before.waiting) != (reported.revisions, reported.waiting)
        self.queue.add_after(key, 0.0 if is_news else max(0.0, self._due(key)))

    def of(self, key: Key, uid: str) -> Reported | None:
        """Return the newest report, None where there is none of this uid."""
        known_of, reported = self._newest.get(key, (None, None))
        return reported if known_of == uid else None

    def status_due(self, key: Key, status: Mapping[str, Any], stored: Mapping[str, Any]) -> float:
        """Delay a write of progress alone to one in PROGRESS_SECONDS; anything else is due at once (0)."""
        return 0.0 if _without_progress(status) != _without_progress(stored) else self._due(key)

    def status_written(self, key: Key) -> None:
        """Take note that a status was written."""
        self._written[key] = time.monotonic()

    def forget(self, key: Key) -> None:
        """Drop what is kept of an object that is gone."""
        self._newest.pop(key, None)
        self._written.pop(key, None)

    def _due(self, key: Key) -> float:
        return self._written.get(key, float("-inf")) + PROGRESS_SECONDS - time.monotonic()


def with_last_loss(report: Progress, last: Progress | None) -> Progress:
    """Return `report`, where it has no loss with that of `last`: a start and some trainers report without one."""
    if report.loss is not None or last is None:
        return report
    return report.model_copy(update={"loss": last.loss})


def _without_progress(status: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key != "progress"}
