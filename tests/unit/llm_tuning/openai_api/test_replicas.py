"""Two replicas on one claim and one API server, of which every other request meets the other one."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest

from tests.support.openai_sdk import sdk
from tests.support.openai_world import World

ROWS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


class InTurn(httpx2.AsyncBaseTransport):
    """What a Service does at its worst: no two requests in a row meet the same replica."""

    def __init__(self, *worlds: World) -> None:
        self.replicas = [httpx2.ASGITransport(world.app) for world in worlds]
        self._turns = itertools.cycle(self.replicas)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await next(self._turns).handle_async_request(request)


@pytest.fixture
async def other(world: World) -> AsyncIterator[World]:
    made = World(world.server, world.root)
    yield made
    await made.client.close()
    await made.backend.close()


@pytest.fixture
async def client(world: World, other: World) -> AsyncIterator[openai.AsyncOpenAI]:
    async with sdk(InTurn(world, other)) as made:
        yield made


async def upload(client: openai.AsyncOpenAI) -> str:
    return (await client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")).id


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_files_go_on_at_the_other_replica(client: openai.AsyncOpenAI, order: str) -> None:
    made = sorted([await upload(client) for _ in range(7)], reverse=order == "desc")
    seen = [file.id async for file in client.files.list(limit=2, order=order)]  # type: ignore[arg-type]
    assert seen == made


async def test_pages_of_jobs_and_of_their_events_go_on_at_the_other_replica(
    client: openai.AsyncOpenAI, world: World
) -> None:
    rows, jobs = await upload(client), client.fine_tuning.jobs
    made = []
    for number in range(5):
        world.server.time = f"2026-11-29T08:00:0{number}Z"
        made.append((await jobs.create(model="gpt-4.1-mini", training_file=rows, suffix=f"n{number}")).id)
    assert [job.id async for job in jobs.list(limit=2)] == made[::-1]
    whole = [event.id for event in (await jobs.list_events(made[0])).data]
    assert [event.id async for event in jobs.list_events(made[0], limit=1)] == whole
    assert len(whole) >= 2


async def test_a_script_that_deletes_what_it_lists_comes_to_the_end_at_two_replicas(
    client: openai.AsyncOpenAI,
) -> None:
    for _ in range(5):
        await upload(client)
    seen = 0
    async for file in client.files.list(limit=1):
        await client.files.delete(file.id)
        seen += 1
    assert seen == 5
    assert [(await client.files.list()).data for _ in range(2)] == [[], []]


async def test_what_one_replica_has_done_the_other_one_knows_at_once(world: World, other: World) -> None:
    here, there = world.client, other.client
    assert (await there.files.list()).data == [], "it has looked before"
    made = await here.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    assert await there.files.retrieve(made.id) == made
    assert [file.id for file in (await there.files.list()).data] == [made.id]
    assert (await there.files.content(made.id)).content == ROWS
    job = await there.fine_tuning.jobs.create(model="gpt-4.1-mini", training_file=made.id)
    assert await here.fine_tuning.jobs.retrieve(job.id) == job
    with pytest.raises(openai.BadRequestError, match=f"in use by the job '{job.id}'"):
        await here.files.delete(made.id)
    assert (await there.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
    assert (await here.fine_tuning.jobs.retrieve(job.id)).status == "cancelled"
    await here.files.delete(made.id)
    for client in (here, there):
        with pytest.raises(openai.NotFoundError):
            await client.files.content(made.id)
    assert (await there.files.list()).data == []
    with pytest.raises(openai.BadRequestError, match="there is none"):
        await there.fine_tuning.jobs.create(model="gpt-4.1-mini", training_file=made.id)


async def test_a_model_that_one_replica_has_published_the_other_one_lists(world: World, other: World) -> None:
    name = await world.tuned()
    assert name in [model.id for model in (await other.client.models.list()).data]
    assert (await other.client.models.delete(name)).deleted
    with pytest.raises(openai.NotFoundError):
        await world.client.models.retrieve(name)
