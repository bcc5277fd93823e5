"""A proxy between an operator and the API server, on loopback, for faults that come from outside of both.

It lists the operator's writes, tells a test before and after each of them, cuts watch connections, delays what they
deliver and refuses everything for a while. Lease renewals and Events pass uncounted: they are no part of the chain.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

WRITES = ("POST", "PUT", "PATCH", "DELETE")
HOP_HEADERS = {"host", "content-length", "transfer-encoding", "connection", "content-encoding"}
UNCOUNTED = re.compile(r"/(leases|events)(/|$)")


@dataclass(frozen=True)
class Write:
    """One write of the operator: `POST jobs/faq-train`, `PATCH tuningjobs/faq/status`."""

    method: str
    path: str
    at: float = field(compare=False, default=0.0)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def never(write: Write, number: int, moment: str) -> bool:
    """The default of `on_write`."""
    return False


class ApiProxy:
    """Listens on 127.0.0.1 and passes everything on to the API server of `kubeconfig`, as that user.

    `on_write(write, number, moment)` is called for each write with moment `before` and `after`, numbers from 0 on.
    Where it returns True the connection is dropped: before the API server has seen the write, or after it has done it.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self._upstream = server_of(kubeconfig)
        self._tls = client_context(kubeconfig)
        self.writes: list[Write] = []
        self.on_write: Callable[[Write, int, str], bool] = never
        self.watch_delay_seconds = 0.0
        self.refusing = False
        self._watches: set[web.StreamResponse] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> ApiProxy:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def kubeconfig(self, path: Path, *, namespace: str = "default") -> Path:
        """Write a kubeconfig that leads through this proxy to `path`."""
        server = {"server": f"http://127.0.0.1:{self.port}"}
        context = {"cluster": "proxy", "user": "proxy", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": server}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": context}],
            "current-context": "proxy",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def cut_watches(self) -> int:
        """Drop every open watch connection; returns how many there were."""
        return int(self._call(self._cut()))

    async def _cut(self) -> int:
        count = 0
        for response in list(self._watches):
            transport = response._req.transport if response._req is not None else None
            if transport is not None:
                transport.abort()
                count += 1
        return count

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._cut()
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.refusing:
            _drop(request)
        body = await request.read()
        counted = request.method in WRITES and not UNCOUNTED.search(request.path)
        if counted:
            write = Write(request.method, _short(request, body), time.monotonic())
            self.writes.append(write)
            number = len(self.writes) - 1
            if self.on_write(write, number, "before"):
                _drop(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._session.request(
                request.method,
                self._upstream + request.raw_path,
                data=body or None,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as reply:
                if request.query.get("watch") in ("true", "1"):
                    return await self._stream(request, reply)
                answer = web.Response(status=reply.status, body=await reply.read())
                answer.headers["Content-Type"] = reply.headers.get("Content-Type", "application/json")
        except aiohttp.ClientError:
            _drop(request)
        if counted and self.on_write(write, number, "after"):
            _drop(request)
        return answer

    async def _stream(self, request: web.Request, reply: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status)
        response.headers["Content-Type"] = reply.headers.get("Content-Type", "application/json")
        await response.prepare(request)
        self._watches.add(response)
        try:
            async for chunk in reply.content.iter_any():
                if self.watch_delay_seconds:
                    await asyncio.sleep(self.watch_delay_seconds)
                await response.write(chunk)
        except (ConnectionError, aiohttp.ClientError):
            pass
        finally:
            self._watches.discard(response)
        return response


def _drop(request: web.Request) -> None:
    """End the connection without an answer, as a dying network does."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError


def _short(request: web.Request, body: bytes) -> str:
    """`jobs/faq-train` for a POST to .../jobs with that name in the body; resource and name otherwise."""
    parts = request.path.split("/")
    start = parts.index("namespaces") + 2 if "namespaces" in parts else 3
    path = "/".join(parts[start:])
    if request.method == "POST" and (found := re.search(rb'"name":\s*"([^"]+)"', body)):
        path += "/" + found.group(1).decode()
    return path


def server_of(kubeconfig: Path) -> str:
    """The API server's address."""
    return str(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


def client_context(kubeconfig: Path) -> ssl.SSLContext:
    """TLS as the kubeconfig's user, whose certificates lie in it or beside it."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    with tempfile.TemporaryDirectory() as folder:

        def file_of(values: dict[str, str], name: str) -> str:
            if name in values:
                return values[name]
            path = Path(folder) / name
            path.write_bytes(base64.b64decode(values[f"{name}-data"]))
            return str(path)

        context = ssl.create_default_context(cafile=file_of(cluster, "certificate-authority"))
        context.load_cert_chain(file_of(user, "client-certificate"), file_of(user, "client-key"))
    return context
