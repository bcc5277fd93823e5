"""Models by OpenAI's SDK in strict mode: what there is, what each really is, and what goes when one is deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from llm_tuning.openai_api import publishing
from llm_tuning.openai_api.publishing import converge
from tests.support.fake_api_server import Raw, status_object
from tests.support.openai_api import make_run
from tests.support.openai_world import SETTINGS, SUCCEEDED, World, open_world

JOBS, SERVICES, SERVICE = "tuningjobs", "inferenceservices", "api-gpt-4-1-mini"
DELETED = "openai.tuning.llmtuning.dev/model-deleted"
BY_HAND: Raw = {
    "model": {"path": "base/other"},
    "volume": {"claimName": "tuning"},
    "routes": [{"name": "team/support", "targets": [{"tuningJob": "faq", "weight": 1}]}],
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "PAUSE_SECONDS", 0.005)


@pytest.fixture
async def careless(tmp_path: Path) -> AsyncIterator[World]:
    """A server that may remove adapters."""
    async with open_world(tmp_path, SETTINGS | {"deleteAdapters": True}) as made:
        yield made


def _refused(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, str | None, str | None]:
    return caught.value.status_code, caught.value.code, caught.value.param


async def _by_kubectl(world: World, name: str = "faq", model_id: str = "ft_faq", **spec: Any) -> None:
    given = {"model": {"path": "base/other"}, "dataset": {"path": "rows.json"}, "volume": {"claimName": "tuning"}}
    await world.server.put(JOBS, name, spec=given | spec, status=SUCCEEDED | {"modelId": model_id})


async def test_models_are_bases_fine_tuned_ones_and_all_other_routes(world: World) -> None:
    name = await world.tuned(suffix="faq", model_id="ft_a")
    await converge(world.context)
    await world.server.put(SERVICES, "hand-made", spec=BY_HAND)
    models = {model.id: model async for model in world.client.models.list()}
    assert {each: model.owned_by for each, model in models.items()} == {
        "gpt-4.1-mini": "llm-tuning: base/tiny",
        "qwen3-8b": "llm-tuning: hf://Qwen/Qwen3-8B",
        name: "llm-tuning: adapter ft_a of base/tiny",
        "team/support": "llm-tuning: route of InferenceService hand-made, of base/other",
        "other": "llm-tuning: base/other, by InferenceService hand-made",
    }
    assert models[name].created == 1795939500, "when its job ended"
    for each, model in models.items():
        assert await world.client.models.retrieve(each) == model


async def test_a_model_that_is_not_there_is_404(world: World) -> None:
    for call in (world.client.models.retrieve, world.client.models.delete):
        with pytest.raises(openai.NotFoundError, match="'gpt-5' does not exist here; there are gpt-4") as caught:
            await call("gpt-5")
        assert _refused(caught) == (404, "model_not_found", "model")


async def test_a_model_is_listed_before_its_route_is_made(world: World) -> None:
    name = await world.tuned()
    assert name in [model.id async for model in world.client.models.list()]


async def test_what_kubectl_has_made_is_called_by_the_route_that_leads_to_it(world: World) -> None:
    await _by_kubectl(world)
    jobs = world.client.fine_tuning.jobs
    assert (await jobs.retrieve("faq")).fine_tuned_model is None
    await world.server.put(SERVICES, "hand-made", spec=BY_HAND)
    assert (await jobs.retrieve("faq")).fine_tuned_model == "team/support"
    by_model_id = [{"name": "b", "targets": [{"modelId": "ft_faq", "weight": 0}, {"modelId": "ft_x"}]},
                   {"name": "c", "targets": [{"modelId": "ft_faq"}]}]  # fmt: skip
    await world.server.put(SERVICES, "hand-made", spec=BY_HAND | {"routes": by_model_id})
    assert [job.fine_tuned_model async for job in jobs.list()] == ["c"]
    await world.server.put(SERVICES, "hand-made", spec=BY_HAND | {"volume": {"claimName": "another"}})
    assert (await jobs.retrieve("faq")).fine_tuned_model is None


async def test_a_deleted_model_is_no_route_any_more_and_its_job_says_so(world: World) -> None:
    first, second = await world.tuned(model_id="ft_a"), await world.tuned(model_id="ft_b")
    await converge(world.context)
    before = len(world.server.requests)
    gone = await world.client.models.delete(first)
    assert (gone.id, gone.object, gone.deleted) == (first, "model", True)
    writes = [path.rpartition("/")[0].rpartition("/")[2] for method, path, _, _ in world.server.requests[before:]
              if method == "PATCH"]  # fmt: skip
    assert writes == [JOBS, SERVICES], "the job first"
    assert world.routes(SERVICE) == [second]
    await converge(world.context)
    assert world.routes(SERVICE) == [second]
    assert first not in [model.id async for model in world.client.models.list()]
    with pytest.raises(openai.NotFoundError):
        await world.client.models.delete(first)
    jobs = [job async for job in world.client.fine_tuning.jobs.list()]
    assert {job.fine_tuned_model for job in jobs} == {first, second}, "jobs keep what they made"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await world.client.fine_tuning.jobs.create(model=first, training_file=world.upload())


async def test_a_server_that_dies_between_the_two_writes_of_a_deletion_has_deleted(world: World) -> None:
    name = await world.tuned(model_id="ft_a")
    await converge(world.context)
    change = world.backend.change_service

    async def die(*_: Any) -> Any:
        raise RuntimeError("killed")

    world.backend.change_service = die  # type: ignore[method-assign]
    with pytest.raises(openai.InternalServerError):
        await world.client.models.delete(name)
    world.backend.change_service = change  # type: ignore[method-assign]
    assert DELETED in str(world.server.all(JOBS))
    assert world.routes(SERVICE) == [name]
    await converge(world.context)
    assert world.routes(SERVICE) == []


async def test_a_deletion_that_was_cut_can_be_sent_again(world: World) -> None:
    name = await world.tuned(model_id="ft_a")
    await converge(world.context)
    change = world.backend.change_service

    async def unavailable(*given: Any) -> Any:
        world.backend.change_service = change  # type: ignore[method-assign]
        world.server.next_answers.append(status_object(503, "ServiceUnavailable", "etcd is away"))
        return await change(*given)

    world.backend.change_service = unavailable  # type: ignore[method-assign]
    with pytest.raises(openai.InternalServerError, match="etcd is away"):
        await world.client.models.delete(name)
    assert (await world.client.models.delete(name)).deleted
    assert world.routes(SERVICE) == []


async def test_what_was_not_made_here_is_not_deleted(world: World) -> None:
    await world.server.put(SERVICES, "hand-made", spec=BY_HAND)
    for name, code in (("gpt-4.1-mini", "is_a_base"), ("other", "is_a_base"), ("team/support", "not_made_here")):
        with pytest.raises(openai.BadRequestError) as caught:
            await world.client.models.delete(name)
        assert caught.value.code == code
    assert world.routes("hand-made") == ["team/support"]


async def test_a_model_whose_job_is_gone_is_deleted_by_its_route(careless: World) -> None:
    name = await careless.tuned(model_id="ft_a")
    await converge(careless.context)
    (job,) = careless.server.all(JOBS)
    await careless.server.remove(JOBS, job["metadata"]["name"])
    assert name in [model.id async for model in careless.client.models.list()]
    with pytest.raises(openai.BadRequestError, match="its job is gone"):
        await careless.client.models.delete(name, extra_query={"adapter": "true"})
    assert (await careless.client.models.delete(name)).deleted
    assert careless.routes(SERVICE) == []


# --- the adapter ------------------------------------------------------------------------------------------------------


def _adapter(world: World, model_id: str) -> Path:
    return make_run(world.root, model_id, [(1, {"loss": 1.0})])


async def test_an_adapter_stays_unless_it_is_asked_for_and_may_go(world: World) -> None:
    name = await world.tuned(model_id="ft_a")
    folder = _adapter(world, "ft_a")
    with pytest.raises(openai.BadRequestError, match="have deleteAdapters set to true") as caught:
        await world.client.models.delete(name, extra_query={"adapter": "true"})
    assert _refused(caught) == (400, "adapters_are_kept", "adapter")
    await converge(world.context)
    assert world.routes(SERVICE) == [name], "nothing has happened"
    await world.client.models.delete(name)
    assert folder.is_dir()


async def test_an_adapter_goes_where_it_may(careless: World) -> None:
    name = await careless.tuned(model_id="ft_a")
    folder, other = _adapter(careless, "ft_a"), _adapter(careless, "ft_b")
    await converge(careless.context)
    await careless.client.models.delete(name, extra_query={"adapter": "true"})
    assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["ft_b"]
    assert other.is_dir()
    with pytest.raises(openai.NotFoundError):
        await careless.client.models.delete(name, extra_query={"adapter": "true"})


async def test_an_adapter_of_a_model_that_is_deleted_already_can_still_go(careless: World) -> None:
    name = await careless.tuned(model_id="ft_a")
    folder = _adapter(careless, "ft_a")
    await careless.client.models.delete(name)
    assert folder.is_dir()
    await careless.client.models.delete(name, extra_query={"adapter": "true"})
    assert not folder.exists()


async def test_an_adapter_that_something_else_needs_stays_and_so_does_its_model(careless: World) -> None:
    name = await careless.tuned(model_id="ft_a")
    twin = await careless.tuned(suffix="twin", model_id="ft_a")
    folder = _adapter(careless, "ft_a")
    for user in (twin, "route support of InferenceService hand-made", "job next, which goes on from it"):
        if user.startswith("route"):
            await careless.client.models.delete(twin)
            routes = [{"name": "support", "targets": [{"modelId": "ft_a"}]}]
            await careless.server.put(SERVICES, "hand-made", spec=BY_HAND | {"routes": routes})
        elif user.startswith("job"):
            await careless.server.remove(SERVICES, "hand-made")
            spec = {"dataset": {"path": "rows.json"}, "volume": {"claimName": "tuning"}}
            model = {"path": "base/tiny", "adapter": {"modelId": "ft_a"}}
            await careless.server.put(JOBS, "next", spec=spec | {"model": model})
        with pytest.raises(openai.BadRequestError, match=user) as caught:
            await careless.client.models.delete(name, extra_query={"adapter": "true"})
        assert _refused(caught) == (400, "adapter_in_use", "adapter")
        assert name in [model.id async for model in careless.client.models.list()]
    await careless.server.remove(JOBS, "next")
    await careless.client.models.delete(name, extra_query={"adapter": "true"})
    assert not folder.exists()


async def test_an_unknown_parameter_of_a_deletion_is_refused(world: World) -> None:
    name = await world.tuned()
    with pytest.raises(openai.BadRequestError) as caught:
        await world.client.models.delete(name, extra_query={"force": "true"})
    assert _refused(caught) == (400, "unknown_parameter", "force")
