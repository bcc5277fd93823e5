"""Who is let through, and what the others are told, by OpenAI's SDK; what logs and metrics keep of it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from llm_tuning.openai_api.app import create_app
from llm_tuning.openai_api.context import Asking
from llm_tuning.openai_api.edge import BODY_BYTES, Edge, without_keys
from llm_tuning.openai_api.keys import KeyRecord, KeyRing, Role, digest, new_key
from llm_tuning.openai_api.limits import KeyLimits
from llm_tuning.openai_api.metrics import ENDPOINTS, OTHER, Metrics, endpoint_of
from tests.support.openai_sdk import sdk

NOW = datetime(2026, 12, 1, tzinfo=UTC)
MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "o"}


class Site:
    """An API of a few routes behind its edge, with a key for each role."""

    def __init__(self, folder: Path, limits: KeyLimits | None = None) -> None:
        self.folder = folder / "keys" / "secret"
        self.folder.mkdir(parents=True)
        self.keys = {name: self.add(name, role) for name, role in ROLES.items()}
        self.old = self.add("old", "full", expires=NOW)
        self.metrics = Metrics()
        self.received = 0
        self.answering = asyncio.Event()
        self.end = asyncio.Event()
        ring = KeyRing(self.folder.parent)
        edge = Middleware(Edge, keys=ring, limits=limits or KeyLimits(), metrics=self.metrics, now=lambda: NOW)
        self.app = create_app(None, middleware=[edge], routers=[self._routes()])  # type: ignore[arg-type]

    def add(self, name: str, role: Role, expires: datetime | None = None) -> str:
        key = new_key()
        record = KeyRecord(sha256=digest(key), role=role, expires=expires)
        (self.folder / name).write_text(record.encode())
        return key

    def client(self, key: str, **options: Any) -> openai.AsyncOpenAI:
        return sdk(self.app, api_key=self.keys.get(key, key), **options)

    def http(self, key: str) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.keys.get(key, key)}"} if key else {}
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://api", headers=headers)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def _routes(self) -> APIRouter:
        router = APIRouter()

        @router.get("/v1/models")
        async def models(asking: Asking) -> dict[str, Any]:
            return {"object": "list", "data": [MODEL | {"owned_by": f"{asking.name} {asking.role}"}]}

        @router.post("/v1/files")
        async def upload(request: Request) -> dict[str, int]:
            async for chunk in request.stream():
                self.received += len(chunk)
            return {"bytes": self.received}

        @router.post("/v1/fine_tuning/jobs")
        async def create(request: Request) -> dict[str, int]:
            return {"bytes": len(await request.body())}

        @router.post("/v1/chat/completions")
        async def chat() -> Response:
            async def stream() -> AsyncIterator[bytes]:
                yield b"data: 1\n\n"
                self.answering.set()
                await self.end.wait()
                yield b"data: [DONE]\n\n"

            return StreamingResponse(stream(), media_type="text/event-stream")

        @router.post("/v1/completions")
        async def fails() -> None:
            raise ZeroDivisionError

        return router


ROLES: dict[str, Role] = {"alice": "full", "reader": "read", "chatter": "chat"}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_a_route_knows_whose_key_asks_and_an_answer_has_an_id(site: Site) -> None:
    for name, role in ROLES.items():
        async with site.client(name) as client:
            page = await client.models.list()
        assert [model.owned_by for model in page.data] == [f"{name} {role}"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", page._request_id or "")


async def test_no_key_a_wrong_one_and_one_whose_time_is_over_are_401(site: Site) -> None:
    (site.folder / "old").write_text(KeyRecord(sha256=digest(site.old), role="full", expires=NOW).encode())
    wrong = new_key()
    for key, code, says in (
        (wrong, "invalid_api_key", "Incorrect API key provided. A new key counts within about a minute"),
        (site.old, "invalid_api_key", "The API key old has expired"),
    ):
        async with site.client(key) as client:
            with pytest.raises(openai.AuthenticationError, match=says) as raised:
                await client.models.list()
        assert raised.value.code == code
        assert key not in str(raised.value.response.text)
        assert raised.value.response.headers["www-authenticate"] == "Bearer"
    async with site.http("") as http:
        for headers in ({}, {"Authorization": site.keys["alice"]}, {"Authorization": "Bearer "}, {"X-Api-Key": wrong}):
            answer = await http.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            error = answer.json()["error"]
            assert error["message"].startswith("You did not provide an API key: send it as Authorization: Bearer KEY")
            assert error.keys() == {"message", "type", "param", "code"}
    reasons = {reason: site.sample("llm_tuning_api_refused_total", reason=reason) for reason in REASONS}
    assert reasons == {"no_key": 4, "wrong_key": 1, "expired_key": 1, "role": None}


REASONS = ("no_key", "wrong_key", "expired_key", "role")


async def test_a_role_that_may_not_is_403_and_says_what_it_may(site: Site) -> None:
    async with site.client("reader") as client:
        with pytest.raises(openai.PermissionDeniedError, match="the key reader has the role read") as raised:
            await client.fine_tuning.jobs.create(model="m", training_file="file-1")
        assert raised.value.code == "insufficient_permissions"
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="m", messages=[])
    async with site.client("chatter") as client:
        with pytest.raises(openai.PermissionDeniedError, match="GET /v1/files needs another"):
            await client.files.list()
    assert site.sample("llm_tuning_api_refused_total", reason="role") == 3


async def test_probes_and_metrics_ask_for_no_key_and_name_none(site: Site) -> None:
    async with site.http("alice") as http:
        await http.get("/v1/models")
    async with site.http("") as http:
        answer = await http.get("/metrics")
        assert answer.status_code == 200
        assert 'llm_tuning_api_requests_total{code="200",endpoint="/v1/models",method="GET"} 1.0' in answer.text
        assert "alice" not in answer.text
        for path in ("/healthz/", "/metrics/", "/", "/docs", "/openapi.json", "/v1"):
            assert (await http.get(path)).status_code == 401, path


async def test_the_openapi_page_is_for_keys_that_read(site: Site) -> None:
    for key, status in (("alice", 200), ("reader", 200), ("chatter", 403)):
        async with site.http(key) as http:
            answer = await http.get("/openapi.json")
        assert answer.status_code == status, key
        assert ("/v1/models" in answer.json().get("paths", {})) == (status == 200)


async def test_too_many_requests_are_429_with_what_the_sdks_wait_by(tmp_path: Path) -> None:
    site = Site(tmp_path, KeyLimits(requests_per_minute=2))
    async with site.client("alice") as client:
        raw = await client.models.with_raw_response.list()
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        await client.models.list()
        with pytest.raises(openai.RateLimitError, match="2 requests a minute") as raised:
            await client.models.list()
        headers = raised.value.response.headers
        assert raised.value.code == "rate_limit_exceeded"
        assert 1 <= int(headers["retry-after"]) <= 30
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-request-id"].startswith("req_")
    async with site.client("reader") as client:
        await client.models.list()
    count = site.sample("llm_tuning_api_requests_total", method="GET", endpoint="/v1/models", code="429")
    assert count == 1


async def test_answers_at_once_are_limited_while_they_are_written(tmp_path: Path) -> None:
    site = Site(tmp_path, KeyLimits(parallel_answers=1))
    async with site.http("alice") as http, site.http("chatter") as other:
        first = asyncio.create_task(http.post("/v1/chat/completions", json={}))
        await asyncio.wait_for(site.answering.wait(), 5)
        refused = await http.post("/v1/chat/completions", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert site.sample("llm_tuning_api_requests_in_flight") == 1
        second = asyncio.create_task(other.post("/v1/chat/completions", json={}))
        assert (await http.get("/v1/models")).status_code == 200, "all else goes on"
        site.end.set()
        assert (await first).status_code == (await second).status_code == 200
        assert (await http.post("/v1/chat/completions", json={})).status_code == 200
    assert site.sample("llm_tuning_api_requests_in_flight") == 0


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_uploads_of_a_key_are_counted_as_they_come_and_refused_before_they_are_read(tmp_path: Path) -> None:
    site = Site(tmp_path, KeyLimits(upload_bytes_per_day=1_000_000))
    async with site.http("alice") as http:
        assert (await http.post("/v1/files", content=b"x" * 400_000)).json() == {"bytes": 400_000}
        refused = await http.post("/v1/files", content=b"x" * 700_000)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
        assert site.received == 400_000, "its size was told, so nothing of it was read"
        refused = await http.post("/v1/files", content=chunks(100_000, 20))
        assert refused.status_code == 429
        assert "may upload 1.0 MB a day" in refused.json()["error"]["message"]
        assert site.received <= 1_000_000
    assert site.sample("llm_tuning_api_upload_bytes_total") == 400_000 + 700_000


async def test_what_is_no_upload_has_at_most_8_mib(site: Site) -> None:
    async with site.http("alice") as http:
        assert (await http.post("/v1/fine_tuning/jobs", content=b"x" * BODY_BYTES)).status_code == 200
        for content in (b"x" * (BODY_BYTES + 1), chunks(2**20, 9)):
            answer = await http.post("/v1/fine_tuning/jobs", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert (await http.post("/v1/files", content=chunks(2**20, 9))).json() == {"bytes": 9 * 2**20}


async def test_a_fault_of_a_route_is_counted_as_500(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llm_tuning"):
        async with site.client("alice") as client:
            with pytest.raises(openai.InternalServerError):
                await client.completions.create(model="m", prompt="p")
    assert re.search(r"POST /v1/completions 500 \d+\.\d{3} s key=alice id=req_", caplog.text)
    assert site.sample("llm_tuning_api_requests_total", method="POST", endpoint="/v1/completions", code="500") == 1


@pytest.fixture
def everything(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that any logger says, at its most talkative."""
    with caplog.at_level(logging.DEBUG):
        yield caplog


async def test_no_log_has_a_key_wherever_it_was_sent(site: Site, everything: pytest.LogCaptureFixture) -> None:
    key, wrong = site.keys["alice"], new_key()
    async with site.http("alice") as http:
        for path in (f"/v1/models?api_key={key}", f"/v1/models/{key}", f"/{key}", f"/v1/files/a%0A{key}%1b[2J"):
            await http.get(path)
        await http.post("/v1/fine_tuning/jobs", json={"model": key})
        await http.post("/v1/chat/completions", headers={"Authorization": f"Basic {key}"})
    for client in (site.client("alice"), site.client(wrong)):
        async with client:
            with pytest.raises(openai.OpenAIError):
                await client.completions.create(model=key, prompt=key)
    ours = [record for record in everything.records if record.name.startswith("llm_tuning")]
    assert len([record for record in ours if "id=req_" in record.getMessage()]) == 8
    assert "GET /v1/models/[key] 404" in everything.text
    assert r"GET /v1/files/a\n[key]\x1b[2J 404" in everything.text
    text = "\n".join(logging.Formatter().format(record) for record in ours)  # with tracebacks
    assert "Traceback" in text
    for secret in (key, wrong, digest(key)):
        assert secret not in text


def test_the_logs_formatter_takes_keys_out_of_what_others_say() -> None:
    key = new_key()
    for text in (f"failed with {key}", f"{{'Authorization': 'Bearer {key}'}}", "Bearer abc.def", f"({key!r},)"):
        assert "[key]" in without_keys(text)
        assert key not in without_keys(text)
        assert "abc.def" not in without_keys(text)
    assert without_keys("task-runner asks sk- and desk-sized things") == "task-runner asks sk- and desk-sized things"


def test_every_endpoint_has_its_name_in_metrics_and_nothing_else_has() -> None:
    for endpoint in ENDPOINTS:
        assert endpoint_of(re.sub(r"\{\w+\}", "ft:a:b::c-1", endpoint)) == endpoint
    for path in ("/v1/files/", "/v1/files/a/b", "/v1", "/v1/models/", "/x", "/v1/fine_tuning/jobs/a/b"):
        assert endpoint_of(path) == OTHER
    app: FastAPI = create_app(None)  # type: ignore[arg-type]
    paths = {re.sub(r"\{\w+(:\w+)?\}", "{}", getattr(route, "path", "")) for route in app.routes}
    named = {re.sub(r"\{\w+\}", "{}", endpoint) for endpoint in ENDPOINTS}
    assert {path for path in paths if path.startswith("/v1/")} <= named


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8001"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8001"}, 200),
        ({"Host": "tuning.localhost:8001", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "rebound.example:8001"}, 403),
        ({"Host": "127.0.0.1.example"}, 403),
        ({"Host": "localhost@rebound.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:8001", "Origin": "https://page.example"}, 403),
        ({"Host": "localhost:8001", "Origin": "null"}, 403),
    ],
)
async def test_without_keys_a_page_of_the_web_gets_nothing(headers: dict[str, str], status: int) -> None:
    asked = []
    router = APIRouter()

    @router.post("/v1/files")
    async def upload() -> dict[str, str]:
        asked.append(True)
        return {}

    edge = Middleware(Edge, keys=None, limits=KeyLimits(), metrics=Metrics())
    app = create_app(None, middleware=[edge], routers=[router])  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post("/v1/files", headers=headers)
    assert answer.status_code == status
    assert bool(asked) == (status == 200)
    if status == 403:
        assert answer.json()["error"]["code"] == "not_local"
        assert "takes no key" in answer.json()["error"]["message"]
