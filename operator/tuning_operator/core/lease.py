"""The Lease that lets one operator write at a time.

A holder that cannot renew stops writing before another may begin: it counts from before its last renewal was sent,
on a clock that is never set, and a process that was paused finds its time over when it continues.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from tuning_operator.core.errors import AlreadyExists, ClusterError, Conflict, LeaseLost

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
"""Another may take over so long after it first saw the last renewal."""
HOLD_SECONDS = 10.0
"""The holder writes so long after its last renewal: shorter, so that two never overlap."""
RETRY_SECONDS = 2.0


class Leases(Protocol):
    """What of the cluster is needed."""

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any] | None: ...
    async def create_lease(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]: ...
    async def replace_lease(self, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]: ...


class Lease:
    """`acquire`, then keep `hold` running; `check` before each write.

    A holder of the same `identity` is taken over from at once: it must be one that has ended. A pod's name is such: its
    container is started again only after it has ended.
    """

    def __init__(
        self,
        cluster: Leases,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self.identity = identity
        self._clock = clock
        self._held_until = float("-inf")
        self._seen: tuple[str, float] = ("", 0.0)

    def held(self) -> bool:
        return self._clock() < self._held_until

    def check(self) -> None:
        """Raise LeaseLost unless the Lease is held now."""
        if not self.held():
            raise LeaseLost(f"Lease {self._namespace}/{self._name} is not held by {self.identity}")

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        waiting = False
        while not await self._try():
            if not waiting:
                log.info("waiting for the lease", extra={"keys": {"lease": self._name}})
                waiting = True
            await asyncio.sleep(RETRY_SECONDS)
        log.info("lease acquired", extra={"keys": {"lease": self._name, "identity": self.identity}})

    async def hold(self) -> None:
        """Renew for as long as that works; raises LeaseLost when it no longer does."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            await self._try()
            self.check()

    async def release(self) -> None:
        """Give the Lease back, so that another replica acquires it at once."""
        if not self.held():
            return
        self._held_until = float("-inf")
        try:
            lease = await self._cluster.read_lease(self._namespace, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._cluster.replace_lease(self._namespace, self._name, lease)
        except ClusterError as error:
            log.info("the lease was not released: %s", error)

    async def _try(self) -> bool:
        """Take or renew the Lease; False where it is another's or there was no answer in time."""
        sent = self._clock()
        try:
            lease = await self._cluster.read_lease(self._namespace, self._name)
            if lease is None:
                body = {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": self._name, "namespace": self._namespace},
                    "spec": self._spec({}),
                }
                await self._cluster.create_lease(self._namespace, body)
            elif self._is_free(lease["spec"]):
                lease["spec"] = self._spec(lease["spec"])
                await self._cluster.replace_lease(self._namespace, self._name, lease)
            else:
                return False
        except (AlreadyExists, Conflict):
            return False  # another replica was faster
        except ClusterError as error:
            log.warning("the lease cannot be renewed: %s", error)
            return False
        self._held_until = sent + HOLD_SECONDS
        return self.held()  # an answer that took too long is none

    def _is_free(self, spec: dict[str, Any]) -> bool:
        """Return whether it is held by this process or by none, or its last renewal was first seen a duration ago."""
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self.identity):
            return True
        renewal = f"{holder} {spec.get('renewTime')}"
        if self._seen[0] != renewal:
            self._seen = (renewal, self._clock())
        return self._clock() - self._seen[1] > float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)

    def _spec(self, old: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        taken = old.get("holderIdentity") != self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "acquireTime": now if taken else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + int(taken and bool(old)),
        }
