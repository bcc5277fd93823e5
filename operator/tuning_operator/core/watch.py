"""kopf's part: it watches, and every event goes into the cache. Nothing is decided here, and kopf writes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import kopf

from tuning_operator.core.cache import GROUPS, RESOURCES, Cache
from tuning_operator.core.constants import MANAGED_BY, MANAGED_BY_LABEL


async def watch(cache: Cache, namespaces: Sequence[str], stop: asyncio.Event, started: asyncio.Event) -> None:
    """Feed `cache` until `stop` is set, without namespaces from the whole cluster; `started` is set once kopf runs."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    for kind, (group, version) in GROUPS.items():
        labels = None if kind in RESOURCES else {MANAGED_BY_LABEL: MANAGED_BY}
        kopf.on.event(group, version, kind, id=kind, labels=labels, registry=registry)(_feeder(cache, kind))
    await kopf.operator(
        registry=registry,
        settings=_settings(),
        namespaces=list(namespaces),
        clusterwide=not namespaces,
        standalone=True,
        stop_flag=stop,
        ready_flag=started,
    )


def _feeder(cache: Cache, kind: str) -> Any:
    async def feed(type: str | None, body: kopf.Body, **_: Any) -> None:
        cache.apply_event(kind, type, dict(body))

    return feed


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    """Log in with the pod's service account or $KUBECONFIG, by kopf's own readers, without the heavy client."""
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)


def _settings() -> kopf.OperatorSettings:
    """Configure kopf as a watcher and nothing else."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are ours
    settings.peering.standalone = True  # a Lease of our own: peering is no leader election
    settings.scanning.disabled = True  # neither namespaces nor CRDs may be watched; those of the chart come first
    settings.watching.initial_streaming = True  # one object at a time instead of one list with all of them
    settings.watching.server_timeout = 300  # a watch is opened again now and then, whatever happened to it
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 5)  # an API server that restarts is back in seconds
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.queueing.error_delays = (0.5, 1, 2, 5, 10)
    settings.queueing.idle_timeout = 0.1  # of the task that each object has, which holds the object whole
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_is_not_of_kopfs_callback)
    return settings


def _is_not_of_kopfs_callback(record: logging.LogRecord) -> bool:
    """Filter out a fault of kopf (1.45.2, clients/api.py): a callback asks for the current task where there is none.

    It is an AssertionError with a traceback for each watch that was just being opened when all end, as when the API
    server stays away until the Lease is lost. The requests are cancelled all the same: they are tasks of their own.
    """
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or trace.tb_frame.f_code.co_name != "request_cancel_callback"


class _NoDiffs(kopf.DiffBaseStorage):
    """No handler asks what has changed, and finding out takes copies of every object: half of all time."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """Event handlers have no progress to keep."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence
