"""Whether the operator lives and is ready, and its metrics, over plain HTTP for the kubelet and Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tuning_operator.core.cache import Key

HANG_SECONDS = 120.0
"""A reconcile is a few requests of at most 20 s each."""


class Health:
    """What makes /healthz fail (a restart helps) and /readyz (it waits)."""

    def __init__(self, busy_since: Callable[[], dict[Key, float]]) -> None:
        self._busy_since = busy_since
        self.ready = False
        self.stale_watch: str | None = None
        """Set when a list shows what a watch should have delivered long ago."""

    def problem(self) -> str | None:
        """Return why the process should be restarted (a stale watch, a reconcile that hangs), or None."""
        if self.stale_watch is not None:
            return self.stale_watch
        now = time.monotonic()
        for key, since in self._busy_since().items():
            if now - since > HANG_SECONDS:
                return f"the reconcile of {'/'.join(key)} hangs for {now - since:.0f} s"
        return None


class HealthServer:
    """Serves /healthz, /readyz and /metrics."""

    def __init__(self, health: Health, registry: CollectorRegistry, host: str, port: int) -> None:
        self._health, self._registry = health, registry
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host or None, self._port).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        problem = self._health.problem()
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    async def _readyz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok" if self._health.ready else "waiting", status=200 if self._health.ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
