"""What the agent costs between clients and vLLM: 32 streaming clients through it against straight to the same vLLM.

The agent runs in a process of its own, as in a pod. Clients, agent and vLLM share the machine's cores, so on two of
them what the agent computes is taken from vLLM. The rounds take turns, so that a machine in use is as busy for both.
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

import httpx
import pytest

from llm_tuning.agent.contract import DESIRED_FILE, PLAN_FILE
from llm_tuning.api.inference_service import VllmSpec
from tests.support.cores import cpu_seconds
from tests.support.serving import BASE, make_files
from tests.support.serving_pod import desired, engine_process, plan_for
from tests.support.vllm_server import free_port

pytestmark = [pytest.mark.timeout(900)]

CLIENTS = 32
TOKENS = 64
"""Of an answer on average. They differ, or all clients would ask at the same time again and again."""
REQUESTS = 4
"""Of each client in a round."""
ROUNDS = 12
ALONE = 4
"""Requests of one client between two rounds."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Round:
    """What the clients of one round saw."""

    seconds: float
    tokens: int
    first_token: list[float] = field(default_factory=list)
    """Seconds, of each request."""

    @property
    def throughput(self) -> float:
        return self.tokens / self.seconds


def test_what_the_agent_costs(tmp_path: Path) -> None:
    files = make_files(tmp_path / "claim", {"ft_a": {"b_scale": 0.05, "seed": 1}})
    wanted = desired({"a": "ft_a"})
    port, agent_port = free_port(), free_port()
    vllm = VllmSpec.model_validate({"maxModelLen": 512, "maxNumSeqs": CLIENTS})
    plan = plan_for(tmp_path, f"base/{BASE}", wanted, port=port, vllm=vllm)
    (tmp_path / "run" / PLAN_FILE).write_text(plan.encode())
    (tmp_path / "run" / DESIRED_FILE).write_text(wanted.encode())
    assert files.base.is_dir()
    with engine_process(tmp_path, plan, port=port) as engine, agent_process(tmp_path, port, agent_port) as agent:
        ways = {"straight": (port, "ft_a"), "through the agent": (agent_port, "a")}
        many: dict[str, list[Round]] = {way: [] for way in ways}
        alone: dict[str, list[float]] = {way: [] for way in ways}
        engine_cpu, cpu = dict.fromkeys(ways, 0.0), 0.0
        for port_and_model in ways.values():
            asyncio.run(_round(*port_and_model))  # warm
        for number in range(ROUNDS):
            # Each goes first as often as the other.
            for way in sorted(ways, reverse=bool(number % 2)):
                before, engine_before = cpu_seconds([agent.pid]), cpu_seconds(engine.pids())
                many[way].append(asyncio.run(_round(*ways[way])))
                engine_cpu[way] += cpu_seconds(engine.pids()) - engine_before
                cpu += cpu_seconds([agent.pid]) - before if ways[way][0] == agent_port else 0.0
            for _ in range(ALONE):
                for way in ways:
                    alone[way] += asyncio.run(_round(*ways[way], clients=1, requests=2, tokens=4)).first_token[1:]
    straight, through = many.values()
    ratios = [t.throughput / s.throughput for t, s in zip(through, straight, strict=True)]
    print(f"\n{CLIENTS} streaming clients, {ROUNDS} rounds in turns, {os.cpu_count()} cores")
    first = {
        way: statistics.median(x for one in rounds for x in one.first_token) * 1000 for way, rounds in many.items()
    }
    for way, rounds in many.items():
        print(
            f"{way:18} {statistics.median(one.throughput for one in rounds):5.0f} tokens/s, first token "
            f"{first[way]:.1f} ms, of one client alone {statistics.median(alone[way]) * 1000:.1f} ms, vLLM's CPU "
            f"{engine_cpu[way] / sum(one.tokens for one in rounds) * 1e6:.0f} us a token"
        )
    added = first["through the agent"] - first["straight"]
    added_alone = statistics.median(t - s for s, t in zip(*alone.values(), strict=True)) * 1000
    per_chunk = cpu / sum(one.tokens for one in through) * 1e6
    print(
        f"throughput ratio {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f}), first "
        f"token {added:+.1f} ms, of one client alone {added_alone:+.1f} ms, the agent's CPU {per_chunk:.0f} us a chunk"
    )
    assert statistics.median(ratios) >= 0.8
    assert added <= 5
    assert added_alone <= 5


@contextmanager
def agent_process(folder: Path, engine_port: int, agent_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m llm_tuning.agent serve` with folders and ports of ours, ready."""
    command = [sys.executable, "-m", "tests.support.serving_pod", str(folder), str(engine_port), str(agent_port)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "operator")])
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": paths})
    try:
        _wait_until_ready(f"http://127.0.0.1:{agent_port}/ready", folder / "agent.log")
        yield agent
    finally:
        agent.terminate()
        agent.wait(timeout=30)


def _wait_until_ready(url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


async def _round(
    port: int, model: str, *, clients: int = CLIENTS, requests: int = REQUESTS, tokens: int = TOKENS
) -> Round:
    began = time.monotonic()
    found = await asyncio.gather(*(_client(port, model, number, requests, tokens) for number in range(clients)))
    return Round(
        seconds=time.monotonic() - began,
        tokens=sum(made for made, _ in found),
        first_token=[seconds for _, times in found for seconds in times],
    )


async def _client(port: int, model: str, number: int, requests: int, tokens: int) -> tuple[int, list[float]]:
    """Its tokens, and seconds to each request's first; as little work as a client can have."""
    made, times = 0, []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for turn in range(requests):
        length = tokens // 2 + (number * 7 + turn * 13) % (tokens + 1)
        messages = [{"role": "user", "content": f"Question {number} in turn {turn}: what is a tuple?"}]
        body = {"model": model, "messages": messages, "max_tokens": length, "ignore_eos": True, "stream": True}
        content = json.dumps(body | {"temperature": 0}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        asked = time.monotonic()
        writer.write(head.encode() + f"{len(content)}\r\n\r\n".encode() + content)
        first, events, last = 0.0, 0, b""
        while True:
            data = await reader.read(65536)
            assert data, last
            assert last or data.startswith(b"HTTP/1.1 200"), data
            # The first event has the role; the second one a token.
            events += data.count(b"data: ")
            if not first and events >= 2:
                first = time.monotonic() - asked
            last = (last + data)[-4096:]
            if last.endswith(b"0\r\n\r\n"):
                break
        assert b"data: [DONE]" in last, last
        assert first
        made += length
        times.append(first)
    writer.close()
    return made, times
