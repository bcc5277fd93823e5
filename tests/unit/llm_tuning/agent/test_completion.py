"""An answer of the engine is handed on whole, or it is said what is missing; the other side is a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from llm_tuning.agent.http.completion import BrokeOff, Completion

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def engine(*pieces: bytes, then: Talk | None = None) -> AsyncIterator[str]:
    """Answers a request with pieces, each in a packet of its own, and closes; or goes on with `then`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
        if then is not None:
            await then(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@asynccontextmanager
async def asked(url: str, *, idle_seconds: float = 5, total_seconds: float = 5) -> AsyncIterator[Completion]:
    answer = await Completion.post(
        url, "/v1/completions", b"{}", idle_seconds=idle_seconds, total_seconds=total_seconds
    )
    try:
        yield answer
    finally:
        answer.close()


async def passed_on(answer: Completion) -> bytes:
    pieces: list[bytes] = []
    await answer.pass_on(pieces.append, lambda: False)
    return b"".join(pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + chunk(b"data: 1\n\n") + chunk(b"data: 2\n\n") + END],
        [HEAD, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"), END],
        [bytes([byte]) for byte in HEAD + chunk(b"data: 1\n\n") + chunk(b"data: 2\n\n") + END],
        [HEAD, chunk(b"data: 1\n"), chunk(b"\ndata: 2\n\n") + END],
    ],
    ids=["at-once", "by-chunk", "byte-by-byte", "split-event"],
)
async def test_every_cut_of_an_answer_gives_the_same(pieces: list[bytes]) -> None:
    async with engine(*pieces) as url, asked(url) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert await passed_on(answer) == b"data: 1\n\ndata: 2\n\n"


async def test_an_answer_with_a_length_is_read_whole() -> None:
    async with engine(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nno", b"ne") as url, asked(url) as answer:
        assert answer.status == 404
        assert await answer.read() == b"none"


@pytest.mark.parametrize(
    ("pieces", "why"),
    [([], "closed the connection"), ([b"HTTP/1.1 200"], "closed the connection"), ([b"hello\r\n\r\n"], "no HTTP")],
    ids=["nothing", "half-a-head", "no-http"],
)
async def test_no_answer_is_broken_off(pieces: list[bytes], why: str) -> None:
    async with engine(*pieces) as url:
        with pytest.raises(BrokeOff, match=why):
            async with asked(url):
                pass


@pytest.mark.parametrize(
    ("piece", "why"), [(b"", "closed the connection"), (b"nonsense\r\n", "no HTTP")], ids=["closed", "no-http"]
)
async def test_half_an_answer_is_handed_on_and_broken_off(piece: bytes, why: str) -> None:
    async with engine(HEAD, chunk(b"data: 1\n\n"), piece) as url, asked(url) as answer:
        pieces: list[bytes] = []
        with pytest.raises(BrokeOff, match=why):
            await answer.pass_on(pieces.append, lambda: False)
        assert pieces == [b"data: 1\n\n"]


async def test_nobody_there_is_broken_off() -> None:
    async with engine() as url:
        pass
    with pytest.raises(BrokeOff, match="ConnectionRefusedError"):
        async with asked(url):
            pass


async def test_silence_and_the_whole_time_are_bounded() -> None:
    async with engine(then=silent) as url:
        with pytest.raises(TimeoutError):
            async with asked(url, idle_seconds=0.05):
                pass
    async with engine(HEAD, then=silent) as url, asked(url, idle_seconds=0.05) as answer:
        with pytest.raises(TimeoutError):
            await passed_on(answer)
    words = [chunk(b"data: 1\n\n")] * 60  # 5 ms each: never silent for 0.1 s
    async with engine(HEAD, *words, END) as url, asked(url, idle_seconds=0.1) as answer:
        assert len(await passed_on(answer)) == 60 * 9, "a byte begins the silence anew"
    async with engine(HEAD, *words, END) as url, asked(url, idle_seconds=0.1, total_seconds=0.15) as answer:
        with pytest.raises(TimeoutError):
            await passed_on(answer)


async def test_while_the_sink_is_full_the_engine_waits_and_nothing_is_lost() -> None:
    """As long as it lasts: it is the client who is silent then, not the engine."""
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(1000):
            writer.write(chunk(bytes(2**15)))
            await writer.drain()
            sent += 2**15
        writer.write(END)

    async with engine(HEAD, then=pour) as url, asked(url, idle_seconds=0.1, total_seconds=20) as answer:
        taken, full = 0, True

        def take(piece: bytes) -> None:
            nonlocal taken
            taken += len(piece)

        passing = asyncio.create_task(answer.pass_on(take, lambda: full))
        await asyncio.sleep(0.4)
        assert not passing.done()
        assert taken < 2**20
        assert sent < 1000 * 2**15, "the engine is not read any more"
        full = False
        await passing
        assert taken == 1000 * 2**15


async def test_the_silence_begins_anew_when_the_sink_has_room_again() -> None:
    full = True

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.9)
        writer.write(END)

    async with engine(HEAD, chunk(b"data: 1\n\n"), then=late) as url, asked(url, idle_seconds=0.4) as answer:
        passing = asyncio.create_task(answer.pass_on(lambda piece: None, lambda: full))
        await asyncio.sleep(0.6)  # longer than the silence may last; and then less
        full = False
        await passing


async def test_what_the_sink_raises_ends_it() -> None:
    def gone(piece: bytes) -> None:
        raise ConnectionResetError("the client is gone")

    async with engine(HEAD, chunk(b"data: 1\n\n"), then=silent) as url, asked(url) as answer:
        with pytest.raises(ConnectionResetError, match="the client is gone"):
            await answer.pass_on(gone, lambda: False)


@pytest.mark.parametrize("pieces", [[], [HEAD]], ids=["before-its-head", "after-its-head"])
async def test_leaving_it_is_seen_by_the_engine(pieces: list[bytes]) -> None:
    asked_for, left = asyncio.Event(), asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked_for.set()
        try:
            await reader.read()
        finally:
            left.set()

    async def ask(url: str) -> None:
        async with asked(url) as answer:
            await passed_on(answer)

    async with engine(*pieces, then=listen) as url, asyncio.timeout(2):
        asking = asyncio.create_task(ask(url))
        await asked_for.wait()
        asking.cancel()
        await left.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking
