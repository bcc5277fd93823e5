"""Clients that take their time: a head or a body that does not come is given up, and costs the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import pytest
from fastapi import APIRouter
from starlette.middleware import Middleware
from starlette.types import Message, Receive

from llm_tuning.openai_api import slow_clients
from llm_tuning.openai_api.app import create_app
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.edge import Edge
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.limits import KeyLimits
from llm_tuning.openai_api.metrics import Metrics
from llm_tuning.openai_api.routes import files, health, jobs
from llm_tuning.openai_api.slow_clients import HEAD_BYTES, in_time
from tests.support.openai_api import make_context
from tests.support.openai_upstream import listening

SHORT = 0.2
PATIENCE = 20
HEAD = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\n"
QUICK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"a": 1}\n'


# --- bodies -----------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def sent(parts: Iterable[bytes], clock: Clock, seconds: float) -> Receive:
    """Parts of a body that each keep the server waiting so long."""
    left = list(parts)

    async def receive() -> Message:
        await asyncio.sleep(0)
        clock.now += seconds
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


async def read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            return body


@pytest.mark.parametrize(("size", "is_taken"), [(100, False), (50_000, True)])
async def test_a_body_that_only_trickles_is_given_up(size: int, is_taken: bool) -> None:
    clock = Clock()
    receive = in_time(sent([b"x" * size] * 20, clock, 40), clock)
    if is_taken:
        assert await read(receive) == b"x" * size * 20
    else:
        with pytest.raises(ApiError, match="stopped after 200 bytes") as refused:
            await read(receive)
        assert (refused.value.status, refused.value.code) == (408, "request_timeout")


async def test_what_the_server_does_with_a_part_is_not_the_clients_time() -> None:
    clock = Clock()
    receive = in_time(sent([b"x"] * 5, clock, 1), clock)
    for _ in range(5):
        await receive()
        clock.now += 1000


async def test_the_end_of_a_connection_may_be_waited_for_as_long_as_an_answer_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "SILENCE_SECONDS", 0.01)
    messages = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    timed = in_time(receive)
    await timed()
    assert (await timed())["type"] == "http.disconnect"


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: object) -> Context:
    return make_context(tmp_path)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(context: Context) -> AsyncIterator[int]:
    """The API behind its edge, on a socket; its port."""
    router = APIRouter()

    @router.get("/v1/long")
    async def answer_late() -> str:
        await asyncio.sleep(4 * SHORT)
        return "late"

    edge = Middleware(Edge, keys=None, limits=KeyLimits(), metrics=Metrics())
    app = create_app(context, middleware=[edge], routers=[health.router, files.router, jobs.router, router])
    async with listening(app, keep_alive_seconds=1) as url:
        yield int(url.rpartition(":")[2].partition("/")[0])


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, content: bytes) -> None:
        self._writer.write(content)
        await self._writer.drain()

    async def answer(self) -> bytes:
        """The head of the next answer, and its body."""
        async with asyncio.timeout(PATIENCE):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
            return head + await self._reader.readexactly(int(length.partition(b":")[2]))

    async def end(self) -> bytes:
        """All that comes until the server ends the connection."""
        said = b""
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                while part := await self._reader.read(65536):
                    said += part
        return said

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "SILENCE_SECONDS"):
        monkeypatch.setattr(slow_clients, name, SHORT)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "begun",
    [b"", b"G", HEAD, HEAD + b"X-Name: val"],
    ids=["nothing", "one byte", "whole lines", "half a line"],
)
async def test_a_head_that_is_not_finished_is_given_up(context: Context, begun: bytes) -> None:
    async with serving(context) as port, connected(port) as client:
        await client.send(begun)
        assert await client.end() == b""


@pytest.mark.usefixtures("short")
async def test_a_head_that_trickles_is_given_up(context: Context) -> None:
    async def trickle(client: Client) -> None:
        with suppress(ConnectionError):
            while True:
                await client.send(b"x")
                await asyncio.sleep(SHORT / 4)

    async with serving(context) as port, connected(port) as client:
        await client.send(HEAD + b"X-Name: ")
        trickling = asyncio.create_task(trickle(client))
        assert await client.end() == b""
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)


@pytest.mark.parametrize("more", [b"y" * 2**16, b"X: y\r\n" * 2**13], ids=["one field", "many fields"])
async def test_a_head_without_an_end_is_given_up_for_its_size(context: Context, more: bytes) -> None:
    async with serving(context) as port, connected(port) as client:
        await client.send(HEAD + b"X: y")
        with suppress(ConnectionError):
            for _ in range(4 * HEAD_BYTES // len(more)):
                await client.send(more)
        assert await client.end() == b""


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("begun", [b"", b'{"model": '], ids=["nothing", "its beginning"])
async def test_a_body_that_does_not_come_is_a_408_and_the_connection_ends(context: Context, begun: bytes) -> None:
    async with serving(context) as port, connected(port) as client:
        await client.send(HEAD + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n" + begun)
        said = await client.end()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in said


@pytest.mark.usefixtures("short")
async def test_an_upload_that_stops_is_a_408_and_leaves_nothing(context: Context) -> None:
    async with serving(context) as port, connected(port) as client:
        await client.send(UPLOAD + b"Content-Length: 1000\r\n\r\n" + PART)
        said = await client.end()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert f"stopped after {len(PART)} bytes".encode() in said
    assert list(context.files.work.iterdir()) == []


@pytest.mark.usefixtures("short")
async def test_a_request_that_is_sent_ahead_does_not_cut_the_answer_before_it(context: Context) -> None:
    async with serving(context) as port, connected(port) as client:
        await client.send(QUICK.replace(b"/healthz", b"/v1/long") + QUICK[:20])
        assert b'"late"' in await client.answer()
        await client.send(QUICK[20:])
        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("short")
async def test_a_connection_that_rests_between_two_requests_is_kept(context: Context) -> None:
    async with serving(context) as port, connected(port) as client:
        await client.send(QUICK)
        await client.answer()
        await asyncio.sleep(2 * SHORT)
        await client.send(QUICK)
        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("more", [b"\r\n", b"x"], ids=["between requests", "rest of a body"])
async def test_what_is_no_request_does_not_keep_a_connection_for_ever(context: Context, more: bytes) -> None:
    answered_early = HEAD.replace(b"/v1/fine_tuning/jobs", b"/healthz") + b"Content-Length: 9999\r\n\r\n"
    async with serving(context) as port, connected(port) as client:
        await client.send(QUICK if more == b"\r\n" else answered_early)
        await client.answer()
        await client.send(more)
        assert await client.end() == b""


async def test_a_crowd_of_half_heads_keeps_nobody_waiting(context: Context) -> None:
    async with serving(context) as port:
        crowd = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(200)]
        for each in crowd:
            await each.send(HEAD)
        async with connected(port) as client:
            await client.send(QUICK)
            assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
        for each in crowd:
            each.close()
