"""A model's service for clients that nobody here wrote, in the form of OpenAI's answers: text and tools, also streamed.

What it says follows from the request: it asks for the first tool that it is given, and tells what a tool has said.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.support.api_process import Server
from tests.support.fake_api_server import FakeApiServer
from tests.support.openai_upstream import Upstream, events
from tests.support.openai_world import READY, SUCCEEDED

Raw = dict[str, Any]
CITY = {"city": "Zürich"}
WEATHER: Raw = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say how the weather is in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
"""A tool; the service calls it for the city of `CITY`."""
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


async def talk(request: web.Request) -> web.StreamResponse:
    """Answer a chat, or go on with a prompt."""
    body = json.loads(await request.read())
    if "prompt" in body:
        return await _go_on(request, body)
    last = body["messages"][-1]
    if last["role"] == "tool":
        said: Raw | list[str] = ["The weather: ", last["content"]]
    elif body.get("tools"):
        said = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(CITY, ensure_ascii=False)}
    else:
        said = ["I", " am ", body["model"], ". Grüße"]
    return await _stream(request, body, said) if body.get("stream") else _whole(body, said)


async def _go_on(request: web.Request, body: Raw) -> web.StreamResponse:
    said = [body["prompt"], ", says ", body["model"]]
    head = _head(body, "text_completion") | {"id": "cmpl-1"}
    if not body.get("stream"):
        choice = {"index": 0, "text": "".join(said), "logprobs": None, "finish_reason": "stop"}
        return web.json_response(head | {"choices": [choice], "usage": USAGE})
    response = await events(request)
    for piece in said:
        await _send(
            response, head | {"choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}]}
        )
    await _send(response, head | {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]})
    await response.write(b"data: [DONE]\n\n")
    return response


def _whole(body: Raw, said: Raw | list[str]) -> web.Response:
    message: Raw = {"role": "assistant", "content": None, "refusal": None}
    if isinstance(said, list):
        message["content"] = "".join(said)
    else:
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": said}]
    choice = {"index": 0, "finish_reason": _reason(said), "logprobs": None, "message": message}
    value = _head(body, "chat.completion") | {"choices": [choice], "usage": USAGE}
    return web.json_response(value)


async def _stream(request: web.Request, body: Raw, said: Raw | list[str]) -> web.StreamResponse:
    response = await events(request)
    async for delta, reason in _deltas(said):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        await _send(response, _head(body, "chat.completion.chunk") | {"choices": [choice]})
    if (body.get("stream_options") or {}).get("include_usage"):
        await _send(response, _head(body, "chat.completion.chunk") | {"choices": [], "usage": USAGE})
    await response.write(b"data: [DONE]\n\n")
    return response


async def _deltas(said: Raw | list[str]) -> AsyncIterator[tuple[Raw, str | None]]:
    yield {"role": "assistant", "content": ""}, None
    if isinstance(said, list):
        for piece in said:
            yield {"content": piece}, None
    else:
        named = {"index": 0, "id": "call_1", "type": "function", "function": {"name": said["name"], "arguments": ""}}
        yield {"tool_calls": [named]}, None
        for at in range(0, len(said["arguments"]), 5):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": said["arguments"][at : at + 5]}}]}, None
    yield {}, _reason(said)


async def _send(response: web.StreamResponse, value: Raw) -> None:
    """Send an event in two pieces that no parser would cut so: the second begins in the middle of it."""
    data = f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
    await response.write(data[: len(data) // 2])
    await asyncio.sleep(0.001)
    await response.write(data[len(data) // 2 :])


def _head(body: Raw, kind: str) -> Raw:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"]}


def _reason(said: Raw | list[str]) -> str:
    return "stop" if isinstance(said, list) else "tool_calls"


@contextmanager
def talking_service() -> Iterator[str]:
    """Run it on a thread; yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = asyncio.run_coroutine_threadsafe(_made(), loop).result(5)
    try:
        yield made.url
    finally:
        asyncio.run_coroutine_threadsafe(made.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _made() -> Upstream:
    made = Upstream(talk)
    await made.start()
    return made


def tune_and_serve(server: Server, key: str, api_server: FakeApiServer, url: str) -> str:
    """Make a job, do the operator's part of it and of the service that the server makes; returns the model's name."""
    with server.client(key) as client:
        row = b'{"prompt": "p", "completion": "c"}\n'
        file = client.files.create(file=("rows.jsonl", row), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, suffix="served")
        _change(api_server, "tuningjobs", job.id, SUCCEEDED)
        model = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert model is not None
    wait_for_routes(api_server, lambda routes: model in routes)
    _change(api_server, "inferenceservices", "api-tiny", READY | {"url": url})
    return model


def wait_for_routes(api_server: FakeApiServer, hold: Callable[[list[str]], bool]) -> None:
    """Wait for the routes of the base's service."""
    deadline = time.monotonic() + 30
    while True:
        raw = api_server.cluster.get("inferenceservices", "api-tiny")
        if raw is not None and hold([route["name"] for route in raw["spec"]["routes"]]):
            return
        assert time.monotonic() < deadline, raw
        time.sleep(0.1)


def _change(api_server: FakeApiServer, plural: str, name: str, status: Mapping[str, Any]) -> None:
    raw = api_server.cluster.get(plural, name)
    assert raw is not None
    api_server.cluster.change(plural, raw | {"status": status})
