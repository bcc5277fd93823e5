"""Connections that say nothing, by the hundred and again and again: the endpoint lives, and who may report is heard."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llm_tuning.core.ca import trusting
from tuning_operator.reports.connections import MAX_UNKNOWN_OF_ADDRESS

ROOT = Path(__file__).resolve().parents[3]
CONNECTIONS = 800
SECONDS = 6.0
MOST_MEMORY = 200 * 2**20
"""The container's limit is 384 MiB, and the rest of the operator takes some 40 more than this process at rest."""


ANYBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ANYBODY.check_hostname, ANYBODY.verify_mode = False, ssl.CERT_NONE


class Endpoint:
    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "ca.crt"
        command = [sys.executable, "-m", "tests.support.report_endpoint", str(self.ca_file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        said = self._line()
        self.port, self.token = int(said["port"]), str(said["token"])

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    async def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return await asyncio.to_thread(self._line)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    started = Endpoint(tmp_path)
    yield started
    started.process.kill()
    started.process.communicate()


async def linger(port: int, kind: str, address: str, again: bool) -> None:
    """One client that stays as long as it may, and comes again whenever it is sent away where `again` is True."""
    tried = False
    while again or not tried:
        tried = True
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=None if kind == "no handshake" else ANYBODY, local_addr=(address, 0)
            )
            try:
                if kind == "half a request":
                    writer.write(b"POST /v1/namespaces/team/tuningjobs/faq/status HTTP/1.1\r\nHost: x\r\nA: ")
                await reader.read()
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.5)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("idle", "of one's own address"),
        ("half a request", "that come again"),
        ("idle", "of many addresses"),
        ("no handshake", "of many addresses"),
    ],
)
async def test_trainers_are_heard_while_hundreds_linger(endpoint: Endpoint, kind: str, where: str) -> None:
    addresses = {"of one's own address": ["127.0.0.1"], "that come again": ["127.0.0.2"]}.get(
        where, [f"127.0.1.{number}" for number in range(1, 41)]
    )
    at_rest = (await endpoint.ask())["peak"]
    again = where == "that come again"
    crowd = [
        asyncio.create_task(linger(endpoint.port, kind, addresses[number % len(addresses)], again))
        for number in range(CONNECTIONS)
    ]
    await asyncio.sleep(3)
    url = f"https://127.0.0.1:{endpoint.port}/v1/namespaces/team/tuningjobs/faq/status"
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    heard, tried = 0, 0
    context = trusting(endpoint.ca_file)
    context.check_hostname = False
    end = asyncio.get_running_loop().time() + SECONDS
    while asyncio.get_running_loop().time() < end:
        tried += 1
        with suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=5)
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=timeout) as session,
                session.post(url, json={"trainerStatus": {"progressPercentage": 7}}, headers=headers) as answer,
            ):
                heard += answer.status == 200
        await asyncio.sleep(0.2)
    found = await endpoint.ask()
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    peak = found["peak"]
    print(f"{kind} {where}: {at_rest >> 20} -> {peak >> 20} MiB, late {found['late']:.2f} s, {heard} of {tried} heard")
    assert endpoint.process.poll() is None
    assert peak < MOST_MEMORY
    assert found["late"] < 5, "the Lease is lost after 15 s"
    assert heard >= 0.8 * tried
    assert tried >= 5


async def test_no_more_than_a_share_is_kept_for_one_address(endpoint: Endpoint) -> None:
    sockets = []
    try:
        for _ in range(300):
            opened = socket.create_connection(("127.0.0.1", endpoint.port))
            sockets.append(opened)
        await asyncio.sleep(0.5)
        closed = 0
        for opened in sockets:
            opened.setblocking(False)
            with suppress(BlockingIOError):
                closed += opened.recv(1) == b""
        assert closed >= 300 - MAX_UNKNOWN_OF_ADDRESS
    finally:
        for opened in sockets:
            opened.close()
