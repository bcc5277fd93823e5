"""What the adapter agents have reported, and what they are to serve: both in memory, exchanged again after a restart.

The worker publishes what each InferenceService wants; an agent's report is answered when that is not what it acts on,
or after REPORT_SECONDS.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_tuning.agent.contract import REPORT_SECONDS, DesiredRoutes, Report
from tuning_operator.core.cache import Key
from tuning_operator.core.constants import STALE_REPORT_SECONDS


@dataclass
class Agents:
    """`changed(key)` is called when a report is news."""

    changed: Callable[[Key], None] = lambda key: None
    clock: Callable[[], float] = time.monotonic
    hold_seconds: float = REPORT_SECONDS
    _reports: dict[Key, dict[str, tuple[float, Report]]] = field(default_factory=dict)
    """By InferenceService and the pod's uid: when, and what."""
    _desired: dict[Key, DesiredRoutes] = field(default_factory=dict)
    _waiting: dict[Key, asyncio.Event] = field(default_factory=dict)

    def publish(self, key: Key, desired: DesiredRoutes) -> None:
        """Set what the agents of `key` are to serve, and wake those that wait if it changed."""
        if self._desired.get(key) == desired:
            return
        self._desired[key] = desired
        self._wake(key)

    def forget(self, key: Key) -> None:
        """Drop routes and reports of an InferenceService that is gone."""
        self._reports.pop(key, None)
        self._desired.pop(key, None)
        self._wake(key)

    def keep_only(self, key: Key, pods: set[str]) -> None:
        """Drop the reports of pods that are gone."""
        known = self._reports.get(key, {})
        for uid in known.keys() - pods:
            del known[uid]

    def reports(self, key: Key) -> dict[str, Report]:
        """Return the reports not older than STALE_REPORT_SECONDS, by the uid of the pod."""
        oldest = self.clock() - STALE_REPORT_SECONDS
        return {uid: report for uid, (at, report) in self._reports.get(key, {}).items() if at >= oldest}

    async def exchange(self, key: Key, pod_uid: str, report: Report) -> DesiredRoutes | None:
        """Take a report; returns the routes wanted instead of those it acts on, or None after a while."""
        known = self._reports.setdefault(key, {})
        before = known.get(pod_uid)
        known[pod_uid] = (self.clock(), report)
        if before is None or before[1] != report or self.clock() - before[0] > STALE_REPORT_SECONDS:
            self.changed(key)
        try:
            async with asyncio.timeout(self.hold_seconds):
                while True:
                    desired = self._desired.get(key)
                    if desired is not None and desired.revision != report.revision:
                        return desired
                    await self._waiting.setdefault(key, asyncio.Event()).wait()
        except TimeoutError:
            return None

    def _wake(self, key: Key) -> None:
        """Wake every agent request that waits for a change of `key`; a later one waits for the next change."""
        if (waiting := self._waiting.pop(key, None)) is not None:
            waiting.set()
