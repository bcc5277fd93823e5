"""Requests to the API server, and what its answers mean. Nothing here knows what a TuningJob is."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import httpx

from llm_tuning._version import __version__
from llm_tuning.client.connection import Connection
from llm_tuning.client.errors import Expired, Unavailable, fault
from llm_tuning.errors import TuningError

Raw = dict[str, Any]
Query = Mapping[str, str]
Refusal = Callable[[str, int, Any], TuningError]

USER_AGENT = f"llm-tuning-client/{__version__}"
CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 30.0
WATCH_SECONDS = 60
"""The server ends a watch after so long: a connection that died unnoticed is replaced then at the latest."""
RECONNECT_SECONDS = 300.0
"""How long a watch bears a server that does not answer: a control plane that is upgraded is away for minutes."""
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to reach it; the last one again and again."""
MERGE_PATCH = "application/merge-patch+json"


class Api:
    """One user's way to one API server. Writes are never repeated."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._http = httpx.AsyncClient(
            base_url=connection.server,
            verify=connection.tls if connection.tls is not None else True,
            proxy=connection.proxy,
            trust_env=False,  # the connection has the environment's proxies already
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            timeout=httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS, pool=None),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Raw | None = None,
        content_type: str = "application/json",
    ) -> Raw:
        """Send one request and return its JSON answer; raises InputError or a ClusterError."""
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type} if body is not None else {}
        request: dict[str, Any] = {"params": query, "content": content, "headers": headers}
        async with self.open(method, path, **request) as response:
            answer = json_of(await _read(response, f"{method} {path}"))
        if not isinstance(answer, dict):
            raise Unavailable(f"{method} {path}: the answer is no JSON object; is {self.connection.server} a cluster?")
        return answer

    async def items(self, path: str, labels: Mapping[str, str] | None = None) -> Sequence[Raw]:
        """List the objects of a path, with `labels` those that have all of them; raises as `call` does."""
        query = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())} if labels else None
        return cast(Sequence[Raw], (await self.call("GET", path, query=query))["items"])

    @asynccontextmanager
    async def open(
        self, method: str, path: str, *, refusal: Refusal = fault, **request: Any
    ) -> AsyncIterator[httpx.Response]:
        """Yield an answer whose body is still to come; raises as `call` does. `request` is httpx's.

        `refusal` makes the error of a status that is no success, where the answer is not the API server's own.
        """
        doing = f"{method} {path}"
        headers = dict(request.pop("headers", {}))
        token = await asyncio.to_thread(self.connection.token)
        if token:
            headers.setdefault("Authorization", token)
        extensions = {"sni_hostname": self.connection.server_name} if self.connection.server_name else {}
        try:
            async with self._http.stream(method, path, headers=headers, extensions=extensions, **request) as response:
                if not response.is_success:
                    raise refusal(doing, response.status_code, json_of(await _read(response, doing)))
                yield response
        except httpx.InvalidURL as error:
            raise Unavailable(f"{self.connection.server}: {error}") from error
        except httpx.TransportError as error:
            raise Unavailable(
                f"{doing}: no answer from {self.connection.server} ({type(error).__name__}: {error})"
            ) from error

    async def lines(
        self, method: str, path: str, *, silent_seconds: float, **request: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the lines of an answer as they come; raises Unavailable after `silent_seconds` without a byte."""
        timeout = httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS, read=silent_seconds, pool=None)
        async with self.open(method, path, timeout=timeout, **request) as response:
            async for line in lines_of(response):
                yield line

    async def watch(self, path: str, name: str) -> AsyncGenerator[Raw | None, None]:
        """Yield every version of the object `name` in the collection `path`, from the present one on; None without it.

        It never ends by itself: it continues after a cut connection and a forgotten version (410). Raises
        a ClusterError where the server refuses, or does not answer for RECONNECT_SECONDS.
        """
        version, attempt, silent_since = "", 0, math.inf
        while True:
            try:
                if not version:
                    found = await self.call("GET", path, query={"fieldSelector": f"metadata.name={name}"})
                    version, silent_since = found["metadata"]["resourceVersion"], time.monotonic()
                    yield found["items"][0] if found["items"] else None
                async with aclosing(self._events(path, name, version)) as events:
                    async for kind, changed in events:
                        version = changed["metadata"]["resourceVersion"]
                        attempt, silent_since = 0, time.monotonic()
                        if kind != "BOOKMARK":
                            yield None if kind == "DELETED" else changed
                pause, silent_since = PAUSES[0], time.monotonic()  # ended by the server, as asked
            except Expired:
                version, pause = "", PAUSES[min(attempt, len(PAUSES) - 1)]
            except Unavailable as error:
                # Right at the start there is nothing to continue from: a wrong address is reported at once.
                if math.isinf(silent_since) or time.monotonic() - silent_since > RECONNECT_SECONDS:
                    raise
                pause = max(PAUSES[min(attempt, len(PAUSES) - 1)], error.retry_after_seconds)
            attempt += 1
            await asyncio.sleep(pause)

    async def _events(self, path: str, name: str, version: str) -> AsyncGenerator[tuple[str, Raw], None]:
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with aclosing(self.lines("GET", path, params=query, silent_seconds=WATCH_SECONDS + 15)) as lines:
            async for line in lines:
                event = json_of(line)
                if not isinstance(event, dict) or "object" not in event:
                    raise Unavailable(f"WATCH {path}: an event was cut off")
                if event["type"] == "ERROR":
                    raise fault(f"WATCH {path}", int(event["object"].get("code") or 500), event["object"])
                yield event["type"], event["object"]


async def lines_of(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Yield lines, ended by a line feed alone: httpx ends them at every separator that Unicode has."""
    rest = b""
    async for data in response.aiter_bytes():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def json_of(text: bytes | str) -> Any:
    """Parse the JSON value, None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


async def _read(response: httpx.Response, doing: str) -> bytes:
    try:
        return await response.aread()
    except httpx.TransportError as error:
        raise Unavailable(f"{doing}: the answer broke off ({type(error).__name__})") from error
