"""What stands before every endpoint: who asks, whether they may, how much; a line of log and a count of each request.

Plain ASGI, since answers are streamed. What is open to everybody in reach names no object: probes and metrics.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from datetime import datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_tuning.core.text import one_line, shown_bytes
from llm_tuning.openai_api.app import refusal
from llm_tuning.openai_api.context import Caller
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.keys import COMPLETIONS, ROLES, Key, KeyRing, may, utc_now
from llm_tuning.openai_api.limits import Allowance, Allowances, KeyLimits
from llm_tuning.openai_api.metrics import Metrics, endpoint_of
from llm_tuning.openai_api.slow_clients import in_time

log = logging.getLogger(__name__)

METRICS = "/metrics"
OPEN = ("/healthz", "/readyz", METRICS)
UPLOADS = "/v1/files"
BODY_BYTES = 8 * 2**20
"""Of every request but an upload: as much as a service of ours takes."""
CLIENT_LEFT = 499
"""The status in logs and metrics of a request whose client went away before the answer had begun, after nginx."""
_KEYS = re.compile(r"\bsk-[A-Za-z0-9_-]{8,}|(?<=Bearer )\S+")


class Edge:
    """The middleware; `keys` is None where nobody needs one."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing | None,
        limits: KeyLimits,
        metrics: Metrics,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._keys, self._metrics, self._now, self._clock = app, keys, metrics, now, clock
        self._allowances = Allowances(limits, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            is_metrics = scope["type"] == "http" and scope["path"] == METRICS
            return await (self._exposition() if is_metrics else self._app)(scope, receive, send)
        answer = _Answer(send, self._clock)
        endpoint = endpoint_of(scope["path"])
        caller: Caller | None = None
        try:
            with self._metrics.in_flight.track_inprogress():
                try:
                    caller = scope.setdefault("state", {})["caller"] = self._caller(scope)
                    await self._serve(caller, scope, receive, answer)
                except ApiError as error:
                    await refusal(error)(scope, receive, answer)
        except Exception:  # what stands around this answers 500
            answer.status = answer.status or 500
            raise
        finally:
            self._tell(scope, answer, endpoint, caller)

    def _exposition(self) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def _caller(self, scope: Scope) -> Caller:
        """Return who asks; raises ApiError (401, 403)."""
        if self._keys is None:
            self._check_is_local(scope)
            return Caller()
        text = _bearer(scope)
        if text is None:
            raise self._refused(
                "no_key",
                401,
                "You did not provide an API key: send it as Authorization: Bearer KEY (the SDKs' api_key).",
            )
        key = self._keys.find(text)
        if key is None:
            raise self._refused(
                "wrong_key",
                401,
                "Incorrect API key provided. A new key counts within about a minute; `kubectl tuning api-key list` has "
                "the names of all.",
                code="invalid_api_key",
            )
        if key.has_expired(self._now()):
            raise self._refused(
                "expired_key", 401, f"The API key {key.name} has expired; ask for another.", code="invalid_api_key"
            )
        return self._allowed(key, scope)

    def _check_is_local(self, scope: Scope) -> None:
        """Raise ApiError (403) for a request that a page of the web sent: a browser reaches loopback as well as we do.

        Of another site the Origin says so; a name of that site that leads to 127.0.0.1 stays in the Host.
        """
        for header, fix in (("host", "ask it as 127.0.0.1 or localhost"), ("origin", "it answers no web page")):
            value = _header(scope, header)
            if value is not None and not _is_loopback(value if header == "origin" else f"//{value}"):
                shown = f"{header.title()} {one_line(value)[:100]!r}"
                text = f"This server takes no key, so it answers this machine alone, not a request with {shown}: {fix}."
                raise self._refused("not_local", 403, text, code="not_local")

    def _allowed(self, key: Key, scope: Scope) -> Caller:
        role = key.record.role
        if may(role, scope["method"], scope["path"]):
            return Caller(key.name, role)
        raise self._refused(
            "role",
            403,
            f"You have insufficient permissions for this operation: the key {key.name} has the role {role} "
            f"({ROLES[role]}), and {scope['method']} {one_line(scope['path'])[:200]} needs another.",
            code="insufficient_permissions",
        )

    def _refused(self, reason: str, status: int, message: str, *, code: str | None = None) -> ApiError:
        self._metrics.refused.labels(reason).inc()
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        return ApiError(status, message, code=code, headers=headers)

    async def _serve(self, caller: Caller, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Pass the request on within the caller's limits; raises ApiError (408, 413, 429)."""
        allowance, receive = self._allowances.of(caller.name), in_time(receive)
        is_upload = scope["method"] == "POST" and scope["path"] == UPLOADS
        is_completion = scope["method"] == "POST" and scope["path"] in COMPLETIONS
        if self._keys is not None:
            answer.headers |= allowance.take_request()
        with allowance.answering() if is_completion else nullcontext():
            body = self._upload(allowance, scope, receive) if is_upload else _small(scope, receive)
            await self._app(scope, body, answer)

    def _upload(self, allowance: Allowance, scope: Scope, receive: Receive) -> Receive:
        """Count the bytes of an upload, and refuse it as soon as they are too many."""
        allowance.check_upload(_content_length(scope))

        async def counted() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            self._metrics.uploaded.inc(size)
            allowance.take_upload(size)
            return message

        return counted

    def _tell(self, scope: Scope, answer: _Answer, endpoint: str, caller: Caller | None) -> None:
        seconds = self._clock() - answer.began
        status = answer.status or CLIENT_LEFT
        self._metrics.count(scope["method"], endpoint, status)
        self._metrics.seconds.labels(endpoint).observe(seconds)
        if answer.first_byte is not None:
            self._metrics.first_byte.labels(endpoint).observe(answer.first_byte - answer.began)
        who = caller.name if caller is not None else "-"
        path = one_line(without_keys(scope["path"]))[:300]
        log.info("%s %s %d %.3f s key=%s id=%s", scope["method"], path, status, seconds, who, answer.id)


class _Answer:
    """Sends an answer with the headers of the edge, and remembers how it went."""

    def __init__(self, send: Send, clock: Callable[[], float]) -> None:
        self._send, self._clock = send, clock
        self.began = clock()
        self.first_byte: float | None = None
        self.status = 0
        self.id = f"req_{secrets.token_hex(16)}"
        self.headers: dict[str, str] = {}

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message.get("headers", ())}
            added = {"x-request-id": self.id, **self.headers}
            more = [(name.encode(), value.encode()) for name, value in added.items() if name.encode() not in given]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        elif self.first_byte is None and message.get("body"):
            self.first_byte = self._clock()
        await self._send(message)


def _small(scope: Scope, receive: Receive) -> Receive:
    """Pass a body of at most BODY_BYTES on; raises ApiError (413) where it is longer."""
    seen = 0

    def check(size: int) -> None:
        if size > BODY_BYTES:
            text = f"The request's body has more than {shown_bytes(BODY_BYTES)}, as much as may be sent but for files."
            raise ApiError(413, text, code="request_too_large")

    check(_content_length(scope))

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        check(seen)
        return message

    return counted


def without_keys(text: str) -> str:
    """Return `text` with everything in it that looks like a key taken out."""
    return _KEYS.sub("[key]", text)


def _header(scope: Scope, wanted: str) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted.encode()), None)


def _bearer(scope: Scope) -> str | None:
    scheme, _, text = (_header(scope, "authorization") or "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" and text.strip() else None


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False


def _content_length(scope: Scope) -> int:
    """Return what the request says of its size; 0 where it says nothing."""
    value = _header(scope, "content-length") or ""
    return int(value) if value.isascii() and value.isdigit() else 0
