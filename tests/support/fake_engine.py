"""A stand-in for vLLM on loopback, for the faults that a real one cannot be made to show quickly.

It answers with vLLM's paths, statuses and texts; which name answered is in every text, so that a wrong one is seen.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.vllm_server import free_port

HANGS = 3600.0


@dataclass
class FakeEngine:
    """`start`, then `kill` and `start` again: it comes back on its port without adapters."""

    base: str = "base"
    port: int = field(default_factory=free_port)
    loras: dict[str, str] = field(default_factory=dict)
    """What is loaded: path by name."""
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Adapters that it does not load: with this status and message."""
    deadly: set[str] = field(default_factory=set)
    """Adapters that end it while they are loaded."""
    hang: set[str] = field(default_factory=set)
    """Paths that are not answered, or names of adapters whose loading is not."""
    health: int = 200
    models_status: int = 200
    chunks: int = 4
    """Of a streamed answer."""
    chunk_seconds: float = 0.0
    chunk_bytes: int = 0
    """More than its few words."""
    streamed: Counter[str] = field(default_factory=Counter)
    """Chunks that were taken from it, by name."""
    break_off: int | None = None
    """End the connection before this chunk of a stream, in the middle of an event."""
    fail_at: int | None = None
    """Say an error in place of this chunk of a stream, and end it in order."""
    gate: asyncio.Event | None = None
    """A streamed answer waits for it after its first chunk, a plain one before it answers."""
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 3})
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(path, name) of each load, unload and question."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the questions."""
    keeps: int | None = None
    """Adapters in its memory, unloaded ones too; beyond them it forgets the one that was used longest ago."""
    forgotten: list[str] = field(default_factory=list)
    """Those of them that were loaded still."""
    ended_early: Counter[str] = field(default_factory=Counter)
    """Questions whose client went away, by name."""
    _memory: list[tuple[str, int]] = field(default_factory=list)
    """By their use, the latest last; each load is a new one, whatever its name."""
    _runner: web.AppRunner | None = None
    _transports: set[asyncio.Transport] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def called(self, path: str) -> list[str]:
        """The names that were loaded, unloaded, or asked: `load`, `unload`, `chat`."""
        return [name for called, name in self.calls if called == path]

    async def start(self) -> None:
        app = web.Application(middlewares=[self._noted], client_max_size=2**24)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def kill(self) -> None:
        """Every connection breaks off, and nobody listens any more."""
        runner, self._runner = self._runner, None
        for transport in self._transports:
            transport.abort()
        self._transports.clear()
        self.loras.clear()
        if runner is not None:
            await runner.cleanup()

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    @web.middleware
    async def _noted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        assert isinstance(request.transport, asyncio.Transport)
        self._transports.add(request.transport)
        if request.path in self.hang:
            await asyncio.sleep(HANGS)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _models(self, request: web.Request) -> web.Response:
        entries: list[dict[str, Any]] = [{"id": self.base, "parent": None, "max_model_len": 512}]
        entries += [{"id": name, "parent": self.base, "root": path} for name, path in self.loras.items()]
        return web.json_response({"object": "list", "data": entries}, status=self.models_status)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 0\n")

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["lora_name"]
        self.calls.append(("load", name))
        if name in self.hang:
            await asyncio.sleep(HANGS)
        if name in self.deadly:
            asyncio.get_running_loop().create_task(self.kill())
            await asyncio.sleep(HANGS)
        if name in self.loras:
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if name in self.refuse:
            status, message = self.refuse[name]
            return _error(status, message, "InternalServerError")
        self.loras[name] = body["lora_path"]
        self._memory.append((name, len(self.calls)))
        if self.keeps is not None and len(self._memory) > self.keeps:
            oldest, _ = self._memory.pop(0)
            if oldest in self.loras and oldest not in [other for other, _ in self._memory]:
                self.forgotten.append(oldest)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if self.loras.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": [1, 2, 3]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = body["model"]
        self.calls.append(("chat", name))
        self.bodies.append(body)
        if name != self.base and name not in self.loras:
            return _error(404, f"The model `{name}` does not exist.", "NotFoundError")
        if latest := [entry for entry in self._memory if entry[0] == name]:
            self._memory.remove(latest[-1])
            self._memory.append(latest[-1])
        if body.get("max_tokens") == -1:
            return _error(400, "max_tokens must be at least 1", "BadRequestError")
        try:
            if body.get("stream"):
                return await self._stream(request, name, body)
            if self.gate is not None:
                await self.gate.wait()
        except (asyncio.CancelledError, ConnectionResetError):
            self.ended_early[name] += 1
            raise
        answer: dict[str, Any] = {"model": name, "choices": [{"message": {"content": f"I am {name}"}}]}
        if self.usage is not None:
            answer["usage"] = self.usage
        # Compact, as vLLM writes it.
        return web.Response(text=_compact(answer), content_type="application/json", headers={"X-Request-Id": "req-1"})

    async def _stream(self, request: web.Request, name: str, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number in range(self.chunks):
            delta = {"role": "assistant"} if number == 0 else {"content": f"{name}{number}" + "." * self.chunk_bytes}
            event = b"data: " + _compact({"model": name, "choices": [{"delta": delta}]}).encode() + b"\n\n"
            if number == self.fail_at:
                error = {"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}
                await response.write(f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n".encode())
                return response
            if number == self.break_off:
                await response.write(event[: len(event) // 2])
                await asyncio.sleep(0.02)
                assert request.transport is not None
                request.transport.close()
                return response
            await response.write(event)
            self.streamed[name] += 1
            if number == 0 and self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.chunk_seconds)
        if self.usage is not None and (body.get("stream_options") or {}).get("include_usage"):
            await response.write(f"data: {_compact({'model': name, 'choices': [], 'usage': self.usage})}\n\n".encode())
            await asyncio.sleep(0.02)
        await response.write(b"data: [DONE]\n\n")
        return response


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _error(status: int, message: str, kind: str) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return web.json_response(body, status=status)
