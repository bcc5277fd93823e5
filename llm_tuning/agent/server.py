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

import aiohttp
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llm_tuning.agent.body import Bodies, Body
from llm_tuning.agent.contract import DesiredRoute
from llm_tuning.agent.http.client_stream import USAGE_BYTES, ClientBody, ClientName, ClientStream
from llm_tuning.agent.http.completion import BrokeOff, Completion
from llm_tuning.agent.keeper import Keeper
from llm_tuning.agent.limits import MAX_CHOICES, check_limits, check_tools
from llm_tuning.agent.metrics import CLIENT_LEFT, Metrics
from llm_tuning.agent.quiet_log import quiet_logger
from llm_tuning.agent.refusal import Refused, error_json, shown
from llm_tuning.agent.routing import NotServed, choose
from llm_tuning.engines.protocol import Engine
from llm_tuning.engines.vllm.stream import USAGE

log = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
COMPLETIONS = (CHAT, "/v1/completions")
REQUEST_SECONDS = 900.0
"""For one answer, from its first byte to its last."""
IDLE_SECONDS = 300.0
"""Without a byte from the engine: a long queue, or an engine that hangs."""
HELD_ANSWER_BYTES = 2**20
"""Up to this size a plain answer is read whole; what is larger, or of unknown size, is passed on as it comes."""
MAX_ACTIVE = 1024
"""Requests at once: each may hold 128 KiB of its body in aiohttp's buffer before anything here reads it."""
RETRY_AFTER_SECONDS = 2
MODEL_HEADER = "X-Model-Id"
"""Which adapter has answered; the base's name for the base."""
API_KEY_HEADER = "X-Api-Key"
"""In place of a bearer token: an API server's service proxy takes `Authorization` for its own and forwards none."""
PASSED_ON = ("Content-Type", "Cache-Control", "X-Request-Id")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class _Question:
    """One request for a completion, once it is known who answers it."""

    asked: str
    """The name that the client sent."""
    served: str
    """What the engine calls it."""
    labels: tuple[str, str]
    began: float


@dataclass
class AgentServer:
    """`app` is what is served."""

    keeper: Keeper
    engine: Engine
    metrics: Metrics
    base_name: str
    api_key: str | None = None
    """None: everyone in reach is served. Blank: no client is, for no key can be right."""
    max_choices: int = MAX_CHOICES
    reads_tool_calls: bool = False
    """The engine parses answers for calls of tools."""
    draining: bool = False
    _bodies: Bodies = field(default_factory=Bodies)
    _routes: tuple[str, dict[str, DesiredRoute]] = ("", {})
    _active: int = field(default=0)

    def __post_init__(self) -> None:
        if self.api_key is not None:
            self.api_key = self.api_key.strip()  # a Secret made of a file ends with a line break
        if self.locked:
            log.error("the API key is empty: every request is refused; put a key into the Secret and restart the pods")

    @property
    def locked(self) -> bool:
        """A key is asked for, and there is none that could match."""
        return self.api_key == ""

    def runner(self, **options: Any) -> web.AppRunner:
        """Build the runner. A client that goes away ends its handler, and with it the request to the engine."""
        options = {"handler_cancellation": True, **options}
        return web.AppRunner(self.app(), access_log=None, auto_decompress=False, logger=quiet_logger(), **options)

    def app(self) -> web.Application:
        """Build the application with its routes, without a runner."""
        app = web.Application(middlewares=[self._guarded])
        for path in COMPLETIONS:
            app.router.add_post(path, self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
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

    # --- what the kubelet and Prometheus read ------------------------------------------------------------------------

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
        """Answer with the agent's metrics, then vLLM's: those are on the loopback and would not be seen otherwise."""
        body = generate_latest(self.metrics.registry)
        try:
            body += await self.engine.metrics()
        except Exception:  # whatever it is, the agent's own count
            log.debug("no metrics of the engine", exc_info=True)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _models(self, request: web.Request) -> web.Response:
        """Answer with the base and the routes that can be served now."""
        return web.json_response({"object": "list", "data": list(self._served_models().values())})

    async def _model(self, request: web.Request) -> web.Response:
        """Answer with one served model; raises Refused for an unknown one."""
        name = request.match_info["name"]
        model = self._served_models().get(name)
        if model is None:
            raise _unknown(name)
        return web.json_response(model)

    def _served_models(self) -> dict[str, dict[str, Any]]:
        names: dict[str, str | None] = {}
        if self.keeper.engine_up:
            names[self.base_name] = None
        for route in self._known_routes().values():
            if not isinstance(choose(route, self.keeper.blocked, None), NotServed):
                names[route.name] = self.base_name
        return {
            name: {"id": name, "object": "model", "created": 0, "owned_by": "llm-tuning", "parent": parent}
            for name, parent in names.items()
        }

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        if self._active >= MAX_ACTIVE:
            raise Refused(503, f"{MAX_ACTIVE} requests are being answered; try again in a moment", "overloaded")
        self._active += 1
        body = Body(self._bodies)
        try:
            await _read(body, request)
            asked = await body.parse()
            name = asked.get("model")
            if not isinstance(name, str):
                raise Refused(400, "model is required: the name of a route, or of the base", param="model")
            user = asked.get("user")
            served, route = self._served(name, user if isinstance(user, str) and user else None)
            check_limits(asked, self.max_choices)
            check_tools(asked, reads_calls=self.reads_tool_calls, chat=request.path == CHAT)
            del asked
            body.name_model(served)
            labels = (route, served if route != self.base_name else "")
            question = _Question(name, served, labels, began)
            return await self._counted(self._forward(request, body, question), question)
        finally:
            body.release()
            self._active -= 1

    async def _counted(self, answer: Awaitable[web.StreamResponse], question: _Question) -> web.StreamResponse:
        """Wait for an answer, and count it."""
        served = question.served
        self.keeper.in_flight[served] += 1
        self.metrics.in_flight.inc()
        status = CLIENT_LEFT
        try:
            response = await answer
            status = response.status
            return response
        except Refused as refused:
            status = refused.status
            raise
        finally:
            self.metrics.in_flight.dec()
            self.keeper.in_flight[served] -= 1
            if not self.keeper.in_flight[served]:
                del self.keeper.in_flight[served]
            self.metrics.count(question.labels, status)

    def _served(self, name: str, user: str | None) -> tuple[str, str]:
        """Resolve a requested model to the name that the engine knows and the label of the route."""
        if name == self.base_name:
            if not self.keeper.engine_up:
                raise self._unavailable(name, f"the engine is down: {self.keeper.engine_message}")
            return name, name
        route = self._known_routes().get(name)
        if route is None:
            raise _unknown(name)
        chosen = choose(route, self.keeper.blocked, user)
        if isinstance(chosen, NotServed):
            raise self._unavailable(name, chosen.why)
        return chosen, name

    def _unavailable(self, route: str, why: str) -> Refused:
        self.metrics.count((route, ""), 503)
        return Refused(503, f"{route} is not served now: {why}", "not_served")

    def _known_routes(self) -> dict[str, DesiredRoute]:
        desired = self.keeper.desired
        if desired is None:
            return {}
        if self._routes[0] != desired.revision:
            self._routes = (desired.revision, {route.name: route for route in desired.routes})
        return self._routes[1]

    async def _forward(self, request: web.Request, body: Body, question: _Question) -> web.StreamResponse:
        served, labels, answer = question.served, question.labels, None
        try:
            answer = await Completion.post(
                self.engine.url,
                request.path,
                body.data,
                idle_seconds=IDLE_SECONDS,
                total_seconds=REQUEST_SECONDS,
                on_sent=body.release,
            )
            if answer.status == 404 and served != self.base_name:
                self.keeper.lost(served)
                raise Refused(503, f"{served} was lost with a restart of the engine and is loaded again", "not_served")
            headers = {name: answer.headers[name.lower()] for name in PASSED_ON if name.lower() in answer.headers}
            headers[MODEL_HEADER] = served
            name = ClientName(served, question.asked)
            first_token = self.metrics.first_token.labels(*labels)

            def on_first() -> None:
                first_token.observe(time.monotonic() - question.began)

            response = web.StreamResponse(status=answer.status, headers=headers)
            if headers.get("Content-Type", "").startswith("text/event-stream"):
                return await self._stream(ClientStream(request, response, name, on_first), response, answer, labels)
            if int(answer.headers.get("content-length", HELD_ANSWER_BYTES + 1)) > HELD_ANSWER_BYTES:
                return await self._pass_on(ClientBody(request, response, name, on_first), response, answer, labels)
            content = await answer.read()
            on_first()
            self._count_usage(labels, content)
            return web.Response(status=answer.status, body=name.put_once(content), headers=headers)
        except TimeoutError:
            raise Refused(504, "the engine took too long", "timeout") from None
        except BrokeOff as error:
            raise Refused(503, f"the engine broke off: {error}", "not_served") from None
        finally:
            if answer is not None:
                answer.close()

    async def _stream(
        self, client: ClientStream, response: web.StreamResponse, answer: Completion, labels: tuple[str, str]
    ) -> web.StreamResponse:
        await client.begin()
        failure = None
        try:
            await answer.pass_on(client.write, client.is_full)
        except (BrokeOff, TimeoutError) as error:
            # The head is out: an event says it, and no [DONE] follows.
            why = "the engine took too long" if isinstance(error, TimeoutError) else f"the engine broke off: {error}"
            failure = error_json(why, "engine_failed", 503)
        if failure or client.failed:
            self.metrics.errors.labels(*labels).inc()
        if not self._count_usage(labels, client.usage):
            self.metrics.completion_tokens.labels(*labels).inc(max(client.events - 2, 0))  # the role, and [DONE]
        await client.end(failure)
        return response

    async def _pass_on(
        self, client: ClientBody, response: web.StreamResponse, answer: Completion, labels: tuple[str, str]
    ) -> web.StreamResponse:
        await client.begin()
        try:
            await answer.pass_on(client.write, client.is_full)
        except (BrokeOff, TimeoutError) as error:
            log.warning("an answer broke off after its head: %s", error or "the engine took too long")
            self.metrics.errors.labels(*labels).inc()
            client.break_off()
            return response
        self._count_usage(labels, client.usage)
        await client.end()
        return response

    def _count_usage(self, labels: tuple[str, str], content: bytes) -> bool:
        """Count the tokens by the last `usage` of an answer or of a stream's events; False where there is none."""
        at = content.rfind(USAGE)
        if at < 0:
            return False
        text = content[at + len(USAGE) - 1 : at + USAGE_BYTES].decode(errors="replace")
        try:
            usage, _ = json.JSONDecoder().raw_decode(text)
            self.metrics.prompt_tokens.labels(*labels).inc(usage.get("prompt_tokens") or 0)
            self.metrics.completion_tokens.labels(*labels).inc(usage.get("completion_tokens") or 0)
        except (ValueError, TypeError, AttributeError):
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
            response = web.json_response(refused.as_json(), status=refused.status, headers=headers)
            if refused.status == 408:
                response.force_close()
            return response
        except web.HTTPException as error:
            headers = {hdrs.ALLOW: error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
            body = error_json(error.reason, "invalid_request_error", error.status)
            return web.json_response(body, status=error.status, headers=headers)
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception:
            log.exception("a fault of the agent")
            return web.json_response(
                error_json("a fault of the agent; its log has it", "internal_error", 500), status=500
            )

    def _check_key(self, request: web.Request) -> None:
        if self.api_key is None:
            return
        if self.locked:
            raise Refused(401, "this server has an empty API key, so no key is right", "invalid_api_key")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if API_KEY_HEADER in request.headers:
            scheme, given = "bearer", request.headers[API_KEY_HEADER]
        # A header may hold any bytes, which aiohttp reads as surrogates.
        bytes_given, key = (text.encode(errors="surrogateescape") for text in (given.strip(), self.api_key))
        if scheme.lower() != "bearer" or not hmac.compare_digest(bytes_given, key):
            raise Refused(401, "an API key is required: Authorization: Bearer ...", "invalid_api_key")


async def _read(body: Body, request: web.Request) -> None:
    """Take a request's body in; raises Refused for one that is broken, too."""
    encoding, length = request.headers.get(hdrs.CONTENT_ENCODING), request.content_length or 0
    try:
        await body.read(request.content.iter_any(), encoding=encoding, length=length)
    except (HttpProcessingError, aiohttp.ClientPayloadError, web.RequestPayloadError):
        raise Refused(400, "the body is not what its headers say") from None


def _unknown(name: str) -> Refused:
    return Refused(404, f"there is no model {shown(name)} here; GET /v1/models lists them", "model_not_found", "model")
