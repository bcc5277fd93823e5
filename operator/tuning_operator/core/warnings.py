"""The Warning Events of a namespace, read once for all that ask within some seconds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from tuning_operator.core.cluster import Cluster
from tuning_operator.core.errors import ClusterError

WARNINGS_SECONDS = 3.0
"""How old a namespace's list may be: a hundred stuck jobs need one list, not a hundred."""


@dataclass
class Warnings:
    """Share lists between reconciles that run at once."""

    cluster: Cluster
    _lists: dict[str, tuple[float, asyncio.Task[list[dict[str, Any]]]]] = field(default_factory=dict)

    async def of(self, namespace: str) -> list[dict[str, Any]]:
        """List them; raises ClusterError."""
        now = time.monotonic()
        known = self._lists.get(namespace)
        if known is None or now - known[0] > WARNINGS_SECONDS:
            known = self._lists[namespace] = (now, asyncio.ensure_future(self.cluster.list_warnings(namespace)))
        try:
            return await asyncio.shield(known[1])
        except ClusterError:
            self._lists.pop(namespace, None)
            raise
