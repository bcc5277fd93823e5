"""Clients that send slowly, or a head without an end: the server waits for neither for ever.

uvicorn gives a request's head and body all the time there is, and keeps whatever comes of a head. Each connection that
waits costs memory and a file descriptor, an upload its draft and its part of the quota besides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llm_tuning.openai_api.errors import ApiError

HEAD_SECONDS, HEAD_BYTES = 60.0, 2**18
SILENCE_SECONDS, BYTES_PER_SECOND = 60.0, 1024
"""A body may rest for so long at a time, and besides comes at least so fast."""


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose head is late or too long."""

    _timer: asyncio.TimerHandle | None = None
    _is_in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head from here on; before a later one uvicorn's keep-alive counts."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what came, and count what is of a head."""
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.close()
        elif self._timer is None and self.timeout_keep_alive_task is None and self._is_idle():
            # What has no head, and the rest of a body that was answered before its end: uvicorn has just forgotten time
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        """End a head."""
        self._is_in_head = False
        self._forget_head()
        super().on_headers_complete()

    def _is_idle(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _forget_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        self._timer = None
        if self._is_idle():
            self.transport.close()
        else:  # it was sent ahead: the answer before it comes first
            self._expect_head()


def in_time(receive: Receive, clock: Callable[[], float] = time.monotonic) -> Receive:
    """Wait for each part of a body only as long as it may take; raises ApiError (408) then.

    What counts is the time that the client lets the server wait, not what the server does in between.
    """
    waited, size, is_whole = 0.0, 0, False

    async def timed() -> Message:
        nonlocal waited, size, is_whole
        if is_whole:  # what comes next is the end of the connection
            return await receive()
        began = clock()
        left = SILENCE_SECONDS + size / BYTES_PER_SECOND - waited
        try:
            async with asyncio.timeout(min(SILENCE_SECONDS, left)):
                message = await receive()
        except TimeoutError:
            raise _late(size) from None
        waited += clock() - began
        size += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    return timed


def _late(size: int) -> ApiError:
    text = (
        f"The request's body stopped after {size:,} bytes: it may rest for {SILENCE_SECONDS:.0f} s at a time, and has "
        f"to come at {BYTES_PER_SECOND:,} bytes a second."
    )
    return ApiError(408, text, code="request_timeout", headers={"connection": "close"})
