"""A stream of server-sent events on its way to a client: whole events only, and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11

from llm_tuning.engines.vllm.stream import DATA, ERROR, EVENT_END, USAGE

HIGH_WATER_BYTES = 2**16
"""Of what a client has not taken yet; more is left with the engine."""


class ClientStream:
    """Write pieces as they come from the engine. Half of an event waits for its other half.

    It would spoil the event that says that the engine broke off. Pieces go straight to the connection: aiohttp's
    `StreamResponse.write` is a coroutine, which a parser's callback cannot await.
    """

    def __init__(self, request: web.Request, response: web.StreamResponse, on_first: Callable[[], None]) -> None:
        self.events = 0
        self.usage = b""
        """The last events that tell the tokens; empty where none did."""
        self.failed = False
        """The engine has told of an error within the stream."""
        self._rest = b""
        self._request, self._response, self._on_first = request, response, on_first
        self._chunked = request.version >= HttpVersion11
        if self._chunked:
            response.enable_chunked_encoding()

    async def begin(self) -> None:
        """Send the head."""
        await self._response.prepare(self._request)

    def write(self, piece: bytes) -> None:
        """Pass on what has become whole; ConnectionResetError where the client is gone."""
        whole, end, self._rest = (self._rest + piece).rpartition(EVENT_END)
        if end:
            if not self.events:
                self._on_first()
            self.events += whole.count(DATA)
            if USAGE in whole:
                self.usage = whole
            self.failed = self.failed or ERROR in whole
            self._send(whole + end)

    def is_full(self) -> bool:
        """Whether the client lags behind."""
        transport = self._request.transport
        return transport is not None and transport.get_write_buffer_size() > HIGH_WATER_BYTES

    async def end(self, error: dict[str, Any] | None = None) -> None:
        """The last bytes; `error` is an event of its own, and then no [DONE] comes."""
        if error is None and self._rest:
            self._send(self._rest)
        elif error is not None:
            self._send(DATA + json.dumps(error).encode() + EVENT_END)
        await self._response.write_eof()

    def _send(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
