"""An answer on its way to a client, with the name that the client requested: events of a stream, or a large body.

vLLM calls the model by the adapter's model_id. Within a text the quotes of `"model":"..."` would be escaped, so what is
replaced is the field and never a word of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11

from llm_tuning.engines.vllm.stream import DATA, ERROR, EVENT_END, USAGE

HIGH_WATER_BYTES = 2**16
"""Of what a client has not taken yet; more is left with the engine."""
USAGE_BYTES = 2**12
"""Kept of a large body from its usage on."""


class ClientName:
    """Give an answer the name that the client requested, in place of the model_id that the engine was given."""

    def __init__(self, served: str, asked: str) -> None:
        self._from, self._to = _field(served), _field(asked)
        self._differs = served != asked

    def put(self, data: bytes) -> bytes:
        """Replace the field wherever it is in `data`."""
        return data.replace(self._from, self._to) if self._differs else data

    def put_once(self, data: bytes) -> bytes:
        """Replace the first one: a plain answer has one, before its texts."""
        return data.replace(self._from, self._to, 1) if self._differs else data


def _field(model: str) -> bytes:
    return b'"model":' + json.dumps(model).encode()


class _ClientAnswer:
    """What both kinds share. Pieces go straight to the connection: aiohttp's `StreamResponse.write` is a coroutine,
    which a parser's callback cannot await."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, name: ClientName, on_first: Callable[[], None]
    ) -> None:
        self.usage = b""
        """The last piece that has the tokens; empty where none did."""
        self._request, self._response, self._name, self._on_first = request, response, name, on_first
        self._chunked = request.version >= HttpVersion11
        if self._chunked:
            response.enable_chunked_encoding()

    async def begin(self) -> None:
        """Send the head."""
        await self._response.prepare(self._request)

    def is_full(self) -> bool:
        """Return whether the client lags behind."""
        transport = self._request.transport
        return transport is not None and transport.get_write_buffer_size() > HIGH_WATER_BYTES

    def _send(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)


class ClientStream(_ClientAnswer):
    """Write server-sent events as they come from the engine. Half of an event waits for its other half.

    It would spoil the event that says that the engine broke off.
    """

    def __init__(
        self, request: web.Request, response: web.StreamResponse, name: ClientName, on_first: Callable[[], None]
    ) -> None:
        super().__init__(request, response, name, on_first)
        self.events = 0
        self.failed = False
        """The engine has reported an error within the stream."""
        self._rest = b""

    def write(self, piece: bytes) -> None:
        """Send the events that have become whole; ConnectionResetError where the client is gone."""
        whole, end, self._rest = (self._rest + piece).rpartition(EVENT_END)
        if end:
            if not self.events:
                self._on_first()
            self.events += whole.count(DATA)
            if USAGE in whole:
                self.usage = whole
            self.failed = self.failed or ERROR in whole
            self._send(self._name.put(whole) + end)

    async def end(self, error: dict[str, Any] | None = None) -> None:
        """Send the last bytes; `error` is an event of its own, and then no [DONE] comes."""
        if error is None and self._rest:
            self._send(self._name.put(self._rest))
        elif error is not None:
            self._send(DATA + json.dumps(error).encode() + EVENT_END)
        await self._response.write_eof()


class ClientBody(_ClientAnswer):
    """Write a body that is too large to hold, such as log-probabilities of a long prompt, as it comes."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, name: ClientName, on_first: Callable[[], None]
    ) -> None:
        super().__init__(request, response, name, on_first)
        self._began = False
        self._edge = b""
        """The end of the last piece, where a usage may begin."""

    def write(self, piece: bytes) -> None:
        """Send a piece of the answer; ConnectionResetError where the client is gone."""
        if not self._began:
            self._began = True
            self._on_first()
            piece = self._name.put_once(piece)
        self._look_for_usage(piece)
        self._send(piece)

    def _look_for_usage(self, piece: bytes) -> None:
        if self.usage:
            self.usage += piece[: USAGE_BYTES - len(self.usage)]
            return
        seen = self._edge + piece
        if (at := seen.find(USAGE)) >= 0:
            self.usage = seen[at : at + USAGE_BYTES]
        self._edge = seen[-len(USAGE) :]

    async def end(self) -> None:
        """Send the end."""
        await self._response.write_eof()

    def break_off(self) -> None:
        """End the connection within the body, so that the client does not take it for whole."""
        if self._request.transport is not None:
            self._request.transport.abort()
