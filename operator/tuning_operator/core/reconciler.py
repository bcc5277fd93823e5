"""Take keys from a queue and reconcile each: observe, desire, apply. The only place that writes for custom resources.

A kind adds what it observes and desires; how that is written, retried and measured is the same for all.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import ClassVar, Generic, TypeVar

from tuning_operator.core.cache import PODS, Cache, Key, Raw
from tuning_operator.core.cluster import KIND_NAMES, Cluster
from tuning_operator.core.desired import Desired
from tuning_operator.core.errors import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    LeaseLost,
    NotFound,
)
from tuning_operator.core.events import record_events
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.core.resource import CustomResource
from tuning_operator.core.settings import Settings
from tuning_operator.core.warnings import Warnings

log = logging.getLogger(__name__)

Observed = TypeVar("Observed", bound=CustomResource)


@dataclass
class Reconciler(ABC, Generic[Observed]):
    """Reconcile one kind. `run` may be called several times at once: the queue gives a key to one of them at a time."""

    kind: ClassVar[str]
    optional: ClassVar[tuple[str, ...]] = ()
    """Kinds of children whose refusal is for people to know, and not tried again."""

    cluster: Cluster
    cache: Cache
    queue: WorkQueue
    settings: Settings
    metrics: Metrics
    instance: str = ""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _warnings: Warnings = field(init=False)

    def __post_init__(self) -> None:
        self._warnings = Warnings(self.cluster)

    # --- what a kind adds -------------------------------------------------------------------------------------------

    @abstractmethod
    def observe(self, raw: Raw, warnings: Sequence[Raw] = ()) -> Observed:
        """Put together what the cache has of an object, with the Warning Events where they were read."""

    @abstractmethod
    def desire(self, observed: Observed) -> Desired:
        """Decide what is wanted now; pure."""

    def forget(self, key: Key) -> None:
        """Drop what is kept in memory of an object that is gone."""

    def publish(self, key: Key, observed: Observed) -> None:
        """Hand on what others wait for, before anything is written."""

    async def may_create(self, observed: Observed, kind: str, body: Raw) -> bool:
        """Return whether a wanted child may be created now; if not, a later reconcile asks again."""
        return True

    def status_due(self, observed: Observed, status: Raw) -> float:
        """Return in how many seconds this status may be written; 0: now."""
        return 0.0

    def status_written(self, key: Key) -> None:
        """Take note that the status was written."""

    # --- the loop ---------------------------------------------------------------------------------------------------

    @property
    def busy_since(self) -> dict[Key, float]:
        """Keys that are being reconciled, and since when; a reconcile that hangs is seen by it."""
        return self.queue.busy_since

    async def run(self) -> None:
        """Reconcile the keys of the queue until cancelled. Raises LeaseLost."""
        measured = self.metrics.controller(KIND_NAMES[self.kind].lower())
        while True:
            key = await self.queue.get()
            keys = {"object": "/".join(key)}
            try:
                with measured.reconcile():
                    requeue_after = await self.reconcile(key)
                self.queue.forget(key)
                measured.count("success" if requeue_after is None else "requeue_after")
            except LeaseLost:
                raise
            except ClusterError as error:
                seconds = self.queue.retry(key)
                measured.count("error")
                level = logging.ERROR if isinstance(error, Forbidden) else logging.INFO
                log.log(level, "reconcile failed: %s", error, extra={"keys": {**keys, "retry_seconds": seconds}})
            except Exception:
                self.queue.retry(key)
                measured.count("error", panic=True)
                log.exception("reconcile failed", extra={"keys": keys})
            finally:
                self.queue.done(key)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile `key`; returns the seconds until it is due again. Raises ClusterError where it is to be retried."""
        raw = self.cache.get(self.kind, *key)
        if raw is None:
            self.forget(key)
            return None
        observed = self.observe(raw)
        desired = self.desire(observed)
        if desired.needs_pods:
            for pod in await self.cluster.list_pods_of(key[0], observed.uid):
                self.cache.put(PODS, pod)
            observed = self.observe(raw)
            desired = self.desire(observed)
        if desired.needs_events:
            observed = self.observe(raw, await self._warnings.of(key[0]))
            desired = self.desire(observed)
        self.publish(key, observed)
        await self._apply(key, observed, desired)
        if desired.requeue_after is not None:
            self.queue.add_after(key, desired.requeue_after)
        return desired.requeue_after

    async def _apply(self, key: Key, observed: Observed, desired: Desired) -> None:
        """Write children first, then the status, then Events: what the status says is then so."""
        refused: ClusterError | None = None
        for kind, body in desired.create:
            try:
                await self._create(key, observed, kind, body)
            except (Forbidden, Invalid) as error:
                refused = error
                break
        for kind, body in desired.apply if refused is None else ():
            try:
                self.cache.put(kind, await self.cluster.apply(kind, body))
                self._log("applied", key, kind, body["metadata"]["name"])
            except (Forbidden, Invalid) as error:
                refused = error
                break
        if refused is not None:  # that is for people to know, and tried again, with back-off
            observed = replace(observed, refusals={kind: str(refused)})
            desired = replace(self.desire(observed), create=[], apply=[])
        for ref in desired.delete:
            await self.cluster.delete(ref.kind, key[0], ref.name, ref.uid)
            self._log("deleted", key, ref.kind, ref.name)
        if desired.create:  # the key is queued again: a thousand Jobs come before their statuses
            return
        await self._write_status(key, observed, desired)
        if refused is not None and kind not in self.optional:
            raise refused

    async def _create(self, key: Key, observed: Observed, kind: str, body: Raw) -> None:
        if not await self.may_create(observed, kind, body):
            return
        metadata = body["metadata"]
        try:
            made = await self.cluster.create(kind, body)
        except AlreadyExists:
            # Made by an earlier reconcile whose answer was lost, or by another: the next one sees which.
            await self._refresh(kind, metadata["namespace"], metadata["name"])
            raise
        self.cache.put(kind, made)
        self.queue.add(key)
        self._log("created", key, kind, metadata["name"])

    async def _write_status(self, key: Key, observed: Observed, desired: Desired) -> None:
        """Write the status if it has changed, then Events."""
        if desired.status is None or desired.status == observed.raw.get("status"):
            return
        if (seconds := self.status_due(observed, desired.status)) > 0:
            self.queue.add_after(key, seconds)
            return
        try:
            answer = await self.cluster.apply_status(self.kind, observed.raw, desired.status)
        except NotFound:
            self.cache.forget(self.kind, dict(observed.raw))
            return
        except Conflict:
            await self._refresh(self.kind, *key)
            raise
        self.cache.put(self.kind, answer)
        self.status_written(key)
        await record_events(
            self.cluster, self.kind, observed.raw, desired.events, now=self.now(), instance=self.instance
        )

    async def _refresh(self, kind: str, namespace: str, name: str) -> None:
        """Take an object as it is now, without waiting for the watch."""
        raw = await self.cluster.read(kind, namespace, name)
        if raw is not None:
            self.cache.put(kind, raw)

    def _log(self, what: str, key: Key, kind: str, name: str) -> None:
        log.info(what, extra={"keys": {"object": "/".join(key), "kind": kind, "child": name}})
