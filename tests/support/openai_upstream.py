"""The agent of an InferenceService as an OpenAI API's proxy sees it, for faults that a real one shows only by chance.

Beside it, an application on a socket of loopback: streams and clients that go away need one.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from aiohttp import web
from fastapi import FastAPI

from llm_tuning.openai_api.slow_clients import TimedProtocol

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Upstream:
    """Answers as `scripts` say, one for each request, and then as `usual`, which is in one piece."""

    def __init__(self, usual: Script | None = None) -> None:
        self.scripts: deque[Script] = deque()
        self.usual = usual or said("Yes.")
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers and body of each request."""
        self.sent = 0
        """Bytes that `flood` has got rid of."""
        self.left = asyncio.Event()
        """The client of a script went away before its end."""
        self.gate = asyncio.Event()
        """Scripts wait for it in their middle."""
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append((request.path, dict(request.headers), body))
        try:
            return await (self.scripts.popleft() if self.scripts else self.usual)(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Two events, the gate between them, and [DONE]."""
        response = await events(request)
        await response.write(chunk("one"))
        await self.gate.wait()
        await response.write(chunk(" two") + b"data: [DONE]\n\n")
        return response

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """A plain answer, once the gate is open."""
        await self.gate.wait()
        return await said("Yes.")(request)

    async def die_in_a_stream(self, request: web.Request) -> web.StreamResponse:
        """An event, half of one, and no more."""
        response = await events(request)
        await response.write(chunk("one") + chunk("two")[:20])
        await asyncio.sleep(0.05)
        cut(request)
        return response

    async def flood(self, request: web.Request) -> web.StreamResponse:
        """Events without end."""
        response = await events(request)
        while True:
            await response.write(piece := chunk("x" * 10_000))
            self.sent += len(piece)


def said(text: str, **more: Any) -> Script:
    """A plain answer."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(completion(text) | more, headers={"X-Model-Id": "ft_a"})

    return answer


def refusing(status: int, code: str, message: str, **headers: str) -> Script:
    """A refusal in OpenAI's form."""

    async def answer(request: web.Request) -> web.Response:
        error = {"message": message, "type": "x", "param": "temperature", "code": code}
        return web.json_response({"error": error}, status=status, headers=headers)

    return answer


def page(status: int) -> Script:
    """A refusal in a form of its own, as something between may give."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="<html>Bad gateway</html>", status=status, content_type="text/html")

    return answer


def dying(size: int, *, says: int | None = None) -> Script:
    """A body of `size` bytes that breaks off; with `says` its head has told that many."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = says
        await response.prepare(request)
        await response.write(b"x" * size)
        await asyncio.sleep(0.05)
        cut(request)
        return response

    return answer


async def events(request: web.Request) -> web.StreamResponse:
    """Begin a stream."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


def cut(request: web.Request) -> None:
    """End the connection as a dying pod does."""
    assert request.transport is not None
    request.transport.abort()


def completion(text: str) -> dict[str, Any]:
    """OpenAI's object of a chat."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def chunk(text: str) -> bytes:
    """An event of a stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    value = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@asynccontextmanager
async def listening(app: FastAPI, *, keep_alive_seconds: int = 5) -> AsyncIterator[str]:
    """Serve an application as the product does, on a socket of loopback; yields its base_url."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        config = uvicorn.Config(
            app,
            http=TimedProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=keep_alive_seconds,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            await serving
