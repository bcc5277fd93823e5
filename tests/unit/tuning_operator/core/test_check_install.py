"""What `helm test` says of real servers, right and wrong ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llm_tuning.api.kube import API_VERSION
from tests.support.authorities import intermediate_authority
from tuning_operator.core.check_install import main
from tuning_operator.reports.certificates import make_ca, make_serving_cert
from tuning_operator.reports.tls import serving_context

NOW = datetime.now(UTC)
KINDS = ("tuningjobs", "inferenceservices")


@dataclass
class Site:
    """The three servers, as the pod of `helm test` is told of them."""

    environment: dict[str, str]
    answers: dict[str, Any]
    """What they say; a test changes it."""
    tokens: list[str]
    account: Path

    async def check(self, patience_seconds: float = 0) -> int:
        return await asyncio.to_thread(main, self.environment, account=self.account, patience_seconds=patience_seconds)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    ca = intermediate_authority()
    api_ca = make_ca(NOW)
    (tmp_path / "operator.crt").write_bytes(ca.certificate_pem)
    (tmp_path / "ca.crt").write_bytes(api_ca.certificate_pem)
    (tmp_path / "token").write_text("of-the-pod")
    answers: dict[str, Any] = {"ready": 200, "progress": 404, "kinds": KINDS}
    tokens: list[str] = []

    async def ready(request: web.Request) -> web.Response:
        return web.Response(status=answers["ready"])

    async def progress(request: web.Request) -> web.Response:
        return web.Response(status=answers["progress"])

    async def resources(request: web.Request) -> web.Response:
        tokens.append(request.headers["Authorization"])
        return web.json_response({"resources": [{"name": name} for name in answers["kinds"]]})

    health, reports, api = web.Application(), web.Application(), web.Application()
    health.router.add_get("/readyz", ready)
    reports.router.add_get("/", progress)
    api.router.add_get(f"/apis/{API_VERSION}", resources)
    contexts = (None, *(serving_context(make_serving_cert(each, ["localhost"], NOW)) for each in (ca, api_ca)))
    servers = [TestServer(health), TestServer(reports), TestServer(api)]
    for server, context in zip(servers, contexts, strict=True):
        await server.start_server(ssl=context)
    first, second, third = (server.port for server in servers)
    try:
        yield Site(
            {
                "HTTP_URL": f"http://localhost:{first}",
                "PROGRESS_URL": f"https://localhost:{second}",
                "CA_FILE": str(tmp_path / "operator.crt"),
                "KUBERNETES_SERVICE_HOST": "localhost",
                "KUBERNETES_SERVICE_PORT": str(third),
            },
            answers,
            tokens,
            tmp_path,
        )
    finally:
        for server in servers:
            await server.close()


async def test_all_is_well(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert await site.check() == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["ok"] * 3
    assert site.tokens == ["Bearer of-the-pod"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ready": 503}, "failed: is_ready: HTTPError"),
        ({"progress": 500}, "failed: serves_progress: HTTPError"),
        ({"kinds": KINDS[:1]}, "without inferenceservices"),
    ],
)
async def test_what_is_wrong_is_said_and_the_rest_is_checked(
    site: Site, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any], said: str
) -> None:
    site.answers |= wrong
    assert await site.check() == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    [line] = [line for line in lines if not line.startswith("ok")]
    assert said in line


async def test_a_server_of_another_authority_is_not_trusted(
    site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(make_ca(NOW).certificate_pem)
    site.environment["CA_FILE"] = str(other)
    assert await site.check() == 1
    assert "certificate verify failed" in capsys.readouterr().out


async def test_it_waits_for_what_is_coming(site: Site) -> None:
    site.answers["ready"] = 503

    async def come() -> None:
        await asyncio.sleep(0.3)
        site.answers["ready"] = 200

    coming = asyncio.create_task(come())
    assert await site.check(patience_seconds=10) == 0
    await coming
