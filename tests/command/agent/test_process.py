"""The agent as a process of its own: what the worst bodies do to its memory and answers, and what ends it at once."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from llm_tuning.agent.body import Bodies, Body
from llm_tuning.agent.contract import API_KEY_VARIABLE, DESIRED_FILE, INPUT_VARIABLE, PLAN_FILE, ServeInput
from llm_tuning.agent.refusal import Refused
from llm_tuning.agent.starting import DRAINED_FILE
from llm_tuning.api.inference_service import VllmSpec
from tests.support.serving_pod import desired
from tests.support.vllm_server import free_port
from tests.unit.llm_tuning.agent.conftest import BASE, PLAN

ROOT = Path(__file__).resolve().parents[3]
LIMIT_BYTES = 2**30
"""Of the agent's container."""
HEAD = b'{"model": "base", "messages": [], "pad": '
WHOLE = 8 * 2**20 - 100
WORST = {
    "empty objects": HEAD + b"[" + b",".join([b"{}"] * (WHOLE // 3)) + b"]}",
    "as many values as are allowed": HEAD + b"[" + b",".join([b'{"a":[]}'] * 80_000) + b"]}",
    "texts": HEAD + b"[" + b",".join(b'"%07d"' % n for n in range(250_000)) + b"]}",
    "one text of four-byte characters": HEAD + b'"' + "😀".encode() * (WHOLE // 4) + b'"}',
    "one text": HEAD + b'"' + b"x" * (WHOLE - 50) + b'"}',
    "a text full of marks": HEAD + b'"' + b",[{" * (WHOLE // 3 - 20) + b'"}',
    "nesting": HEAD + b"[" * (WHOLE // 2) + b"]" * (WHOLE // 2) + b"}",
    "gzip": gzip.compress(HEAD + b"[" + b",".join([b"{}"] * (WHOLE // 3)) + b"]}"),
}


@contextmanager
def agent(folder: Path, engine_port: int, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.support.serving_pod", str(folder), str(engine_port), str(port)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "operator")])
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": paths} | environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=30)


@pytest.fixture
async def engine_port(tmp_path: Path) -> AsyncIterator[int]:
    """An engine that reads bodies and parses none: what takes time and memory in the test is the agent."""
    run = tmp_path / "run"
    run.mkdir()
    (run / PLAN_FILE).write_text(replace(PLAN, base_name=BASE).encode())
    (run / DESIRED_FILE).write_text(desired({}).encode())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                found = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                left = int(found[1]) if found else 0
                while left:
                    left -= len(await reader.read(min(left, 2**20)) or b"x" * left)
                text = json.dumps({"data": [], "model": BASE}).encode()
                kind = b"Content-Type: application/json\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n" + kind + b"Content-Length: %d\r\n\r\n" % len(text) + text)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield int(server.sockets[0].getsockname()[1])
    server.close()


LOOK = """
import sys, threading, time, urllib.request
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
longest = 0.0
while not over.is_set():
    began = time.monotonic()
    assert urllib.request.urlopen(sys.argv[1], timeout=30).status == 200
    longest = max(longest, time.monotonic() - began)
    time.sleep(0.02)
print(longest)
"""
"""The longest time that an address took to answer, measured in a process that has nothing else to do."""


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with session.get(f"{url}/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


@pytest.mark.timeout(240)
async def test_fifty_of_the_worst_bodies_at_once_take_little_memory_and_the_agent_answers_meanwhile(
    tmp_path: Path, engine_port: int
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    statuses: dict[str, Counter[int]] = {}
    with agent(tmp_path, engine_port, port) as process:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            await until_ready(session, url)
            at_rest = peak_bytes(process)

            async def send(content: bytes, kind: str) -> int:
                headers = {"Content-Encoding": "gzip"} if kind == "gzip" else {}
                try:
                    async with session.post(f"{url}/v1/chat/completions", data=content, headers=headers) as answer:
                        await answer.read()
                        return answer.status
                except aiohttp.ClientError:  # it was answered and closed while it was being sent
                    return 0

            looking = subprocess.Popen(
                [sys.executable, "-c", LOOK, f"{url}/live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for kind, content in WORST.items():
                statuses[kind] = Counter(await asyncio.gather(*(send(content, kind) for _ in range(50))))
            longest = float((await asyncio.to_thread(looking.communicate))[0])
            peak = peak_bytes(process)
            assert process.poll() is None
            assert await send(b'{"model": "base", "messages": []}', "") == 200
    print(f"at rest {at_rest >> 20} MiB, peak {peak >> 20} MiB, longest wait {longest:.2f} s, {statuses}")
    assert peak < LIMIT_BYTES // 2, peak
    assert longest < 25, longest  # the kubelet gives up after six probes, 30 s
    assert set(statuses["gzip"]) == {415}
    assert set(statuses["empty objects"]) <= {400, 503, 0}
    assert statuses["one text"][200] >= 5
    assert all(status in (0, 200, 400, 415, 503) for found in statuses.values() for status in found), statuses


@pytest.mark.parametrize("key", ["", "\n"])
async def test_an_empty_key_and_the_bound_of_answers_come_from_the_containers_environment(
    tmp_path: Path, engine_port: int, key: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = ServeInput(model_path="base", base_name=BASE, gpus=0, vllm=VllmSpec(max_choices=2)).encode()
    async with aiohttp.ClientSession(trust_env=False) as session:
        with agent(tmp_path, engine_port, port, **{API_KEY_VARIABLE: key}) as process:
            await until_ready(session, url)
            for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}, {"X-Api-Key": ""}):
                for path in ("models", "chat/completions"):
                    async with session.get(f"{url}/v1/{path}", headers=headers) as answer:
                        assert answer.status == 401
            process.terminate()
            assert await asyncio.to_thread(process.wait, 20) == 0
            assert "the API key is empty: every request is refused" in (tmp_path / "agent.log").read_text()
            assert (tmp_path / "run" / DRAINED_FILE).exists()
        with agent(tmp_path, engine_port, port, **{API_KEY_VARIABLE: "s3cret\n", INPUT_VARIABLE: given}):
            await until_ready(session, url)
            headers = {"Authorization": "Bearer s3cret"}
            for number, status in ((2, 200), (3, 400)):
                body = {"model": BASE, "messages": [], "n": number}
                async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                    assert answer.status == status


@pytest.mark.parametrize("kind", WORST)
def test_no_body_keeps_the_loop_for_long(kind: str) -> None:
    """By the processor's time, which other work on the machine does not lengthen."""
    body = Body(Bodies(), bytearray(WORST[kind]))
    began = time.process_time()
    with suppress(Refused):
        body._parsed()
        body.name_model("ft_a")
    assert time.process_time() - began < 1.0, "a tenth of it on the machine where the limits were chosen"


def test_a_signal_while_it_imports_ends_it_at_once_and_tells_vllm(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from llm_tuning.agent import starting; "
        f"starting.leave_on_signals(pathlib.Path({str(tmp_path)!r})); print('started', flush=True); "
        "import llm_tuning.agent.commands; time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    process.stdout.close()
    assert time.monotonic() - began < 15, "not after its 60 s of sleep"
    assert (tmp_path / DRAINED_FILE).exists()


def test_signals_are_handled_before_anything_heavy_is_imported() -> None:
    """As PID 1 an unhandled SIGTERM does nothing; the imports take a second or more."""
    script = (
        "import sys; import llm_tuning.agent.__main__ as door; "
        "heavy = {'aiohttp', 'pydantic', 'numpy', 'uvloop', 'torch'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
