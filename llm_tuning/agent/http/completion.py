"""One request for a completion to vLLM, whose answer is handed on piece by piece with as little work as can be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 5.0
CLOGGED_SECONDS = 0.02
"""Between two checks of a client that does not read."""
SLICE_BYTES = 2**18
"""Of a body, written at once; the next one when the engine has taken most of it."""


class BrokeOff(Exception):  # noqa: N818 - what the engine did
    """There is no whole answer; the text says why."""


class NotConnected(BrokeOff):
    """Nothing was sent: nobody listens there, or not within CONNECT_SECONDS."""


class Completion(asyncio.Protocol):
    """A POST on a connection of its own, and its answer. Leave it with `close`, which ends the request at the engine.

    `read` and `pass_on` raise BrokeOff where the answer stops before its end, and TimeoutError after `idle_seconds`
    without a byte, or `total_seconds` from the beginning.
    """

    def __init__(self, idle_seconds: float, total_seconds: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """By their names in lower case."""
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        self._head: asyncio.Future[None] = self._loop.create_future()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._body: list[bytes] = []
        self._sink: Callable[[bytes], None] = self._body.append
        self._is_full: Callable[[], bool] = bool  # never
        self._idle_seconds, self._heard = idle_seconds, self._loop.time()
        self._last = self._heard + total_seconds
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def post(
        cls,
        url: str,
        path: str,
        body: bytes | bytearray,
        *,
        idle_seconds: float,
        total_seconds: float,
        headers: Mapping[str, str] | None = None,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Self:
        """Send the request and wait for the head of the answer; raises as `read` does, and NotConnected.

        `on_sent` is called when the body is not needed any more, which may be long before the answer begins.
        """
        address = urlsplit(url).netloc
        host, _, port = address.partition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, self = await loop.create_connection(lambda: cls(idle_seconds, total_seconds), host, int(port or 80))
        except TimeoutError:  # an OSError as well
            raise NotConnected(f"no connection within {CONNECT_SECONDS:.0f} s") from None
        except OSError as error:
            raise NotConnected(type(error).__name__) from None
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        )
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()) + "\r\n"
        try:
            await self._send(head.encode(), body)
            on_sent()
            await self._head
        except BaseException:
            self.close()
            raise
        return self

    async def _send(self, head: bytes, body: bytes | bytearray) -> None:
        """Write it as fast as the engine takes it; an engine that has answered already is given no more."""
        self._transport.write(head + body[:SLICE_BYTES])
        for start in range(SLICE_BYTES, len(body), SLICE_BYTES):
            await self._writable.wait()
            if self._head.done():
                return
            self._transport.write(bytes(body[start : start + SLICE_BYTES]))

    async def read(self) -> bytes:
        """Wait for the end of the answer and return its whole body."""
        await self._end
        return b"".join(self._body)

    async def pass_on(self, sink: Callable[[bytes], None], is_full: Callable[[], bool]) -> None:
        """Call `sink` with each piece of the body as it comes; while it is full nothing more is read.

        What `sink` raises ends it, and is raised here.
        """
        for piece in self._body:
            sink(piece)
        self._sink, self._is_full = sink, is_full
        await self._end

    def close(self) -> None:
        """Close the connection; an engine that is still answering sees that the reader is gone."""
        self._timer.cancel()
        self._transport.abort()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._look_at_clock()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            # Around what the sink raised, where it did.
            self._fail(error.__context__ or BrokeOff("its answer is no HTTP"))
        if self._is_full():
            self._hold()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(BrokeOff(type(error).__name__ if error else "it closed the connection"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- the parser's callbacks ---------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if not self._head.done():
            self._head.set_result(None)
        self._writable.set()

    def on_body(self, piece: bytes) -> None:
        self._sink(piece)

    def on_message_complete(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Read no more until the sink has room again."""
        if self._transport.is_closing():
            return
        if self._is_full():
            self._transport.pause_reading()
            self._loop.call_later(CLOGGED_SECONDS, self._hold)
        else:
            self._heard = self._loop.time()
            self._transport.resume_reading()

    def _look_at_clock(self) -> None:
        """Check the time limits now and then, since moving a timer for each piece costs more than the rest."""
        now = self._loop.time()
        heard = self._heard if self._transport.is_reading() else now
        end = min(self._last, heard + self._idle_seconds)
        if now < end:
            self._timer = self._loop.call_later(end - now, self._look_at_clock)
        else:
            self._fail(TimeoutError())

    def _fail(self, error: BaseException) -> None:
        for future in (self._head, self._end):
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: no caller has to wait for both
        self._writable.set()
