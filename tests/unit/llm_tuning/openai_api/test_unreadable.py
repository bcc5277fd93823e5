"""Objects that this server cannot read, of another version or an unknown mode, hide no other and are not forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from llm_tuning.errors import InputError
from llm_tuning.openai_api.found import Unreadable
from llm_tuning.openai_api.names import ANNOTATION_CANCELLED, upload_path
from llm_tuning.openai_api.publishing import converge
from llm_tuning.openai_api.unreadable_job import status_of
from tests.support.fake_api_server import Raw
from tests.support.openai_world import READY, SETTINGS, SUCCEEDED, TRAINING, World, failed, open_world

JOBS, SERVICES = "tuningjobs", "inferenceservices"
REFUSED = (400, "unreadable_object")
CODE = "unreadable_object"


def _spec(file: str = "file-none") -> Raw:
    return {
        "mode": "grpo",
        "model": {"path": "base/tiny"},
        "dataset": {"path": upload_path(file)},
        "volume": {"claimName": "tuning"},
        "training": {"epochs": 3, "seed": 7, "batchSize": "dynamic"},
    }


async def _spoil(world: World, job_id: str) -> None:
    """Have another version's mode in a job that this API has made."""
    await world.server.put(JOBS, job_id, spec=world.job(job_id)["spec"] | {"mode": "grpo"})


def _refused(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, str | None]:
    return caught.value.status_code, caught.value.code


async def test_a_job_that_cannot_be_read_is_listed_with_why_beside_all_others(world: World) -> None:
    file, jobs = world.upload(), world.client.fine_tuning.jobs
    other = await jobs.create(model="gpt-4.1-mini", training_file=file)
    await world.server.put(JOBS, "faq", spec=_spec(file), status=TRAINING)
    found = {job.id: job async for job in jobs.list(limit=1)}
    assert found.keys() == {other.id, "faq"}
    assert found[other.id].error is None
    faq = found["faq"]
    assert faq == await jobs.retrieve("faq")
    assert (faq.status, faq.training_file, faq.model, faq.seed) == ("running", file, "base/tiny", 7)
    assert (faq.hyperparameters.n_epochs, faq.hyperparameters.batch_size) == (3, None)
    assert faq.error is not None
    assert faq.error.code == CODE
    assert faq.error.message.startswith("TuningJob faq cannot be read by this server: faq: spec.mode")
    assert "'grpo'" in faq.error.message
    assert faq.error.message.endswith("use kubectl for it, or a server of the version that has made it.")


@pytest.mark.parametrize("doing", ["cancel", "pause", "resume", "list_events"])
async def test_what_has_to_read_it_is_refused_with_why(world: World, doing: str) -> None:
    await world.server.put(JOBS, "faq", spec=_spec())
    with pytest.raises(openai.BadRequestError, match="TuningJob faq cannot be read") as caught:
        await getattr(world.client.fine_tuning.jobs, doing)("faq")
    assert _refused(caught) == REFUSED
    assert "suspend" not in world.job("faq")["spec"]


async def test_a_status_of_another_form_is_no_internal_error(world: World) -> None:
    await world.server.put(JOBS, "faq", spec=_spec() | {"mode": "sft"}, status={"conditions": [{"type": "Finished"}]})
    job = await world.client.fine_tuning.jobs.retrieve("faq")
    assert job.status == "queued"
    assert job.error is not None
    assert "faq: status.conditions[0]" in job.error.message


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ({}, "queued"),
        ({"status": TRAINING}, "running"),
        ({"status": SUCCEEDED}, "succeeded"),
        ({"status": failed("DatasetInvalid", "row 3")}, "failed"),
        ({"spec": {"suspend": True}, "status": TRAINING}, "paused"),
        ({"metadata": {"annotations": {ANNOTATION_CANCELLED: "2026-11-29T08:00:00Z"}}}, "cancelled"),
        ({"spec": [], "status": {"conditions": {"Finished": "True"}, "progress": 3}}, "queued"),
        ({"status": {"conditions": ["Finished", {"status": "True"}]}}, "queued"),
    ],
)
def test_its_status_is_what_its_conditions_show(raw: dict[str, Any], status: str) -> None:
    assert status_of(Unreadable({"metadata": {}, **raw}, InputError("x"))) == status


async def test_files_that_it_names_are_in_use(world: World) -> None:
    file, other = world.upload(), world.upload()
    await world.server.put(JOBS, "faq", spec=_spec() | {"dataset": {"parts": [{"from": upload_path(file)}]}})
    with pytest.raises(openai.BadRequestError, match="may be in use: TuningJob faq cannot be read") as caught:
        await world.client.files.delete(file)
    assert _refused(caught) == (400, "file_in_use")
    assert (await world.client.files.delete(other)).deleted
    assert [each.id async for each in world.client.files.list()] == [file]


async def test_no_second_job_is_made_for_one_that_cannot_be_read(world: World) -> None:
    asked: Any = {"model": "gpt-4.1-mini", "training_file": world.upload()}
    create = world.client.fine_tuning.jobs.create
    made = await create(**asked, extra_headers={"Idempotency-Key": "once"})
    await _spoil(world, made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await create(**asked, extra_headers={"Idempotency-Key": "once"})
    assert _refused(caught) == REFUSED
    assert len(world.server.all(JOBS)) == 1


async def test_the_model_of_one_stays_and_is_neither_gone_on_from_nor_deleted(world: World) -> None:
    model = await world.tuned()
    await converge(world.context)
    [job] = [raw["metadata"]["name"] for raw in world.server.all(JOBS)]
    await _spoil(world, job)
    await converge(world.context)
    assert world.routes("api-gpt-4-1-mini") == [model]
    assert model in [each.id async for each in world.client.models.list()]
    assert (await world.client.fine_tuning.jobs.retrieve(job)).fine_tuned_model == model
    with pytest.raises(openai.BadRequestError) as caught:
        await world.client.fine_tuning.jobs.create(model=model, training_file=world.upload())
    assert _refused(caught) == REFUSED
    with pytest.raises(openai.BadRequestError) as caught:
        await world.client.models.delete(model)
    assert _refused(caught) == REFUSED
    assert world.routes("api-gpt-4-1-mini") == [model]


async def test_an_adapter_that_it_names_is_not_deleted(tmp_path: Path) -> None:
    async with open_world(tmp_path, SETTINGS | {"deleteAdapters": True}) as world:
        model = await world.tuned(model_id="ft_a")
        await world.server.put(JOBS, "faq", spec=_spec() | {"model": {"start": [{"id": "ft_a"}]}})
        with pytest.raises(openai.BadRequestError, match="job faq, which this server cannot read"):
            await world.client.models.delete(model, extra_query={"adapter": "true"})


async def test_a_service_that_cannot_be_read_hides_no_other_and_stops_no_chat(world: World) -> None:
    """Which base it has is not known, so that no route is moved until it can be read, and no second service is made."""
    model = await world.tuned()
    await converge(world.context)
    await world.server.put(SERVICES, "api-gpt-4-1-mini", status=READY)
    second = await world.tuned(model_id="ft_b")
    spec = {"model": {"path": "base/tiny", "name": 3}, "volume": {"claimName": "tuning"}}
    await world.server.put(SERVICES, "faq", spec=spec)
    assert model in [each.id async for each in world.client.models.list()]
    assert (await world.context.catalog.find(model)).service is not None
    transport = httpx2.ASGITransport(world.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api") as http:
        assert (await http.get("/readyz")).status_code == 200
    with pytest.raises(InputError, match=r"faq: spec\.model\.name"):
        await converge(world.context)
    with pytest.raises(openai.BadRequestError, match="InferenceService faq cannot be read") as caught:
        await world.client.models.delete(model)
    assert _refused(caught) == REFUSED
    await world.server.remove(SERVICES, "faq")
    await converge(world.context)
    assert world.routes("api-gpt-4-1-mini") == [model, second]
