"""Chats go to the service of their model and come back as they are made, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from llm_tuning.agent import body as bodies
from llm_tuning.openai_api import catalog, proxy
from llm_tuning.openai_api.keys import KeyRecord, KeyRing, Role, digest, new_key
from llm_tuning.openai_api.publishing import converge
from llm_tuning.openai_api.server import build_app
from tests.support.fake_api_server import Raw, status_object
from tests.support.openai_sdk import sdk
from tests.support.openai_upstream import Upstream, dying, listening, page, refusing, said
from tests.support.openai_world import LOADING, READY, SETTINGS, World, condition, open_world

SERVICES, SERVICE = "inferenceservices", "api-gpt-4-1-mini"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
SECRET = {"name": "llm-tuning-service-key"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(catalog, "UNKNOWN_SECONDS", 0.0)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    await made.start()
    yield made
    made.gate.set()
    await made.stop()


class Chats:
    """A server with one fine-tuned model, whose service is `upstream`."""

    def __init__(self, world: World, upstream: Upstream, model: str) -> None:
        self.world, self.upstream, self.model = world, upstream, model

    async def status(self, status: Raw) -> None:
        await self.world.server.put(SERVICES, SERVICE, status=status)
        await self.world.context.catalog.read()

    async def chat(self, model: str | None = None, **more: Any) -> Any:
        create = self.world.client.chat.completions.create
        return await create(model=model or self.model, messages=HI, **more)


@contextlib.asynccontextmanager
async def chats_of(
    root: Path, upstream: Upstream, *, service_key: str | None = None, **settings: Any
) -> AsyncIterator[Chats]:
    async with open_world(root, SETTINGS | {"waitSeconds": 1} | settings, service_key=service_key) as world:
        model = await world.tuned(model_id="ft_a")
        await converge(world.context)
        chats = Chats(world, upstream, model)
        await chats.status(READY | {"url": upstream.url})
        yield chats


@pytest.fixture
async def chats(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Chats]:
    async with chats_of(tmp_path, upstream) as made:
        yield made


@pytest.fixture
async def http(chats: Chats) -> AsyncIterator[httpx2.AsyncClient]:
    """Speaks to the server over a socket."""
    async with listening(chats.world.app) as url, httpx2.AsyncClient(base_url=url, timeout=10) as client:
        yield client


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


# --- passed on --------------------------------------------------------------------------------------------------------


async def test_a_chat_goes_on_byte_for_byte_and_its_callers_key_does_not(
    chats: Chats, http: httpx2.AsyncClient
) -> None:
    body = json.dumps({"tools": [{"type": "x"}], "model": chats.model, "ü": 'é "model":"y"'}).encode() + b" \n"
    headers = {"Authorization": "Bearer sk-caller", "X-Api-Key": "sk-caller", "Cookie": "a=b", "OpenAI-Project": "p"}
    answer = await http.post("/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Yes."
    assert answer.headers["x-model-id"] == "ft_a"
    ((path, given, asked),) = chats.upstream.asked
    assert (path, asked) == ("/v1/chat/completions", body)
    assert {name.lower() for name in given} == {"host", "content-type", "content-length", "connection"}
    assert "sk-caller" not in str(given)


async def test_the_sdk_gets_what_the_service_says_by_both_endpoints(chats: Chats) -> None:
    assert (await chats.chat()).choices[0].message.content == "Yes."
    text = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": " there"}
    chats.upstream.scripts.append(said("", object="text_completion", choices=[text]))
    answer = await chats.world.client.completions.create(model=chats.model, prompt="Hi")
    assert answer.choices[0].text == " there"
    assert [path for path, _, _ in chats.upstream.asked] == ["/v1/chat/completions", "/v1/completions"]


async def test_a_base_is_asked_by_the_name_that_its_service_has_for_it(chats: Chats) -> None:
    spec = chats.world.services()[SERVICE]["spec"]
    await chats.world.server.put(SERVICES, SERVICE, spec=spec | {"model": {"path": "base/tiny", "name": "tiny"}})
    await chats.world.context.catalog.read()
    await chats.chat("gpt-4.1-mini")
    await chats.chat("tiny")
    asked = [json.loads(body) for _, _, body in chats.upstream.asked]
    assert asked == [{"messages": HI, "model": "tiny"}] * 2


async def test_a_stream_comes_as_it_is_made(chats: Chats, http: httpx2.AsyncClient) -> None:
    chats.upstream.scripts.append(chats.upstream.stream)
    client = openai.AsyncOpenAI(base_url=str(http.base_url), api_key="k", max_retries=0)
    stream = await client.chat.completions.create(model=chats.model, messages=HI, stream=True)
    texts = []
    async with asyncio.timeout(5):
        async for event in stream:
            texts.append(event.choices[0].delta.content)
            chats.upstream.gate.set()  # the second one is made only now
    assert texts == ["one", " two"]
    await client.close()


async def test_a_client_that_goes_away_ends_the_question(chats: Chats, http: httpx2.AsyncClient) -> None:
    chats.upstream.scripts.append(chats.upstream.stream)
    async with http.stream("POST", "/chat/completions", json={"model": chats.model, "stream": True}) as answer:
        async for _ in answer.aiter_raw():
            break
    await asyncio.wait_for(chats.upstream.left.wait(), 5)


async def test_a_client_that_goes_away_while_it_waits_ends_the_tries(chats: Chats, http: httpx2.AsyncClient) -> None:
    chats.upstream.scripts.extend(refusing(503, "not_served", "loading") for _ in range(1000))
    with pytest.raises(httpx2.ReadTimeout):
        await http.post("/chat/completions", json={"model": chats.model}, timeout=0.2)
    await asyncio.sleep(0.1)
    tries = len(chats.upstream.asked)
    assert tries > 1
    await asyncio.sleep(0.3)
    assert len(chats.upstream.asked) == tries


async def test_a_client_that_does_not_read_holds_the_service_back(chats: Chats, http: httpx2.AsyncClient) -> None:
    chats.upstream.scripts.append(chats.upstream.flood)
    async with http.stream("POST", "/chat/completions", json={"model": chats.model, "stream": True}) as answer:
        pieces = answer.aiter_raw()
        await anext(pieces)
        before = -1
        while chats.upstream.sent != before:
            before = chats.upstream.sent
            await asyncio.sleep(0.3)
        assert 0 < before < 16 * 2**20, "what sockets hold, and 64 KiB"
        for _ in range(200):
            await anext(pieces)
        await _until(lambda: chats.upstream.sent > before)
    await asyncio.wait_for(chats.upstream.left.wait(), 5)


# --- broken off -------------------------------------------------------------------------------------------------------


async def test_a_stream_that_breaks_off_is_an_error_to_the_sdk_and_has_no_half_event(
    chats: Chats, http: httpx2.AsyncClient
) -> None:
    chats.upstream.scripts.extend([chats.upstream.die_in_a_stream] * 2)
    client = openai.AsyncOpenAI(base_url=str(http.base_url), api_key="k", max_retries=0)
    events = await client.chat.completions.create(model=chats.model, messages=HI, stream=True)
    assert (await anext(events)).choices[0].delta.content == "one"
    with pytest.raises(openai.APIError, match="The answer broke off"):
        await anext(events)
    raw = await http.post("/chat/completions", json={"model": chats.model, "stream": True})
    first, last, rest = raw.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "answer_broke_off"
    assert rest == ""
    await client.close()


async def test_a_plain_answer_that_breaks_off_is_a_refusal(chats: Chats) -> None:
    chats.upstream.scripts.append(dying(100, says=200))
    with pytest.raises(openai.InternalServerError, match="The answer broke off") as caught:
        await chats.chat()
    assert (caught.value.status_code, caught.value.code) == (503, "answer_broke_off")


@pytest.mark.parametrize("says", [2**21, None])
async def test_a_large_answer_that_breaks_off_is_not_taken_for_whole(
    chats: Chats, http: httpx2.AsyncClient, says: int | None
) -> None:
    chats.upstream.scripts.append(dying(2**20, says=says))
    with pytest.raises(httpx2.RemoteProtocolError):
        await http.post("/chat/completions", json={"model": chats.model})


async def test_a_large_answer_comes_whole(chats: Chats, http: httpx2.AsyncClient) -> None:
    chats.upstream.scripts.append(said("x" * 3_000_000))
    answer = await http.post("/chat/completions", json={"model": chats.model})
    assert len(answer.json()["choices"][0]["message"]["content"]) == 3_000_000


async def test_a_service_that_hangs_is_504(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "IDLE_SECONDS", 0.1)
    chats.upstream.scripts.append(chats.upstream.stream)
    chats.upstream.scripts.appendleft(lambda request: asyncio.sleep(60))  # type: ignore[arg-type,return-value]
    with pytest.raises(openai.InternalServerError, match="has not answered in time") as caught:
        await chats.chat()
    assert caught.value.status_code == 504


# --- not ready --------------------------------------------------------------------------------------------------------


async def test_a_chat_waits_for_its_adapter(chats: Chats) -> None:
    for code, status in (("not_served", 503), ("model_not_found", 404)):
        chats.upstream.scripts.extend([refusing(status, code, "not here yet")] * 2)
        assert (await chats.chat()).choices[0].message.content == "Yes."
    bodies_sent = {body for _, _, body in chats.upstream.asked}
    assert len(bodies_sent) == 1, "the same question each time"


async def test_a_chat_waits_for_its_service(chats: Chats) -> None:
    await chats.upstream.stop()
    asking = asyncio.ensure_future(chats.chat())
    await asyncio.sleep(0.1)
    await chats.upstream.start()
    assert (await asking).choices[0].message.content == "Yes."


async def test_a_chat_waits_for_the_route_and_for_the_address(tmp_path: Path, upstream: Upstream) -> None:
    async with open_world(tmp_path, SETTINGS | {"waitSeconds": 5}) as world:
        model = await world.tuned(model_id="ft_a")
        asking = asyncio.ensure_future(world.client.chat.completions.create(model=model, messages=HI))
        await asyncio.sleep(0.05)
        await converge(world.context)
        await asyncio.sleep(0.05)
        await world.server.put(SERVICES, SERVICE, status=READY | {"url": upstream.url})
        await world.context.catalog.read()
        assert (await asking).choices[0].message.content == "Yes."


async def test_a_model_that_is_not_ready_in_time_is_503_with_the_reason_and_when_to_come_again(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with chats_of(tmp_path, upstream, waitSeconds=0) as chats:
        await chats.status(LOADING | {"url": upstream.url})
        upstream.scripts.append(refusing(503, "not_served", "ft_a: it is being loaded"))
        with pytest.raises(openai.InternalServerError) as caught:
            await chats.chat()
        error = caught.value
        assert (error.status_code, error.code, error.param) == (503, "model_not_ready", "model")
        assert error.message == (
            f"Error code: 503 - The model '{chats.model}' does not answer now: ft_a: it is being loaded. "
            f"InferenceService {SERVICE} is not ready: Loading: 1 of 2 adapters is loaded."
        )
        assert error.response.headers["retry-after"] == "30"
        assert "x-should-retry" not in error.response.headers


@pytest.mark.parametrize("reason", ["ImagePullFailed", "PlanFailed"])
async def test_a_service_that_is_stalled_is_not_waited_for_here_and_perhaps_by_the_client(
    tmp_path: Path, upstream: Upstream, reason: str
) -> None:
    """In a cluster somebody else may mend it, or a base that is missing may come."""
    async with chats_of(tmp_path, upstream, waitSeconds=60) as chats:
        stalled = condition("Stalled", "True", reason, "no such thing")
        await chats.status({"url": "http://127.0.0.1:9", "conditions": [stalled]})
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError, match=f"{reason}: no such thing") as caught:
            await chats.chat()
        assert time.monotonic() - began < 10
        assert caught.value.code == "model_not_ready"
        assert caught.value.response.headers["retry-after"] == "30"
        assert "x-should-retry" not in caught.value.response.headers


async def test_an_unknown_model_is_404_with_what_there_is(chats: Chats) -> None:
    with pytest.raises(
        openai.NotFoundError, match=r"there are gpt-4\.1-mini, qwen3-8b, ft:gpt-4\.1-mini:acme::"
    ) as caught:
        await chats.chat("gpt-5")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert chats.upstream.asked == []


async def test_a_base_without_a_service_says_how_to_get_one(chats: Chats) -> None:
    with pytest.raises(openai.InternalServerError, match=r"set bases\.qwen3-8b\.serving\.always to true") as caught:
        await chats.chat("qwen3-8b")
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_ready")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "hf://Qwen/Qwen3-8B on the claim tuning" in caught.value.message


async def test_a_model_without_a_place_says_so(tmp_path: Path, upstream: Upstream) -> None:
    async with chats_of(tmp_path, upstream, waitSeconds=60) as chats:
        full = [{"name": f"r{n}", "targets": [{"modelId": f"ft_{n}"}]} for n in range(64)]
        spec = chats.world.services()[SERVICE]["spec"]
        await chats.world.server.put(SERVICES, SERVICE, spec=spec | {"routes": full})
        await chats.world.context.catalog.read()
        with pytest.raises(openai.InternalServerError, match="has 64 routes, as many as it may; delete a model"):
            await chats.chat()


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_the_services_refusals_come_as_they_are(chats: Chats) -> None:
    chats.upstream.scripts.append(refusing(400, "too_many_choices", "n must be at most 16, got 99"))
    with pytest.raises(openai.BadRequestError, match="n must be at most 16, got 99") as caught:
        await chats.chat()
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "too_many_choices",
        "temperature",
        "invalid_request_error",
    )
    chats.upstream.scripts.append(refusing(503, "overloaded", "try again in a moment", **{"Retry-After": "2"}))
    with pytest.raises(openai.InternalServerError, match="try again in a moment") as busy:
        await chats.chat()
    assert (busy.value.code, busy.value.response.headers["retry-after"]) == ("overloaded", "2")
    assert len(chats.upstream.asked) == 2, "neither is tried again here"


async def test_a_refusal_in_another_form_is_put_into_openais(chats: Chats) -> None:
    chats.upstream.scripts.append(page(502))
    with pytest.raises(openai.InternalServerError, match="has answered HTTP status 502: <html>Bad gateway") as caught:
        await chats.chat()
    assert caught.value.status_code == 502


async def test_a_key_that_the_service_refuses_is_no_fault_of_the_caller(chats: Chats) -> None:
    chats.upstream.scripts.append(refusing(401, "invalid_api_key", "an API key is required"))
    with pytest.raises(openai.InternalServerError, match="refuses this server's key") as caught:
        await chats.chat()
    assert (caught.value.status_code, caught.value.code) == (500, "server_misconfigured")
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_a_service_gets_the_key_of_the_secret_that_it_asks_for_and_no_other_one(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with chats_of(tmp_path, upstream, apiKeySecret=SECRET, service_key="key-1") as chats:
        await chats.chat()
        assert upstream.asked[-1][1]["Authorization"] == "Bearer key-1"
        spec = chats.world.services()[SERVICE]["spec"]
        for other in ({"name": "llm-tuning-another"}, SECRET | {"key": "other"}):
            await chats.world.server.put(SERVICES, SERVICE, spec=spec | {"apiKeySecret": other})
            await chats.world.context.catalog.read()
            with pytest.raises(openai.InternalServerError, match=f"asks for the key in Secret {other['name']}"):
                await chats.chat()
        await chats.world.server.put(SERVICES, SERVICE, spec={**spec, "apiKeySecret": None})
        await chats.world.context.catalog.read()
        await chats.chat()
        assert "Authorization" not in upstream.asked[-1][1]
        assert len(upstream.asked) == 2


@pytest.mark.parametrize(
    ("content", "headers", "refused"),
    [
        (b"{", {}, (400, "invalid_request_error", None)),
        (b"[]", {}, (400, "invalid_request_error", None)),
        (b"{}", {}, (400, "missing_required_parameter", "model")),
        (b'{"model": 1}', {}, (400, "missing_required_parameter", "model")),
        (b'{"model": ""}', {}, (400, "missing_required_parameter", "model")),
        (b"x" * 100, {"Content-Encoding": "gzip"}, (415, "unsupported_media_type", None)),
        (b"[" * 100_000, {}, (400, "invalid_request_error", None)),
        (b'{"model":"' + b"x" * 9_000_000 + b'"}', {}, (413, "request_too_large", None)),
    ],
)
async def test_a_body_that_is_no_question_is_refused(
    http: httpx2.AsyncClient, upstream: Upstream, content: bytes, headers: dict[str, str], refused: tuple[Any, ...]
) -> None:
    answer = await http.post("/chat/completions", content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == refused
    assert error.keys() == {"message", "type", "param", "code"}
    assert upstream.asked == []


async def test_bodies_are_bounded_together_while_they_wait(
    chats: Chats, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_HELD_BYTES", 1_000_000)
    large = {"model": chats.model, "pad": "x" * 600_000}
    chats.upstream.scripts.append(refusing(503, "not_served", "loading"))
    first = asyncio.ensure_future(http.post("/chat/completions", json=large))
    await _until(lambda: len(chats.upstream.asked) > 0)
    refused = await http.post("/chat/completions", json=large)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "2"
    assert (await first).status_code == 200
    assert (await http.post("/chat/completions", json=large)).status_code == 200
    assert chats.world.context.proxy._bodies.held == 0


async def test_chats_go_on_while_the_cluster_does_not_answer(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "OLD_SECONDS", 0.0)
    chats.world.server.next_answers.extend(status_object(503, "ServiceUnavailable", "away") for _ in range(20))
    assert (await chats.chat()).choices[0].message.content == "Yes."
    assert len(chats.world.server.next_answers) < 20, "it was asked"


async def test_chats_do_not_wait_for_a_cluster_that_hangs_and_ask_it_again_later(
    chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "PATIENCE_SECONDS", 0.05)
    models, ahead, asked = chats.world.context.catalog, 100.0, 0
    monkeypatch.setattr(models, "_clock", lambda: time.monotonic() + ahead)
    services = chats.world.backend.services

    async def hang() -> Any:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(chats.world.backend, "services", hang)
    for _ in range(3):
        assert (await chats.chat()).choices[0].message.content == "Yes."
    assert asked == 1, "not for each chat"
    ahead += 100.0
    monkeypatch.setattr(chats.world.backend, "services", services)
    assert (await models.find(chats.model)).service is not None
    assert models._clock() - (await models._recent(catalog.OLD_SECONDS)).at < 10, "seen anew"


async def test_a_key_for_chats_chats_and_has_so_many_answers_at_once(tmp_path: Path, upstream: Upstream) -> None:
    """The whole stack, as the server has it."""
    folder = tmp_path / "keys" / "secret"
    folder.mkdir(parents=True)
    keys: dict[Role, str] = {role: new_key() for role in ("chat", "read")}
    for role, key in keys.items():
        (folder / role).write_text(KeyRecord(sha256=digest(key), role=role).encode())
    async with chats_of(tmp_path, upstream, limits={"parallelAnswers": 1}) as chats:
        app = build_app(chats.world.backend, chats.world.settings, KeyRing(folder.parent))
        async with sdk(app, api_key=keys["chat"]) as chatter, sdk(app, api_key=keys["read"]) as reader:
            assert chats.model in [model.id async for model in chatter.models.list()]
            upstream.scripts.append(upstream.wait)
            first = asyncio.ensure_future(chatter.chat.completions.create(model=chats.model, messages=HI))
            await _until(lambda: len(upstream.asked) == 1)
            with pytest.raises(openai.RateLimitError, match="has 1 answers being written"):
                await chatter.chat.completions.create(model=chats.model, messages=HI)
            upstream.gate.set()
            await first
            await chatter.chat.completions.create(model=chats.model, messages=HI)
            with pytest.raises(openai.PermissionDeniedError):
                await chatter.models.delete(chats.model)
            assert (await reader.models.retrieve(chats.model)).owned_by == "llm-tuning: adapter ft_a of base/tiny"
            with pytest.raises(openai.PermissionDeniedError):
                await reader.chat.completions.create(model=chats.model, messages=HI)
        for given in upstream.asked:
            assert "authorization" not in {name.lower() for name in given[1]}
