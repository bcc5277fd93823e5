"""Through the service proxy: the body, the key, the stream, and whose refusal it is."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from llm_tuning.client import AsyncTuningClient, ChatAnswer, ChatPiece, Forbidden, NotServed, Unavailable
from llm_tuning.errors import InputError
from tests.support.fake_api_server import FakeApiServer, Raw, cut, status_object

SPEC: Raw = {
    "model": {"path": "base/tiny"},
    "volume": {"claimName": "tuning"},
    "routes": [{"name": "support", "targets": [{"tuningJob": "faq"}]}],
}


@pytest.fixture(autouse=True)
async def _service(server: FakeApiServer) -> None:
    await server.put("inferenceservices", "faq", spec=SPEC)


async def agent(request: web.Request) -> web.StreamResponse:
    """As the agent answers; it wants the key `secret`."""
    if request.headers.get("X-Api-Key") != "secret":
        error = {"message": "an API key is required: Authorization: Bearer ...", "code": "invalid_api_key"}
        return web.json_response({"error": error}, status=401)
    body = json.loads(await request.text())
    if not body.get("stream"):
        answer = {"choices": [{"message": {"role": "assistant", "content": "42"}}], "usage": {"total_tokens": 3}}
        return web.json_response(answer, headers={"X-Model-Id": "ft_a"})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Model-Id": "ft_a"})
    await response.prepare(request)
    for delta in ({"role": "assistant", "content": ""}, {"content": "4"}, {"content": "2"}, {}):
        event = {"choices": [{"delta": delta, "finish_reason": None if delta else "stop"}]}
        await response.write(f"data: {json.dumps(event)}\n\n".encode())
    await response.write(b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\ndata: [DONE]\n\n')
    return response


async def test_a_question_and_its_answer(server: FakeApiServer, client: AsyncTuningClient) -> None:
    server.service = agent
    service = await client.get_service("faq")
    answer = await service.chat("What is six times seven?", api_key="secret", max_tokens=8)
    assert (str(answer), answer.model_id, answer.usage) == ("42", "ft_a", {"total_tokens": 3})
    method, path, headers, body = server.requests[-1]
    assert (method, path) == ("POST", "/api/v1/namespaces/team/services/faq:http/proxy/v1/chat/completions")
    assert body == {
        "model": "support",
        "messages": [{"role": "user", "content": "What is six times seven?"}],
        "max_tokens": 8,
    }
    assert headers["X-Api-Key"] == "secret"


async def test_pieces_as_they_come(server: FakeApiServer, client: AsyncTuningClient) -> None:
    server.service = agent
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 x 7?"}]
    *pieces, last = [piece async for piece in client.chat_stream("faq", messages, api_key="secret")]
    assert pieces == [ChatPiece("4"), ChatPiece("2")]
    assert last == ChatPiece(answer=ChatAnswer("42", "ft_a", {"total_tokens": 3}, finish_reason="stop"))
    assert server.requests[-1][3]["messages"] == messages
    assert server.requests[-1][3]["stream"] is True


async def test_a_missing_key_says_what_to_give(server: FakeApiServer, client: AsyncTuningClient) -> None:
    server.service = agent
    with pytest.raises(NotServed, match=r"an API key is required.*give api_key, the value in the Secret") as refused:
        await client.chat("faq", "hello")
    assert refused.value.status == 401
    with pytest.raises(NotServed, match="give api_key"):
        _ = [piece async for piece in client.chat_stream("faq", "hello")]


async def test_of_several_routes_one_has_to_be_named(server: FakeApiServer, client: AsyncTuningClient) -> None:
    server.service = agent
    routes = [{"name": name, "targets": [{"modelId": "ft_a"}]} for name in ("a", "b")]
    await server.put("inferenceservices", "faq", spec={**SPEC, "routes": routes})
    with pytest.raises(InputError, match="model: has to be named, for there are several routes; one of a, b"):
        await client.chat("faq", "hello", api_key="secret")
    await client.chat("faq", "hello", model="b", api_key="secret")
    await server.put("inferenceservices", "faq", spec={**SPEC, "routes": []})
    await client.chat("faq", "hello", api_key="secret")
    assert [body["model"] for _, _, _, body in server.requests if body] == ["b", "tiny"]


async def test_whose_refusal_it_is(server: FakeApiServer, client: AsyncTuningClient) -> None:
    async def not_served(request: web.Request) -> web.StreamResponse:
        message = "support is not served now: ft_a: NoEffect: the adapter changes nothing"
        return web.json_response({"error": {"message": message, "code": "not_served"}}, status=503)

    async def forbidden(request: web.Request) -> web.StreamResponse:
        return status_object(
            403, "Forbidden", 'services "faq:http" is forbidden: cannot create resource "services/proxy"'
        )

    with pytest.raises(Unavailable, match="no endpoints available"):
        await client.chat("faq", "hello")
    server.service = not_served
    with pytest.raises(NotServed, match="NoEffect: the adapter changes nothing"):
        await client.chat("faq", "hello")
    server.service = forbidden
    with pytest.raises(Forbidden, match=r'cannot create resource "services/proxy"; see docs/client\.md'):
        await client.chat("faq", "hello")


@pytest.mark.parametrize(
    "answer", [{}, [], {"choices": []}, {"choices": [{}]}, {"choices": [{"message": "42"}]}], ids=str
)
async def test_what_is_no_answer_is_said(server: FakeApiServer, client: AsyncTuningClient, answer: object) -> None:
    async def other(request: web.Request) -> web.StreamResponse:
        return web.json_response(answer)

    server.service = other
    with pytest.raises(NotServed, match="the answer is none of a chat"):
        await client.chat("faq", "hello")


@pytest.mark.parametrize(
    ("ends", "want", "words"),
    [
        ("error", NotServed, "the engine broke off"),
        ("early", NotServed, "the answer broke off"),
        ("cut", Unavailable, "no answer"),
    ],
)
async def test_a_stream_that_breaks_off_is_no_answer(
    server: FakeApiServer, client: AsyncTuningClient, ends: str, want: type[Exception], words: str
) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"delta": {"content": "4"}}]}\n\n')
        if ends == "error":
            await response.write(b'data: {"error": {"message": "the engine broke off"}}\n\n')
        elif ends == "cut":
            await asyncio.sleep(0.05)
            cut(request)
        return response

    server.service = broken
    pieces = client.chat_stream("faq", "hello")
    assert await anext(pieces) == ChatPiece("4")
    with pytest.raises(want, match=words):
        await anext(pieces)
