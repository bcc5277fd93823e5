"""A stream comes to its client whole, or with an event that says why not; through the agent's door."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from llm_tuning.agent import server as server_module
from tests.unit.llm_tuning.agent.conftest import Open, Pod, events, eventually, metric


async def test_a_stream_is_passed_on_as_it_comes(door: Pod) -> None:
    door.engine.gate = asyncio.Event()
    body = {"model": "a", "messages": [], "stream": True}
    async with door.session.post(f"{door.url}/v1/chat/completions", json=body) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["X-Model-Id"] == "ft_a"
        async with asyncio.timeout(2):
            first = await response.content.readuntil(b"\n\n")
        assert b'"role"' in first, "before the engine has the second"
        door.engine.gate.set()
        rest = await response.read()
    said = events(first + rest)
    assert len(said) == 5
    assert said[-1] == "[DONE]"
    assert {event["model"] for event in said[:-1]} == {"a"}, "as the client called it"


@pytest.mark.parametrize("break_off", [1, 2])
async def test_a_stream_that_breaks_off_ends_with_an_error_and_no_done(door: Pod, break_off: int) -> None:
    door.engine.break_off = break_off
    answer = await door.chat("a", stream=True)
    assert answer.status == 200
    assert b"[DONE]" not in answer.body
    said = events(answer.body)
    assert len(said) == break_off + 1, "whole events only"
    assert said[-1]["error"]["code"] == "engine_failed"
    assert "the engine broke off" in said[-1]["error"]["message"]
    assert await metric(door, "llm_tuning_errors_total", route="a", model_id="ft_a") == 1


async def test_a_stream_whose_engine_is_killed_ends_with_an_error(door: Pod) -> None:
    door.engine.gate = asyncio.Event()
    asking = asyncio.create_task(door.chat("a", stream=True))
    await eventually(lambda: door.engine.called("chat"))
    await asyncio.sleep(0.05)
    await door.engine.kill()
    said = events((await asking).body)
    assert said[-1]["error"]["code"] == "engine_failed"


async def test_an_error_that_the_engine_tells_in_a_stream_is_passed_on_and_counted(door: Pod) -> None:
    door.engine.fail_at = 2
    said = events((await door.chat("a", stream=True)).body)
    assert said[2]["error"]["message"] == "Internal server error"
    assert said[-1] == "[DONE]"
    assert await metric(door, "llm_tuning_errors_total", route="a", model_id="ft_a") == 1


async def test_a_stream_that_falls_silent_ends_with_an_error(door: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.1)
    door.engine.gate = asyncio.Event()
    said = events((await door.chat("a", stream=True)).body)
    assert said[-1]["error"]["code"] == "engine_failed"
    assert len(said) == 2


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_client_that_goes_away_ends_its_request_at_the_engine(door: Pod, stream: bool) -> None:
    door.engine.gate = asyncio.Event()
    asking = asyncio.create_task(door.chat("a", stream=stream))
    await eventually(lambda: door.engine.called("chat"))
    await asyncio.sleep(0.05)
    assert door.keeper.in_flight["ft_a"] == 1
    asking.cancel()
    await eventually(lambda: door.engine.ended_early["ft_a"] == 1, 2)
    await eventually(lambda: not door.server.active)
    assert door.keeper.in_flight == Counter()
    assert await metric(door, "llm_tuning_requests_total", route="a", model_id="ft_a", code="499") == 1


async def test_a_client_that_reads_slowly_gets_all_of_it_and_the_agent_keeps_little(door: Pod) -> None:
    door.engine.chunks, door.engine.chunk_bytes = 400, 2**16
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**14)
    body = b'{"model": "a", "messages": [], "stream": true}'
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await asyncio.sleep(0.5)
    assert 0 < door.engine.streamed["ft_a"] < 400, "the engine is held"
    answer = await reader.read()
    writer.close()
    assert answer.count(b"data: {") == 400
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_client_of_http_1_0_gets_the_stream_without_chunks(door: Pod) -> None:
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model": "a", "messages": [], "stream": true}'
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"chunked" not in head
    assert events(content)[-1] == "[DONE]"


async def test_a_client_found_gone_by_a_write_is_no_fault_of_the_engine(
    pod: Pod, open_door: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """A write may come before the news that the client is gone; without cancellation it always does."""
    pod.want({"a": "ft_a"})
    await pod.turn()
    await open_door(pod, cancellation=False)
    pod.engine.chunks, pod.engine.chunk_seconds = 1000, 0.005
    asking = asyncio.create_task(pod.chat("a", stream=True))
    await eventually(lambda: pod.engine.called("chat"))
    await asyncio.sleep(0.05)
    asking.cancel()
    await eventually(lambda: not pod.server.active)
    await eventually(lambda: pod.engine.ended_early["ft_a"] == 1)
    assert await metric(pod, "llm_tuning_requests_total", route="a", model_id="ft_a", code="499") == 1
    assert await metric(pod, "llm_tuning_errors_total", route="a", model_id="ft_a") == 0
    assert "Traceback" not in caplog.text
