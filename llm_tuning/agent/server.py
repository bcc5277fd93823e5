"""The pod's only door: an allow-list of paths, the API key, routes by weight, answers passed on as they come.

What is answered under an adapter's route comes from that adapter or is a 503 that says why. A model_id that the engine
does not know is answered by it with 404, never by its base, so even a restart between two looks makes no wrong answer.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llm_tuning.agent.client_stream import ClientStream
from llm_tuning.agent.completion import BrokeOff, Completion
from llm_tuning.agent.contract import DesiredRoute
from llm_tuning.agent.keeper import Keeper
from llm_tuning.agent.metrics import Metrics
from llm_tuning.agent.routing import NotServed, choose
from llm_tuning.engines.protocol import Engine
from llm_tuning.engines.vllm.stream import USAGE

log = logging.getLogger(__name__)

COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
MAX_BODY_BYTES = 8 * 2**20
REQUEST_SECONDS = 900.0
"""For one answer, from its first byte to its last."""
IDLE_SECONDS = 300.0
"""Without a byte from the engine: a long queue, or an engine that hangs."""
RETRY_AFTER_SECONDS = 2
MODEL_HEADER = "X-Model-Id"
"""Which adapter has answered; the base's name for the base."""
API_KEY_HEADER = "X-Api-Key"
"""In place of a bearer token: an API server's service proxy takes `Authorization` for its own and passes none on."""
PASSED_ON = ("Content-Type", "Cache-Control", "X-Request-Id")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class AgentServer:
    """`app` is what is served."""

    keeper: Keeper
    engine: Engine
    metrics: Metrics
    base_name: str
    api_key: str | None = None
    draining: bool = False
    _routes: tuple[str, dict[str, DesiredRoute]] = ("", {})
    _active: int = field(default=0)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guarded])
        for path in COMPLETIONS:
            app.router.add_post(path, self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        # For the kubelet.
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/live", self._live)
        app.router.add_get("/engine", self._health)
        return app

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return self._active

    # --- what is asked about the pod ---------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        up = self.keeper.engine_up
        return web.Response(text="ok" if up else self.keeper.engine_message, status=200 if up else 503)

    async def _ready(self, request: web.Request) -> web.Response:
        if self.draining:
            return web.Response(text="it is being ended", status=503)
        return web.Response(text="ok" if self.keeper.ready else "waiting", status=200 if self.keeper.ready else 503)

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _metrics(self, request: web.Request) -> web.Response:
        """The agent's, then the engine's own: vLLM's is on the loopback and would not be seen otherwise."""
        body = generate_latest(self.metrics.registry)
        try:
            body += await self.engine.metrics()
        except Exception:  # whatever it is, the agent's own count
            log.debug("no metrics of the engine", exc_info=True)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _models(self, request: web.Request) -> web.Response:
        """The base and the routes that would be answered now."""
        names: dict[str, str | None] = {}
        if self.keeper.engine_up:
            names[self.base_name] = None
        for route in self._known_routes().values():
            if not isinstance(choose(route, self.keeper.blocked, None), NotServed):
                names[route.name] = self.base_name
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "llm-tuning", "parent": parent}
            for name, parent in names.items()
        ]
        return web.json_response({"object": "list", "data": data})

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        body = await _json_object(request)
        name = body.get("model")
        if not isinstance(name, str):
            raise Refused(400, "model is required: the name of a route, or of the base", "invalid_request_error")
        served, route = self._served(name, body)
        body["model"] = served
        labels = (route, served if route != self.base_name else "")
        self._active += 1
        self.keeper.in_flight[served] += 1
        self.metrics.in_flight.inc()
        status = 499
        try:
            response = await self._forward(request, body, served, labels, began)
            status = response.status
            return response
        except Refused as refused:
            status = refused.status
            raise
        finally:
            self._active -= 1
            self.metrics.in_flight.dec()
            self.keeper.in_flight[served] -= 1
            if not self.keeper.in_flight[served]:
                del self.keeper.in_flight[served]
            self.metrics.requests.labels(*labels, str(status)).inc()
            if status >= 400:
                self.metrics.errors.labels(*labels).inc()

    def _served(self, name: str, body: dict[str, Any]) -> tuple[str, str]:
        """What the engine is asked for, and the label of the route."""
        if name == self.base_name:
            if not self.keeper.engine_up:
                raise self._unavailable(name, f"the engine is down: {self.keeper.engine_message}")
            return name, name
        route = self._known_routes().get(name)
        if route is None:
            raise Refused(404, f"there is no model {name!r} here; GET /v1/models lists them", "model_not_found")
        user = body.get("user")
        chosen = choose(route, self.keeper.blocked, user if isinstance(user, str) and user else None)
        if isinstance(chosen, NotServed):
            raise self._unavailable(name, chosen.why)
        return chosen, name

    def _unavailable(self, route: str, why: str) -> Refused:
        self.metrics.requests.labels(route, "", "503").inc()
        self.metrics.errors.labels(route, "").inc()
        return Refused(503, f"{route} is not served now: {why}", "not_served")

    def _known_routes(self) -> dict[str, DesiredRoute]:
        desired = self.keeper.desired
        if desired is None:
            return {}
        if self._routes[0] != desired.revision:
            self._routes = (desired.revision, {route.name: route for route in desired.routes})
        return self._routes[1]

    async def _forward(
        self, request: web.Request, body: dict[str, Any], served: str, labels: tuple[str, str], began: float
    ) -> web.StreamResponse:
        answer = None
        try:
            answer = await Completion.post(
                self.engine.url,
                request.path,
                json.dumps(body).encode(),
                idle_seconds=IDLE_SECONDS,
                total_seconds=REQUEST_SECONDS,
            )
            if answer.status == 404 and served != self.base_name:
                self.keeper.lost(served)
                raise Refused(503, f"{served} was lost with a restart of the engine and is loaded again", "not_served")
            headers = {name: answer.headers[name.lower()] for name in PASSED_ON if name.lower() in answer.headers}
            headers[MODEL_HEADER] = served
            if headers.get("Content-Type", "").startswith("text/event-stream"):
                return await self._stream(request, answer, headers, labels, began)
            content = await answer.read()
            self.metrics.first_token.labels(*labels).observe(time.monotonic() - began)
            self._count_usage(labels, content)
            return web.Response(status=answer.status, body=content, headers=headers)
        except TimeoutError:
            raise Refused(504, "the engine took too long", "timeout") from None
        except BrokeOff as error:
            raise Refused(503, f"the engine broke off: {error}", "not_served") from None
        finally:
            if answer is not None:
                answer.close()

    async def _stream(
        self,
        request: web.Request,
        answer: Completion,
        headers: dict[str, str],
        labels: tuple[str, str],
        began: float,
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=headers)
        first_token = self.metrics.first_token.labels(*labels)
        client = ClientStream(request, response, lambda: first_token.observe(time.monotonic() - began))
        await client.begin()
        failure = None
        try:
            await answer.pass_on(client.write, client.is_full)
        except (BrokeOff, TimeoutError) as error:
            # The head is out: an event says it, and no [DONE] follows.
            why = "the engine took too long" if isinstance(error, TimeoutError) else f"the engine broke off: {error}"
            failure = _error(why, "engine_failed", 503)
        if failure or client.failed:
            self.metrics.errors.labels(*labels).inc()
        if not self._count_usage(labels, client.usage):
            self.metrics.completion_tokens.labels(*labels).inc(max(client.events - 2, 0))  # the role, and [DONE]
        await client.end(failure)
        return response

    def _count_usage(self, labels: tuple[str, str], content: bytes) -> bool:
        """Count the tokens by the `usage` of an answer, or of a stream's last event; False where there is none."""
        if USAGE not in content:
            return False
        text = content
        if text.startswith(b"data: ") or b"\ndata: " in text:
            events = [line[6:] for line in text.split(b"\n") if line.startswith(b"data: ") and USAGE in line]
            text = events[-1] if events else b""
        try:
            usage = json.loads(text)["usage"]
            self.metrics.prompt_tokens.labels(*labels).inc(usage.get("prompt_tokens") or 0)
            self.metrics.completion_tokens.labels(*labels).inc(usage.get("completion_tokens") or 0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    # --- around each request -----------------------------------------------------------------------------------------

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path.startswith("/v1/"):
                self._check_key(request)
            return await handler(request)
        except Refused as refused:
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if refused.status == 503 else {}
            if refused.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            body = _error(str(refused), refused.code, refused.status)
            return web.json_response(body, status=refused.status, headers=headers)
        except web.HTTPException as error:
            return web.json_response(_error(error.reason, "invalid_request_error", error.status), status=error.status)
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception:
            log.exception("a fault of the agent")
            return web.json_response(_error("a fault of the agent; its log has it", "internal_error", 500), status=500)

    def _check_key(self, request: web.Request) -> None:
        if self.api_key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if API_KEY_HEADER in request.headers:
            scheme, given = "bearer", request.headers[API_KEY_HEADER]
        # A header may hold any bytes, which aiohttp reads as surrogates.
        bytes_given, key = (text.encode(errors="surrogateescape") for text in (given.strip(), self.api_key))
        if scheme.lower() != "bearer" or not hmac.compare_digest(bytes_given, key):
            raise Refused(401, "an API key is required: Authorization: Bearer ...", "invalid_api_key")


class Refused(Exception):  # noqa: N818 - an answer
    """An answer that says why not."""

    def __init__(self, status: int, message: str, code: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


def _error(message: str, code: str, status: int) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON", "invalid_request_error") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object", "invalid_request_error")
    return body
