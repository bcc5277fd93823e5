"""The progress server over real TLS: what a trainer posts arrives; everything else gets an answer that says why."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llm_tuning.core.ca import trusting
from llm_tuning.progress.endpoint import StatusEndpoint
from llm_tuning.progress.snapshot import Snapshot
from tests.support.authorities import intermediate_authority
from tests.support.cluster_tokens import ISSUER, Signer, published
from tests.support.report_endpoint import Store
from tuning_operator.core.audience import audience_of
from tuning_operator.core.errors import ClusterError
from tuning_operator.pods.trouble import Reported
from tuning_operator.reports import connections
from tuning_operator.reports import server as module
from tuning_operator.reports.certificates import make_serving_cert
from tuning_operator.reports.server import ProgressServer
from tuning_operator.reports.tls import serving_context
from tuning_operator.reports.tokens import ClusterKeys, TokenVerifier

SIGNER = Signer()
OURS = SIGNER.token(audience_of("team", "faq", "job-uid"))
BODY = {"trainerStatus": {"progressPercentage": 7, "metrics": [{"name": "loss", "value": "2.5"}]}}


@dataclass
class Running:
    """A server on a free port, its client, and what came through."""

    server: ProgressServer
    client: aiohttp.ClientSession
    ca_file: Path
    got: list[tuple[tuple[str, str], Reported]]
    counted: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.port}/v1/namespaces/team/tuningjobs/faq/status"

    async def post(self, *, token: str | None = OURS, **request: Any) -> tuple[int, str]:
        headers = request.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token is not None else {})
        if "data" not in request:
            request["json"] = BODY
        async with self.client.post(request.pop("url", self.url), headers=headers, **request) as answer:
            text = await answer.text()
            return answer.status, json.loads(text)["message"] if text else ""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    now = datetime.now(UTC)
    ca = intermediate_authority()
    ca_file = tmp_path / "ca.crt"
    ca_file.write_bytes(ca.certificate_pem)
    got: list[tuple[tuple[str, str], Reported]] = []
    counted: list[int] = []

    async def jwks() -> dict[str, Any]:
        return published(SIGNER)

    server = ProgressServer(
        TokenVerifier(ClusterKeys(jwks), Store(), lambda: ISSUER),
        lambda key, progress: got.append((key, progress)),
        serving_context(make_serving_cert(ca, ["localhost"], now)),
        host="127.0.0.1",
        port=0,
        count=counted.append,
    )
    await server.start()
    connector = aiohttp.TCPConnector(ssl=trusting(ca_file))
    async with aiohttp.ClientSession(connector=connector) as client:
        yield Running(server, client, ca_file, got, counted)
    await server.close()


async def test_a_report_arrives(running: Running) -> None:
    assert await running.post() == (200, "")
    [(key, reported)] = running.got
    progress = reported.progress
    assert key == ("team", "faq")
    assert (progress.percent, progress.loss) == (7, 2.5)
    assert running.counted == [200]


async def test_what_the_trainer_itself_posts_arrives(running: Running, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(OURS + "\n")
    trainer = StatusEndpoint(running.url, token, running.ca_file)
    await asyncio.to_thread(trainer.show, Snapshot(step=30, total_steps=120, metrics={"train/loss": 2.0}))
    await asyncio.to_thread(trainer.close, Snapshot(step=120, total_steps=120, done=True))
    assert [reported.progress.percent for _, reported in running.got] == [25, 100]


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        (None, 401, "a bearer token is required"),
        ("", 401, "a bearer token is required"),
        ("nonsense", 401, "the bearer token is not a signed token"),
        (SIGNER.token("another"), 403, "the token's audience is not TuningJob team/faq"),
    ],
)
async def test_a_request_without_the_right_token_is_refused(
    running: Running, token: str | None, status: int, message: str
) -> None:
    assert await running.post(token=token) == (status, message)
    assert running.got == []


async def test_another_scheme_is_no_bearer_token(running: Running) -> None:
    status, _ = await running.post(token=None, headers={"Authorization": f"Basic {OURS}"})
    assert status == 401


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"data": b"{"}, 400),
        ({"data": b""}, 400),
        ({"data": b" " * (64 * 1024 + 1)}, 413),
        ({"data": b"\x1f\x8b" + b"x" * 100, "headers": {"Content-Encoding": "gzip"}}, 400),
    ],
    ids=["no JSON", "empty", "too large", "compressed"],
)
async def test_a_wrong_body_is_refused(running: Running, request_: dict[str, Any], status: int) -> None:
    assert (await running.post(**request_))[0] == status
    assert running.got == []
    assert (await running.post())[0] == 200


async def test_other_paths_and_methods_are_refused(running: Running) -> None:
    assert (await running.post(url=running.url + "/more"))[0] == 404
    async with running.client.get(running.url) as answer:
        assert answer.status == 405


async def test_a_flood_of_one_pod_is_refused(running: Running) -> None:
    statuses = [(await running.post())[0] for _ in range(15)]
    assert statuses[:10] == [200] * 10
    assert 429 in statuses[10:]


async def test_a_body_that_never_ends_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.2)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    assert (await running.post(data=slow()))[0] == 408


async def test_a_connection_that_says_nothing_is_closed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await running.server.close()
    monkeypatch.setattr(module, "CONNECTION_SECONDS", 0.1)
    running.server.port = 0
    await running.server.start()
    context = trusting(running.ca_file)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", running.server.port, ssl=context, server_hostname="localhost"
    )
    writer.write(b"POST /v1/namespaces/team HTTP/1.1\r\nHost: x\r\n")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_a_cluster_that_does_not_answer_is_said(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down() -> dict[str, Any]:
        raise ClusterError("down")

    monkeypatch.setattr(running.server.verifier, "keys", ClusterKeys(down))
    assert await running.post() == (503, "the cluster's keys for tokens cannot be read yet")


async def test_a_fault_of_ours_is_an_answer_without_its_details(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(key: tuple[str, str], reported: Reported) -> None:
        raise RuntimeError("details")

    monkeypatch.setattr(running.server, "sink", broken)
    assert await running.post() == (500, "a fault of the operator; its log has the details")


async def test_refusals_are_logged_without_what_was_sent_and_a_flood_of_them_is_not(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for _ in range(30):
        await running.post(token="canary-token", data=b"canary-body")
    await running.post(data=b'{"trainerStatus": "canary-body"}')
    assert "canary" not in caplog.text
    refusals = [record for record in caplog.records if "progress refused" in record.message]
    assert 1 <= len(refusals) <= 12


async def test_old_tls_is_refused(running: Running) -> None:
    context = trusting(running.ca_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", running.server.port, ssl=context, server_hostname="localhost")


@pytest.mark.parametrize("error", [OSError("no IPv6"), ValueError("dualstack_ipv6 not supported on this platform")])
def test_a_node_without_ipv6_is_listened_on(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    real = socket.create_server

    def create_server(*arguments: Any, **options: Any) -> socket.socket:
        if options.get("dualstack_ipv6"):
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(connections.socket, "create_server", create_server)
    with connections._listening(None, 0) as listener:
        assert listener.family == socket.AF_INET
