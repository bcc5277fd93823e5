"""Models become routes, whoever is killed in between, and stop being routes when they are deleted."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from llm_tuning.api.inference_service import InferenceService
from llm_tuning.client.errors import Conflict, Forbidden, Unavailable
from llm_tuning.errors import InputError, TuningError
from llm_tuning.openai_api import publishing
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.publishing import converge, publish, service_name
from tests.support.fake_api_server import Raw, status_object
from tests.support.openai_world import SETTINGS, World, open_world

SERVICES = "inferenceservices"
BY_HAND: Raw = {"model": {"path": "base/tiny", "name": "tiny"}, "volume": {"claimName": "tuning"}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(publishing, "LOOK_SECONDS", 0.01)


def _writes(world: World) -> list[str]:
    return [f"{method} {path.rpartition('/')[2].partition('?')[0]}" for method, path, _, _ in world.server.requests
            if method in ("POST", "PATCH") and SERVICES in path]  # fmt: skip


async def test_the_first_model_of_a_base_makes_its_service_and_the_second_is_a_route_of_it(world: World) -> None:
    await converge(world.context)
    assert world.services() == {}, "no model, no service"
    first = await world.tuned(suffix="faq", model_id="ft_a")
    await converge(world.context)
    (service,) = world.services().values()
    assert InferenceService.parse({key: value for key, value in service.items() if key != "status"}, where="made")
    assert service["metadata"]["name"] == "api-gpt-4-1-mini"
    assert service["metadata"]["labels"] == {"openai.tuning.llmtuning.dev/api": "true"}
    assert service["spec"] == {
        "model": {"path": "base/tiny", "name": "gpt-4.1-mini"},
        "volume": {"claimName": "tuning"},
        "routes": [{"name": first, "targets": [{"modelId": "ft_a"}]}],
    }
    second = await world.tuned(model_id="ft_b")
    await converge(world.context)
    assert world.routes("api-gpt-4-1-mini") == [first, second]
    before = len(world.server.requests)
    await converge(world.context)
    assert [method for method, *_ in world.server.requests[before:]] == ["GET", "GET"], "nothing is left to do"


async def test_a_service_is_made_as_the_settings_have_it(tmp_path: Any) -> None:
    serving = {"replicas": 2, "resources": {"gpus": 0}, "vllm": {"maxModelLen": 512}, "always": True}
    hub = {"uri": "hf://Qwen/Qwen3-8B", "credentialsSecret": {"name": "llm-tuning-hub"}}
    bases = {"a": hub | {"serving": serving}}
    secret = {"name": "llm-tuning-service-key"}
    async with open_world(tmp_path, SETTINGS | {"bases": bases, "apiKeySecret": secret}, service_key="k") as world:
        await converge(world.context)
        spec = world.services()["api-a"]["spec"]
        assert spec == {
            "model": {"uri": "hf://Qwen/Qwen3-8B", "credentialsSecret": {"name": "llm-tuning-hub"}, "name": "a"},
            "volume": {"claimName": "tuning"},
            "routes": [],
            "replicas": 2,
            "resources": {"gpus": 0},
            "vllm": {"maxModelLen": 512},
            "apiKeySecret": {"name": "llm-tuning-service-key", "key": "apiKey"},
        }


async def test_a_service_that_is_there_gets_the_route_and_keeps_all_else(world: World) -> None:
    routes = [{"name": "support", "targets": [{"tuningJob": "faq", "weight": 9}, {"modelId": "ft_x"}]}]
    await world.server.put(SERVICES, "younger", spec=BY_HAND)
    world.server.time = "2026-11-01T08:00:00Z"
    await world.server.put(SERVICES, "older", spec=BY_HAND | {"routes": routes})
    await world.server.put(SERVICES, "other-claim", spec=BY_HAND | {"volume": {"claimName": "elsewhere"}})
    await world.server.put(SERVICES, "other-base", spec=BY_HAND | {"model": {"path": "base/other"}})
    name = await world.tuned(model_id="ft_a")
    await converge(world.context)
    spec = world.services()["older"]["spec"]
    assert spec == BY_HAND | {"routes": [*routes, {"name": name, "targets": [{"modelId": "ft_a"}]}]}
    assert {each: world.routes(each) for each in ("younger", "other-claim", "other-base")} == {
        "younger": [],
        "other-claim": [],
        "other-base": [],
    }


async def test_the_services_of_this_api_come_before_older_ones_and_a_moved_route_stays_where_it_is(
    world: World,
) -> None:
    first = await world.tuned(model_id="ft_a")
    await converge(world.context)
    world.server.time = "2026-11-01T08:00:00Z"
    moved = {"name": first, "targets": [{"modelId": "ft_a"}]}
    await world.server.put(SERVICES, "older", spec=BY_HAND | {"routes": [moved]})
    ours = world.services()["api-gpt-4-1-mini"]["spec"]
    await world.server.put(SERVICES, "api-gpt-4-1-mini", spec=ours | {"routes": []})
    second = await world.tuned(model_id="ft_b")
    await converge(world.context)
    assert world.routes("older") == [first]
    assert world.routes("api-gpt-4-1-mini") == [second]


async def test_without_on_demand_no_service_is_made(tmp_path: Any) -> None:
    bases = {"a": {"path": "base/tiny", "serving": {"onDemand": False}}}
    async with open_world(tmp_path, SETTINGS | {"bases": bases}) as world:
        await world.tuned("a")
        await converge(world.context)
        assert world.services() == {}


async def test_two_names_of_one_base_have_one_service(tmp_path: Any) -> None:
    bases = {"a": {"path": "base/tiny"}, "b": {"path": "base/tiny"}}
    async with open_world(tmp_path, SETTINGS | {"bases": bases}) as world:
        names = [await world.tuned("b", model_id="ft_b"), await world.tuned("a", model_id="ft_a")]
        await converge(world.context)
        assert sorted(world.routes("api-a")) == sorted(names)
        assert len(world.services()) == 1


async def test_a_service_has_64_routes_and_the_65th_model_waits_until_one_is_deleted(world: World) -> None:
    full = [{"name": f"r{n}", "targets": [{"modelId": f"ft_{n}"}]} for n in range(63)]
    await world.server.put(SERVICES, "faq", spec=BY_HAND | {"routes": full})
    first = await world.tuned(model_id="ft_a")
    await converge(world.context)
    second = await world.tuned(model_id="ft_b")
    await converge(world.context)
    assert (world.routes("faq")[-1], len(world.routes("faq"))) == (first, 64)
    await world.client.models.delete(first)
    await converge(world.context)
    assert (world.routes("faq")[-1], len(world.routes("faq"))) == (second, 64)


async def test_kubectls_jobs_and_spoiled_annotations_are_not_published(world: World) -> None:
    await world.tuned(model_id="ft_a")
    (raw,) = world.server.all("tuningjobs")
    del raw["metadata"]["labels"]["openai.tuning.llmtuning.dev/api"]
    world.server.cluster.change("tuningjobs", raw)
    await converge(world.context)
    assert world.services() == {}
    raw["metadata"]["labels"]["openai.tuning.llmtuning.dev/api"] = "true"
    annotation = "openai.tuning.llmtuning.dev/request"
    raw["metadata"]["annotations"][annotation] = '{"model":"x","base":"gpt-4.1-mini","fine_tuned_model":"a route!"}'
    world.server.cluster.change("tuningjobs", raw)
    await converge(world.context)
    assert world.services() == {}


async def test_a_killed_replica_at_any_write_and_another_one_come_to_the_same_end(world: World) -> None:
    """Three models of two bases, of which one is deleted: each kill is at another write, before or after it."""
    names = [await world.tuned(model_id="ft_a"), await world.tuned("qwen3-8b", model_id="ft_q")]
    for write, moment in itertools.product(range(4), ("before", "after")):
        for service in world.services():
            await world.server.remove(SERVICES, service)
        await _killed_at(world, write, moment)
        await converge(world.context)
        assert {name: world.routes(name) for name in world.services()} == {
            "api-gpt-4-1-mini": [names[0]],
            "api-qwen3-8b": [names[1]],
        }


async def _killed_at(world: World, number: int, moment: str) -> None:
    """Converge with a backend that dies at its write of that number."""
    left = itertools.count()

    class Killed(BaseException):
        pass

    async def die(write: Any, *given: Any) -> Any:
        if next(left) == number:
            if moment == "after":
                await write(*given)
            raise Killed
        return await write(*given)

    backend = world.backend
    create, change = backend.create_service, backend.change_service
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "create_service", lambda body: die(create, body))
        patch.setattr(backend, "change_service", lambda name, body: die(change, name, body))
        try:
            await converge(world.context)
        except Killed:
            pass
        else:
            assert next(left) <= number, "it must have died, but where it has fewer writes"


async def test_two_replicas_make_one_service_and_lose_no_route(tmp_path: Any) -> None:
    async with open_world(tmp_path) as world:
        others = [World(world.server, tmp_path) for _ in range(2)]
        loops = [asyncio.ensure_future(publish(each.context)) for each in (world, *others)]
        names = [await world.tuned(model_id=f"ft_{n}") for n in range(5)]
        await _until(lambda: sorted(_routes(world)) == sorted(names))
        await world.client.models.delete(names[0])
        assert sorted(_routes(world)) == sorted(names[1:])
        await asyncio.sleep(0.05)
        assert sorted(_routes(world)) == sorted(names[1:]), "nobody puts it back"
        assert not any(loop.done() for loop in loops)
        for loop in loops:
            loop.cancel()
        for each in others:
            await each.client.close()
            await each.backend.close()


def _routes(world: World) -> list[str]:
    return world.routes("api-gpt-4-1-mini") if world.services() else []


async def _until(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


REFUSALS = [
    InputError("spec.model: a rule of this cluster"),
    Forbidden("a rule of this cluster: exceeded quota"),
    Unavailable("a rule of this cluster: its webhook failed"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: type(each).__name__)
async def test_a_change_that_is_refused_keeps_no_other_from_being_made(world: World, refusal: TuningError) -> None:
    await world.tuned(model_id="ft_a")
    name = await world.tuned("qwen3-8b", model_id="ft_q")
    create = world.backend.create_service

    async def refuse(body: Raw) -> Any:
        if body["metadata"]["name"] == "api-gpt-4-1-mini":
            raise refusal
        return await create(body)

    world.backend.create_service = refuse  # type: ignore[method-assign]
    with pytest.raises(type(refusal), match="a rule of this cluster"):
        await converge(world.context)
    assert world.routes("api-qwen3-8b") == [name]
    assert (await world.client.models.delete(name)).deleted
    assert world.routes("api-qwen3-8b") == []


async def test_a_change_that_is_always_too_late_ends_and_says_so(world: World) -> None:
    await world.tuned(model_id="ft_a")

    async def late(body: Raw) -> Any:
        raise Conflict("another was first")

    world.backend.create_service = late  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="another was first"):
        await converge(world.context)


async def test_the_loop_outlives_a_cluster_that_does_not_answer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    name = await world.tuned(model_id="ft_a")
    world.server.next_answers.extend(status_object(503, "ServiceUnavailable", "etcd is away") for _ in range(40))
    loop = asyncio.ensure_future(publish(world.context))
    await _until(lambda: _routes(world) == [name])
    loop.cancel()
    said = [record.message for record in caplog.records if "could not be published" in record.message]
    assert said, caplog.text
    assert "etcd is away" in said[0]


def test_a_services_name_is_one_that_kubernetes_takes() -> None:
    assert service_name("gpt-4.1-mini", []) == "api-gpt-4-1-mini"
    assert (
        service_name("Qwen3.8B", ["api-qwen3-8b"]) == f"api-qwen3-8b-{service_name('Qwen3.8B', ['api-qwen3-8b'])[-6:]}"
    )
    names = [
        service_name("A" * 46, []),
        service_name("A" * 46, ["api-" + "a" * 36]),
        service_name("-".join("a" * 23), []),
    ]
    assert all(len(name) <= 40 and not name.endswith("-") for name in names)
    assert len(set(names)) == 3


def test_settings_of_one_base_under_two_names_are_the_first_ones() -> None:
    settings = Settings.parse(
        {"bases": {"b": {"path": "base/x", "serving": {"always": True, "replicas": 3}}, "a": {"path": "base/x"}}}
    )
    (create,) = publishing.desire([], [], settings)
    assert isinstance(create, publishing.Create)
    assert (create.name, create.body["spec"]["replicas"]) == ("api-b", 3)
