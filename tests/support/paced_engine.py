"""A stand-in for a model's service under load, as a process: each stream gets a token at each step, as in a real batch.

    python -m tests.support.paced_engine PORT

A request has `max_tokens`, and `step_ms`: the time of a step; 0 is as fast as it can. It costs little beside what is
measured with it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
MOST_UNSENT = 2**16
"""Bytes of a stream that its reader has not taken; more tokens wait."""


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(content: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": None, "token_ids": None}
    value = {"id": "chatcmpl-1234567890abcdef", "object": "chat.completion.chunk", "created": 1, "model": "ft:tiny"}
    return b"data: " + json.dumps(value | {"choices": [choice]}).encode() + b"\n\n"


EVENT = _chunk(_event(" token"))
END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Engine:
    """The streams under way, and the steps."""

    def __init__(self) -> None:
        self.streams: set[Stream] = set()
        self.step_seconds = 0.0

    async def run(self) -> None:
        """Give every stream a token at every step."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self.step_seconds, loop.time())
            await asyncio.sleep(due - loop.time())
            for stream in list(self.streams):
                stream.step()


class Stream(asyncio.Protocol):
    """A connection, whose requests come one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._data = b""
        self._left = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._engine.streams.discard(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        if not found or len(body) < int(length.partition(b":")[2]):
            return
        self._data = b""
        asked = json.loads(body)
        self._left = asked["max_tokens"]
        self._engine.step_seconds = asked["step_ms"] / 1000
        self._transport.write(HEAD + _chunk(_event("")))
        self._engine.streams.add(self)

    def step(self) -> None:
        """Send the next token, and after the last one the end."""
        if self._transport.get_write_buffer_size() > MOST_UNSENT:
            return
        self._left -= 1
        self._transport.write(EVENT if self._left else EVENT + END)
        if not self._left:
            self._engine.streams.discard(self)


async def _main(port: int) -> None:
    engine = Engine()
    await asyncio.get_running_loop().create_server(lambda: Stream(engine), "127.0.0.1", port, backlog=256)
    await engine.run()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
