"""Record Kubernetes Events on a custom resource: one object for each content, however often it happens.

The name follows from the content, so that a repeat, or an operator that died in between, counts one up.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from llm_tuning.api.kube import API_VERSION
from tuning_operator.core.cluster import KIND_NAMES, Cluster
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.constants import MANAGED_BY
from tuning_operator.core.desired import Event
from tuning_operator.core.errors import ClusterError

log = logging.getLogger(__name__)


def event_name(raw: Mapping[str, Any], event: Event) -> str:
    """Form `NAME.HASH`, the hash over the object's uid and the Event's content."""
    content = f"{raw['metadata']['uid']}\n{event.type}\n{event.reason}\n{event.message}"
    return f"{raw['metadata']['name']}.{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def build_event(kind: str, raw: Mapping[str, Any], event: Event, now: datetime, instance: str) -> dict[str, Any]:
    """Build the Event as it is created."""
    metadata = raw["metadata"]
    involved = {
        "apiVersion": API_VERSION,
        "kind": KIND_NAMES[kind],
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(raw, event), "namespace": metadata["namespace"]},
        "involvedObject": involved,
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
        "source": {"component": MANAGED_BY},
        "reportingComponent": MANAGED_BY,
        "reportingInstance": instance,
    }


async def record_events(
    cluster: Cluster, kind: str, raw: Mapping[str, Any], events: list[Event], *, now: datetime, instance: str
) -> None:
    """Write `events`. A failure is logged, and never fails the reconcile: the status is what counts."""
    for event in events:
        body = build_event(kind, raw, event, now, instance)
        try:
            await cluster.write_event(body["metadata"]["namespace"], body["metadata"]["name"], body, _repeated)
        except ClusterError as error:
            log.warning("an event was not written: %s", error)


def _repeated(first: Mapping[str, Any]) -> dict[str, Any]:
    """Count a repetition of the Event: as two, since without a right to read Events by name the count is not known."""
    return {"count": 2, "lastTimestamp": first["lastTimestamp"]}
