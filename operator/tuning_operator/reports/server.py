"""The HTTPS server that training pods report their progress to, and adapter agents the state of their engines.

Anything in the cluster can reach it, so each request costs little before it is known who sends it: sizes and times are
bounded, a token is verified without the API server, and nothing of a request is logged but the names in its path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from llm_tuning.agent.contract import REPORT_SECONDS, DesiredRoutes, Report, parse_report
from llm_tuning.errors import InputError
from tuning_operator.core.cache import INFERENCE_SERVICES
from tuning_operator.core.errors import ClusterError
from tuning_operator.pods.trouble import Reported
from tuning_operator.reports.connections import Connections
from tuning_operator.reports.protocol import parse_reported
from tuning_operator.reports.rate_limit import RateLimit
from tuning_operator.reports.tokens import Sender, TokenRefused, TokenVerifier

log = logging.getLogger(__name__)

PATH = "/v1/namespaces/{namespace}/tuningjobs/{name}/status"
FETCH_PATH = "/v1/namespaces/{namespace}/inferenceservices/{name}/status"
AGENT_PATH = "/v1/namespaces/{namespace}/inferenceservices/{name}/report"
MAX_BODY_BYTES = 64 * 1024
"""A trainer's report is about 1 KiB."""
MAX_AGENT_BODY_BYTES = 1024 * 1024
"""An agent's holds half a KiB for each adapter."""
REQUEST_SECONDS = 5.0
"""For one request; a trainer gives up after two."""
CONNECTION_SECONDS = 10.0
"""Between two inspections of the connections: those open at the last one are closed. A trainer makes one a post."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Sink = Callable[[tuple[str, str], Reported], None]
"""Takes the newest report of the TuningJob, or of the InferenceService that fetches, (namespace, name)."""
Exchange = Callable[[tuple[str, str], str, Report], Awaitable[DesiredRoutes | None]]
"""Takes the report of an agent, by the uid of its pod, and waits for what is wanted instead; None: nothing else."""
Count = Callable[[int], None]
"""Takes the HTTP status of each answer, for the metrics."""


@dataclass
class ProgressServer:
    """`start` listens; `port` is then the real one; `close` ends it."""

    verifier: TokenVerifier
    sink: Sink
    ssl_context: ssl.SSLContext
    exchange: Exchange | None = None
    fetch_sink: Sink | None = None
    host: str | None = None
    port: int = 8443
    count: Count = lambda status: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    limit: RateLimit = field(default_factory=RateLimit)
    log_limit: RateLimit = field(default_factory=lambda: RateLimit(per_second=0.2))
    """Refusals are logged, a flood of them is not."""
    _runner: web.AppRunner | None = None
    _connections: Connections | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _held: set[object] = field(default_factory=set)
    """Connections whose answer is held back on purpose."""

    async def start(self) -> None:
        app = web.Application(client_max_size=MAX_AGENT_BODY_BYTES, middlewares=[self._answered])
        app.router.add_post(PATH, self._report)
        app.router.add_post(FETCH_PATH, self._fetch_report)
        app.router.add_post(AGENT_PATH, self._agent_report)
        # Bodies stay as they come: a compressed one could be far larger than it looks.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=CONNECTION_SECONDS,
            lingering_time=2.0,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._connections = Connections(self._runner.server, self.ssl_context)
        self.port = self._connections.listen(self.host, self.port)
        self._tasks = [
            asyncio.create_task(self._connections.accept()),
            asyncio.create_task(self._close_lingering(self._runner.server)),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connections:
            self._connections.close()
        if self._runner:
            await self._runner.cleanup()

    async def _report(self, request: web.Request) -> web.Response:
        key = _key(request)
        return await self._take(request, await self.verifier.verify(_bearer_token(request), *key), self.sink)

    async def _fetch_report(self, request: web.Request) -> web.Response:
        """Take what the pod reports that fetches an InferenceService's base."""
        if self.fetch_sink is None:
            return _Refusal(404, "Not Found")
        token, key = _bearer_token(request), _key(request)
        pod = await self.verifier.verify(token, *key, kind=INFERENCE_SERVICES, fetches=True)
        return await self._take(request, pod, self.fetch_sink)

    async def _take(self, request: web.Request, pod: Sender, sink: Sink) -> web.Response:
        self._is_known(request)
        if not self.limit.allows(pod.uid):
            return _Refusal(429, f"more than {self.limit.per_second:.0f} reports a second")
        body = await request.read()
        if len(body) > MAX_BODY_BYTES:
            return _Refusal(413, f"a report has at most {MAX_BODY_BYTES} bytes")
        sink(_key(request), parse_reported(body, self.now()))
        return web.Response(status=200)

    async def _agent_report(self, request: web.Request) -> web.Response:
        """Hold the answer back until other routes are wanted: 200 with them, or 204 after some seconds."""
        if self.exchange is None:
            return _Refusal(404, "Not Found")
        key = _key(request)
        async with asyncio.timeout(REQUEST_SECONDS):
            pod = await self.verifier.verify(_bearer_token(request), *key, kind=INFERENCE_SERVICES)
            self._is_known(request)
            if not self.limit.allows(pod.uid):
                return _Refusal(429, f"more than {self.limit.per_second:.0f} reports a second")
            report = parse_report(await request.read())
        self._held.add(request.protocol)
        try:
            desired = await self.exchange(key, pod.uid, report)
        finally:
            self._held.discard(request.protocol)
        if desired is None:
            return web.Response(status=204)
        return web.Response(text=desired.encode(), content_type="application/json")

    def _is_known(self, request: web.Request) -> None:
        if self._connections is not None:
            self._connections.known(request.protocol)

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every fault as a status with a message; of what is logged, only the path comes from the sender."""
        response = await _response_of(request, handler)
        self.count(response.status)
        if isinstance(response, _Refusal) and self.log_limit.allows(""):
            log.warning(
                "progress refused: status=%d path=%.200r reason=%s", response.status, request.path, response.why
            )
        return response

    async def _close_lingering(self, server: web.Server) -> None:
        """Close connections that never finish their first request, for which aiohttp has no time-out."""
        seen: set[web.RequestHandler] = set()
        while True:
            await asyncio.sleep(CONNECTION_SECONDS)
            connections = set(server.connections)
            for lingering in (connections & seen) - self._held:
                lingering.force_close()
            seen = connections


class _Refusal(web.Response):
    """An answer that says why not, in JSON."""

    def __init__(self, status: int, why: str) -> None:
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        super().__init__(
            status=status, text=json.dumps({"message": why}), content_type="application/json", headers=headers
        )
        self.why = why


async def _response_of(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        held = REPORT_SECONDS if request.path.endswith("/report") else 0.0
        async with asyncio.timeout(REQUEST_SECONDS + held):
            return await handler(request)
    except TimeoutError:
        return _Refusal(408, f"the request took longer than {REQUEST_SECONDS:.0f} seconds")
    except TokenRefused as refused:
        return _Refusal(refused.status, str(refused))
    except InputError as error:
        return _Refusal(400, str(error))
    except ClusterError:
        return _Refusal(503, "the cluster does not answer")
    except web.HTTPException as error:
        return _Refusal(error.status, error.reason)
    except Exception:
        log.exception("progress: fault of the server")
        return _Refusal(500, "a fault of the operator; its log has the details")


def _key(request: web.Request) -> tuple[str, str]:
    return request.match_info["namespace"], request.match_info["name"]


def _bearer_token(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenRefused(401, "a bearer token is required")
    return token.strip()
