"""What the fine-tuning API costs between clients and a model's service: 100 streams through it against straight there.

The service is a stand-in that gives every stream a token at each step, as vLLM does. Server, service and clients share
the machine's cores, and the rounds take turns, so that a machine in use is as busy for both.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from tests.support.api_process import Server, api_server_on_a_thread
from tests.support.cores import cpu_seconds
from tests.support.fake_api_server import write_kubeconfig
from tests.support.openai_chats import tune_and_serve
from tests.support.vllm_server import free_port

STREAMS = 100
ROUNDS = 8
ROOT = Path(__file__).resolve().parents[2]
PACES = {"steps of 25 ms": (25.0, 160), "as fast as it can": (0.0, 320)}
"""Milliseconds of a step, and tokens of an answer. 25 ms is 4,000 tokens a second for 100 streams."""


@dataclass
class Way:
    """Where clients ask."""

    port: int
    key: str
    model: str


@dataclass
class Round:
    """What the clients of one round saw, and what it cost."""

    seconds: float
    tokens: int
    cpu: float
    """Of the API's server, in seconds."""
    first_token: list[float] = field(default_factory=list)
    """Seconds, of each stream."""

    @property
    def throughput(self) -> float:
        return self.tokens / self.seconds


@pytest.mark.parametrize("pace", PACES)
def test_100_streams_through_the_server_are_as_fast_as_straight_to_the_service(tmp_path: Path, pace: str) -> None:
    with engine_process() as port, api_server_on_a_thread() as api_server:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", api_server.connection.server)
        (tmp_path / "claim" / "datasets" / "uploads").mkdir(parents=True)
        server = Server(tmp_path, kubeconfig)
        server.write(limits={"requestsPerMinute": 0})
        key = server.add_key("bench")
        server.start()
        assert server.process is not None
        try:
            model = tune_and_serve(server, key, api_server, f"http://127.0.0.1:{port}")
            ways = {"straight": Way(port, "none", model), "through the API": Way(server.port, key, model)}
            for way in ways.values():
                uvloop.run(_round(way, 0.0, 8))  # warm
            found: dict[str, list[Round]] = {name: [] for name in ways}
            for number in range(ROUNDS):
                for name in sorted(ways, reverse=bool(number % 2)):  # each goes first as often as the other
                    before = cpu_seconds([server.process.pid])
                    found[name].append(uvloop.run(_round(ways[name], *PACES[pace])))
                    found[name][-1].cpu = cpu_seconds([server.process.pid]) - before
        finally:
            server.end()
    straight, through = found.values()
    ratios = [t.throughput / s.throughput for t, s in zip(through, straight, strict=True)]
    print(
        f"\n{STREAMS} streams, {pace}, {ROUNDS} rounds in turns, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    firsts = {}
    for name, rounds in found.items():
        firsts[name] = statistics.median(x for one in rounds for x in one.first_token) * 1000
        throughput = statistics.median(one.throughput for one in rounds)
        print(f"{name:16} {throughput:7.0f} tokens/s, first token {firsts[name]:.1f} ms")
    cost = sum(one.cpu for one in through)
    print(
        f"ratio {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f}), first token "
        f"{firsts['through the API'] - firsts['straight']:+.1f} ms, the server's CPU "
        f"{cost / sum(one.tokens for one in through) * 1e6:.0f} us a token, "
        f"{cost / sum(one.seconds for one in through):.2f} of a core"
    )
    if PACES[pace][0]:
        assert statistics.median(ratios) >= 0.9


@contextmanager
def engine_process() -> Iterator[int]:
    """The stand-in; yields its port."""
    port = free_port()
    engine = subprocess.Popen([sys.executable, "-m", "tests.support.paced_engine", str(port)], cwd=ROOT)
    try:
        yield port
    finally:
        engine.terminate()
        engine.wait(timeout=30)


async def _round(way: Way, step_ms: float, tokens: int) -> Round:
    began = time.monotonic()
    firsts = await asyncio.gather(*(_client(way, step_ms, tokens) for _ in range(STREAMS)))
    return Round(time.monotonic() - began, STREAMS * tokens, 0.0, firsts)


async def _client(way: Way, step_ms: float, tokens: int) -> float:
    """Return the seconds to the first token; as little work as a client can have."""
    asked = {"model": way.model, "messages": [{"role": "user", "content": "What is a tuple?"}], "stream": True}
    content = json.dumps(asked | {"max_tokens": tokens, "step_ms": step_ms}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {way.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
    writer.write(head.encode() + content)
    first, events, last = 0.0, 0, b""
    while not last.endswith(b"0\r\n\r\n"):
        data = await reader.read(65536)
        assert data, last
        assert last or data.startswith(b"HTTP/1.1 200"), data
        events += (last[-5:] + data).count(b"data: ")
        if not first and events >= 2:  # the first has the role
            first = time.monotonic() - began
        last = (last + data)[-4096:]
    writer.close()
    assert events == tokens + 2, "the role, the tokens, and [DONE]"
    return first
