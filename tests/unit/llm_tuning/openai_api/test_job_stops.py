"""Jobs are cancelled for good, paused and resumed, whoever else changes them meanwhile."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from llm_tuning.openai_api import wire
from tests.support.openai_sdk import sdk
from tests.support.openai_world import CHECKING, SUCCEEDED, TRAINING, World, create_job, progress

JOBS = "tuningjobs"


async def test_cancel_suspends_the_tuning_job_for_good(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    await progress(world, job.id, TRAINING)
    cancelled = await jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    assert world.job(job.id)["spec"]["suspend"] is True
    assert (await jobs.cancel(job.id)).finished_at == cancelled.finished_at
    with pytest.raises(openai.BadRequestError, match="is cancelled") as caught:
        await jobs.resume(job.id)
    assert caught.value.code == "invalid_job_state"


async def test_a_job_that_is_cancelled_while_it_is_resumed_stays_cancelled(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    await world.server.put(JOBS, job.id, spec=world.job(job.id)["spec"] | {"suspend": True})
    change, done = world.backend.change_job, []

    async def late(name: str, patch: dict[str, Any]) -> Any:
        if not done:
            done.append(True)
            await jobs.cancel(job.id)
        return await change(name, patch)

    world.backend.change_job = late  # type: ignore[method-assign]
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        await jobs.resume(job.id)
    assert world.job(job.id)["spec"]["suspend"] is True


async def test_a_job_is_resumed_although_its_status_changes_all_the_time(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    await world.server.put(JOBS, job.id, spec=world.job(job.id)["spec"] | {"suspend": True})
    change, left = world.backend.change_job, [TRAINING, CHECKING, TRAINING]

    async def late(name: str, patch: dict[str, Any]) -> Any:
        if left:
            await progress(world, job.id, left.pop())
        return await change(name, patch)

    world.backend.change_job = late  # type: ignore[method-assign]
    assert (await jobs.resume(job.id)).status == "running"
    assert world.job(job.id)["spec"]["suspend"] is False


async def test_a_cancelled_job_that_kubectl_lets_go_on_is_stopped_by_another_cancel(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    cancelled = await jobs.cancel(job.id)
    await world.server.put(JOBS, job.id, spec=world.job(job.id)["spec"] | {"suspend": False})
    assert (await jobs.cancel(job.id)).finished_at == cancelled.finished_at
    assert world.job(job.id)["spec"]["suspend"] is True


async def test_a_job_that_is_done_cannot_be_stopped(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    await progress(world, job.id, SUCCEEDED)
    for doing in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="has succeeded"):
            await doing(job.id)
    assert "suspend" not in world.job(job.id)["spec"]


async def test_pause_and_resume(world: World) -> None:
    job = await create_job(world)
    await progress(world, job.id, TRAINING)
    async with sdk(world.app, strict=False) as client:  # `paused` is OpenAI's word, which the SDK's types lack
        for _ in range(2):
            assert (await client.fine_tuning.jobs.pause(job.id)).status == "paused"
        assert world.job(job.id)["spec"]["suspend"] is True
        for _ in range(2):
            assert (await client.fine_tuning.jobs.resume(job.id)).status == "running"
        assert world.job(job.id)["spec"]["suspend"] is False


async def test_paused_is_the_one_word_that_the_sdks_types_lack(world: World) -> None:
    sdks = set(FineTuningJob.model_fields["status"].annotation.__args__)
    assert set(wire.JobStatus.__args__) - sdks == {"paused"}
