"""Takes keys from a queue and has a pass over each: what the passes over both custom resources share."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tuning_operator.core.cache import Key, Store
from tuning_operator.core.cluster import Cluster
from tuning_operator.core.errors import ClusterError, Forbidden, LeaseLost
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.core.settings import Settings

log = logging.getLogger(__name__)

WARNINGS_SECONDS = 3.0
"""How old a namespace's list of Warning Events may be: a hundred stuck jobs need one list, not a hundred."""


@dataclass
class PassLoop(ABC):
    """`run` may be called several times at once: the queue gives a key to one loop at a time."""

    cluster: Cluster
    store: Store
    queue: WorkQueue
    settings: Settings
    metrics: Metrics
    instance: str = ""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    busy_since: dict[Key, float] = field(default_factory=dict)
    """Keys that are being looked at, and since when; a hanging pass is seen by it."""
    _warnings: dict[str, tuple[float, asyncio.Task[list[dict[str, Any]]]]] = field(default_factory=dict)

    @abstractmethod
    async def reconcile(self, key: Key) -> None:
        """One pass. Raises ClusterError where it has to be tried again."""

    async def run(self) -> None:
        """Work until cancelled. Raises LeaseLost."""
        while True:
            key = await self.queue.get()
            self.busy_since[key] = time.monotonic()
            result, keys = "done", {"object": "/".join(key)}
            try:
                with self.metrics.pass_seconds.time():
                    await self.reconcile(key)
                self.queue.forget(key)
            except LeaseLost:
                raise
            except ClusterError as error:
                result = type(error).__name__
                seconds = self.queue.retry(key)
                level = logging.ERROR if isinstance(error, Forbidden) else logging.INFO
                log.log(level, "pass failed: %s", error, extra={"keys": {**keys, "retry_seconds": seconds}})
            except Exception:
                result = "error"
                self.queue.retry(key)
                log.exception("pass failed", extra={"keys": keys})
            finally:
                self.metrics.passes.labels(result).inc()
                self.busy_since.pop(key, None)
                self.queue.done(key)

    async def warnings_in(self, namespace: str) -> list[dict[str, Any]]:
        """The namespace's Warning Events, read once for all that ask within some seconds."""
        now = time.monotonic()
        known = self._warnings.get(namespace)
        if known is None or now - known[0] > WARNINGS_SECONDS:
            known = (now, asyncio.ensure_future(self.cluster.list_warnings(namespace)))
            self._warnings[namespace] = known
        try:
            return await asyncio.shield(known[1])
        except ClusterError:
            self._warnings.pop(namespace, None)
            raise
