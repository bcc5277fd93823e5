"""A watch goes on whatever the network does, and says at once what cannot get better."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from llm_tuning.client import AsyncTuningClient, Forbidden, NotFound, TuningFailed, Unavailable, WaitTimeout, api
from tests.support.fake_api_server import FakeApiServer, cut, status_object, write_event
from tests.unit.llm_tuning.client.conftest import FAILED, SPEC, SUCCEEDED, condition, training


async def seen_by_wait(client: AsyncTuningClient) -> list[str]:
    """Phase and step of each version, to the end."""
    return [f"{job.phase} {job.snapshot().step}" async for job in client.watch("faq")]


async def until_watched(server: FakeApiServer, times: int = 1) -> None:
    while sum("watch=true" in path for _, path, _, _ in server.requests) < times:
        await asyncio.sleep(0.01)


async def run_through(server: FakeApiServer) -> None:
    for step in (1, 50):
        await server.put("tuningjobs", "faq", status=training(step))
        await asyncio.sleep(0.05)
    await server.put("tuningjobs", "faq", status=SUCCEEDED)


async def test_every_version_from_now_to_the_end(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    watching = asyncio.create_task(seen_by_wait(client))
    await asyncio.wait_for(until_watched(server), 10)
    await run_through(server)
    assert await asyncio.wait_for(watching, 5) == ["Pending 0", "Training 1", "Training 50", "Succeeded 100"]


async def test_a_version_that_is_forgotten_is_read_anew(server: FakeApiServer, client: AsyncTuningClient) -> None:
    """410 comes as the answer to a watch, and as an event in one."""
    expired = status_object(410, "Expired", "too old resource version: 100 (200)")

    async def in_the_stream(response: web.StreamResponse, request: web.Request) -> None:
        gone = {"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"}
        await write_event(response, "ERROR", gone)

    server.next_watches += [expired, in_the_stream]
    await server.put("tuningjobs", "faq", spec=SPEC)
    watching = asyncio.create_task(seen_by_wait(client))
    await asyncio.wait_for(until_watched(server, times=3), 10)
    await run_through(server)
    seen = await asyncio.wait_for(watching, 5)
    assert seen[:3] == ["Pending 0"] * 3, "two lists more"
    assert seen[-1] == "Succeeded 100"


async def test_a_cut_connection_goes_on_after_the_last_version(
    server: FakeApiServer, client: AsyncTuningClient
) -> None:
    steps = iter((7, 8))

    async def half_an_event(response: web.StreamResponse, request: web.Request) -> None:
        await write_event(response, "MODIFIED", await server.put("tuningjobs", "faq", status=training(next(steps))))
        await write_event(response, "BOOKMARK", {"metadata": {"resourceVersion": str(server.skip(10))}})
        await response.write(b'{"type": "MODIF')
        await asyncio.sleep(0.05)
        cut(request)

    server.next_watches += [half_an_event, half_an_event]
    await server.put("tuningjobs", "faq", spec=SPEC)
    watching = asyncio.create_task(seen_by_wait(client))
    await asyncio.wait_for(until_watched(server, times=3), 10)
    await run_through(server)
    assert await asyncio.wait_for(watching, 5) == [
        *("Pending 0", "Training 7", "Training 8"),
        *("Training 1", "Training 50", "Succeeded 100"),
    ]
    versions = [
        path.partition("resourceVersion=")[2].partition("&")[0] for _, path, _, _ in server.requests if "watch" in path
    ]
    assert versions == ["101", "112", "123"], "the bookmark counts, and nothing is listed again"
    assert sum("watch" not in path for _, path, _, _ in server.requests) == 1


async def test_a_control_plane_that_restarts_is_waited_for(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    waiting = asyncio.create_task(client.wait("faq", progress=False))
    await until_watched(server)
    await server.stop()
    await asyncio.sleep(0.2)
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    await server.start()
    assert (await asyncio.wait_for(waiting, 5)).has_succeeded


async def test_one_that_does_not_come_back_is_given_up(
    server: FakeApiServer, client: AsyncTuningClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "RECONNECT_SECONDS", 0.3)
    await server.put("tuningjobs", "faq", spec=SPEC)
    waiting = asyncio.create_task(client.wait("faq", progress=False))
    await until_watched(server)
    await server.stop()
    with pytest.raises(Unavailable, match="no answer from http://127"):
        await asyncio.wait_for(waiting, 5)


async def test_a_server_that_never_answered_is_said_at_once(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.stop()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no answer"):
        await client.wait("faq", progress=False)
    assert time.monotonic() - began < 10, "it does not wait for a server that was never there"


async def test_too_many_requests_are_slowed_down_as_asked(server: FakeApiServer, client: AsyncTuningClient) -> None:
    server.next_watches.append(status_object(429, "TooManyRequests", "slow down", retryAfterSeconds=1))
    await server.put("tuningjobs", "faq", spec=SPEC, status=training(1))
    began = time.monotonic()
    waiting = asyncio.create_task(client.wait("faq", progress=False))
    await asyncio.sleep(0.2)
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    await waiting
    assert time.monotonic() - began > 0.9


async def test_a_right_that_is_taken_away_ends_it(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    message = 'tuningjobs.tuning.llmtuning.dev is forbidden: User "u" cannot watch resource "tuningjobs"'
    server.next_watches.append(status_object(403, "Forbidden", message))
    with pytest.raises(Forbidden, match=r"cannot watch resource .* see docs/client\.md"):
        await client.wait("faq", progress=False)


async def test_what_is_not_there_and_what_is_deleted(server: FakeApiServer, client: AsyncTuningClient) -> None:
    with pytest.raises(NotFound, match="there is no TuningJob faq in namespace team"):
        await client.wait("faq", progress=False)
    await server.put("tuningjobs", "faq", spec=SPEC)
    waiting = asyncio.create_task(client.wait("faq", progress=False))
    await asyncio.sleep(0.1)
    await server.remove("tuningjobs", "faq")
    with pytest.raises(NotFound, match=r"TuningJob faq in namespace \S+ was deleted"):
        await asyncio.wait_for(waiting, 5)


async def test_a_namesake_is_not_taken_for_it(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    waiting = asyncio.create_task(client.wait("faq", progress=False))
    await asyncio.sleep(0.1)
    server.cluster.objects["tuningjobs"]["team", "faq"]["metadata"]["uid"] = "another"
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    with pytest.raises(NotFound, match="another one of that name"):
        await asyncio.wait_for(waiting, 5)


async def test_a_failed_job_raises_its_reason_and_message(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=FAILED)
    with pytest.raises(
        TuningFailed, match=r"TuningJob faq has failed: DatasetInvalid: datasets/faq\.json, row 3"
    ) as failed:
        await client.wait("faq", progress=False)
    assert (failed.value.reason, failed.value.name) == ("DatasetInvalid", "faq")


async def test_time_is_up_and_the_stuck_state_is_said(
    server: FakeApiServer, client: AsyncTuningClient, capsys: pytest.CaptureFixture[str]
) -> None:
    stalled = condition("Stalled", "True", "Unschedulable", "no node has a free GPU; wait, or add one")
    status: dict[str, Any] = training(0)
    status["conditions"].append(stalled)
    await server.put("tuningjobs", "faq", spec=SPEC, status=status)
    with pytest.raises(
        WaitTimeout, match=r"not finished within 0\.2 s; TuningJob faq: Training.*no node has a free GPU"
    ):
        await client.wait("faq", timeout_seconds=0.2)
    assert "Unschedulable: no node has a free GPU; wait, or add one" in capsys.readouterr().err


async def test_lines_while_waiting_are_few_and_tell_the_way(
    server: FakeApiServer, client: AsyncTuningClient, capsys: pytest.CaptureFixture[str]
) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    waiting = asyncio.create_task(client.wait("faq"))
    await asyncio.sleep(0.1)
    for step in range(100):
        await server.put("tuningjobs", "faq", status=training(step, loss=2.0))
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    await asyncio.wait_for(waiting, 5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "TuningJob faq: Pending"
    assert lines[2] == "TuningJob faq: Training, 10 %, loss 2"
    assert lines[-1] == "TuningJob faq: Succeeded, loss 0.1"
    assert len(lines) == 12


async def test_a_service_is_waited_for_until_it_is_ready(server: FakeApiServer, client: AsyncTuningClient) -> None:
    spec = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}}
    await server.put("inferenceservices", "faq", spec=spec)
    with pytest.raises(WaitTimeout, match=r"not ready within 0\.2 s; InferenceService faq: not Ready, Pending"):
        await client.wait_service("faq", timeout_seconds=0.2, progress=False)
    waiting = asyncio.create_task(client.wait_service("faq", progress=False))
    old = {**condition("Ready", "True", "Ready"), "observedGeneration": 0}
    await server.put("inferenceservices", "faq", status={"conditions": [old]})
    await asyncio.sleep(0.1)
    assert not waiting.done(), "that was said of an earlier generation"
    await server.put("inferenceservices", "faq", status={"conditions": [condition("Ready", "True", "Ready")]})
    assert (await asyncio.wait_for(waiting, 5)).is_ready
