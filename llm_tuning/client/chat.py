"""Requests to an InferenceService from outside of the cluster, through the API server's service proxy.

A laptop reaches no ClusterIP, but it reaches the API server, which passes a request on to a pod behind the Service. The
user has to be allowed `create` on `services/proxy`. The API server removes the `Authorization` header once it has read
it, whatever the user logs in with, so that no bearer token gets to the service: an API key goes in `X-Api-Key`, which
the agent takes as well. Everybody who may use the proxy for one Service of a namespace may use it for others too,
unless the Role names the Services.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import httpx

from llm_tuning.client.answers import Assembly, ChatAnswer, ChatPiece, Message, read_answer
from llm_tuning.client.api import CONNECT_SECONDS, REQUEST_SECONDS, Api, Raw, json_of, lines_of
from llm_tuning.client.errors import NotServed, fault
from llm_tuning.client.objects import InferenceServiceView
from llm_tuning.errors import InputError, Problem, TuningError

SILENT_SECONDS = 330.0
"""Without a byte; the agent gives the engine 300 s."""
SERVICE_PORT = "http"
"""The name of the Service's port."""
API_KEY_HEADER, MODEL_HEADER = "X-Api-Key", "X-Model-Id"
EVENT, END = "data:", "[DONE]"


def request_body(
    service: InferenceServiceView, message: str | Sequence[Message], model: str | None, parameters: dict[str, Any]
) -> Raw:
    """Build the body of a request; raises InputError where the model has to be named and is not."""
    messages = [{"role": "user", "content": message}] if isinstance(message, str) else list(message)
    routes = [route.name for route in service.spec.routes]
    if model is None and len(routes) > 1:
        raise InputError(
            Problem("model", "has to be named, for there are several routes", f"one of {', '.join(routes)}")
        )
    return {"model": model or service.models[0], "messages": messages, **parameters}


async def complete(api: Api, name: str, body: Raw, *, api_key: str | None) -> ChatAnswer:
    """Return one whole answer; raises NotServed in the service's words, or a ClusterError."""
    async with _asked(api, name, body, api_key) as response:
        value = json_of(await response.aread())
        try:
            return read_answer(value, _answered_by(response))
        except (TypeError, KeyError, IndexError, AttributeError):
            raise NotServed(f"{name}: the answer is none of a chat", status=response.status_code) from None


async def stream(api: Api, name: str, body: Raw, *, api_key: str | None) -> AsyncGenerator[ChatPiece, None]:
    """Yield an answer piece by piece, and with the last one the whole; raises as `complete`, also in the middle."""
    async with _asked(api, name, {**body, "stream": True}, api_key) as response:
        growing = Assembly(_answered_by(response))
        async with aclosing(lines_of(response)) as lines:
            async for line in lines:
                if not line.startswith(EVENT):
                    continue
                data = line.removeprefix(EVENT).strip()
                if data == END:
                    yield ChatPiece(answer=growing.answer())
                    return
                event = json_of(data)
                if not isinstance(event, dict) or "error" in event:
                    raise _refusal(name, 503, event)
                piece = growing.take(event)
                if piece.text or piece.reasoning:
                    yield piece
    raise NotServed(f"{name}: the answer broke off", status=503)


def _asked(api: Api, name: str, body: Raw, api_key: str | None) -> AbstractAsyncContextManager[httpx.Response]:
    path = f"/api/v1/namespaces/{api.connection.namespace}/services/{name}:{SERVICE_PORT}/proxy/v1/chat/completions"
    headers = {"Content-Type": "application/json"} | ({API_KEY_HEADER: api_key} if api_key else {})
    timeout = httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS, read=SILENT_SECONDS, pool=None)
    return api.open("POST", path, timeout=timeout, content=json.dumps(body), headers=headers, refusal=_refusal)


def _answered_by(response: httpx.Response) -> str:
    return str(response.headers.get(MODEL_HEADER, ""))


def _refusal(doing: str, status: int, answer: Any) -> TuningError:
    """Build the error: the API server's own refusals are Status objects; everything else is the service's."""
    answer = answer if isinstance(answer, dict) else {}
    if answer.get("kind") == "Status":
        return fault(doing, status, answer)
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    text = str(message or f"HTTP status {status}")
    if status == 401:
        text += "; give api_key, the value in the Secret of spec.apiKeySecret"
    return NotServed(text, status=status)
