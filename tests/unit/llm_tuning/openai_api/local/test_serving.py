"""Which vLLM runs on this machine, and when. What begins and ends here is a stand-in for its process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.agent.contract import DesiredRoutes, Report
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.engines.vllm.install import Vllm
from llm_tuning.errors import InputError, Problem
from llm_tuning.openai_api.local import serving as module
from llm_tuning.openai_api.local.engine import LocalEngine
from llm_tuning.openai_api.local.machine import Machine
from llm_tuning.openai_api.local.objects import Objects
from llm_tuning.openai_api.local.serving import Serving

VERSION = "tuning.llmtuning.dev/v1alpha1"
LINE = {"volume": {"claimName": "local"}}


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Keeper:
    def __init__(self) -> None:
        self.desired = DesiredRoutes()

    def want(self, desired: DesiredRoutes) -> None:
        self.desired = desired


@dataclass
class Engine:
    """A process that has been started: it answers at once, and breaks when the test says so."""

    service: InferenceServiceView
    desired: DesiredRoutes
    url: str
    keeper: Keeper = field(default_factory=Keeper)
    broken: str | None = None
    refused: str | None = None
    drained: bool | None = None

    @property
    def report(self) -> Report:
        return Report(revision=self.keeper.desired.revision, engine_up=True, ready=True)

    is_for = LocalEngine.is_for

    def fault(self) -> str | None:
        return self.broken

    def outgrown(self) -> str | None:
        return self.refused

    async def stop(self, *, drain: bool) -> None:
        self.drained = drain


class World:
    """A machine with two bases."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, cards: tuple[str, ...]) -> None:
        self.objects, self.clock = Objects(folder / "api"), Clock()
        self.started: list[Engine] = []
        self.unservable: set[str] = set()
        machine = Machine(Vllm("python", cpu_build=False), cards)
        monkeypatch.setattr(module, "time", self.clock)
        monkeypatch.setattr(module, "find_machine", lambda project, environment: machine)
        monkeypatch.setattr(module.LocalEngine, "start", self._start)
        self.serving = Serving(self.objects, folder, {})
        for name in ("a", "b"):
            self.make("InferenceService", name, {"model": {"path": f"base/{name}"}})

    async def _start(self, service: InferenceServiceView, desired: DesiredRoutes, *rest: object) -> Engine:
        if service.name in self.unservable:
            raise InputError(Problem("model.path", "holds no base", "name a folder that holds one"))
        self.started.append(Engine(service, desired, f"http://127.0.0.1/{len(self.started)}"))
        return self.started[-1]

    def make(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        body = {"apiVersion": VERSION, "kind": kind, "metadata": {"name": name}, "spec": LINE | spec}
        self.objects.create(f"{kind.lower()}s", body)

    def train(self, name: str = "job", **spec: Any) -> TuningJobView:
        base = {"model": {"path": "base/a"}, "dataset": {"path": "datasets/a.json"}, "resources": {"gpus": 1}}
        self.make("TuningJob", name, base | spec)
        return TuningJobView.of(self.objects.read("tuningjobs", name))

    def ask(self, name: str) -> str | None:
        """Ask as a chat does."""
        return self.serving.url(InferenceServiceView.of(self.objects.read("inferenceservices", name)))

    async def look(self, seconds: float = 0.5) -> None:
        self.clock.now += seconds
        await self.serving._step()

    def ready(self, name: str) -> tuple[str, str]:
        """Return the reason and the message of its condition Ready."""
        conditions = self.objects.read("inferenceservices", name)["status"]["conditions"]
        (ready,) = (each for each in conditions if each["type"] == "Ready")
        return ready["reason"], ready["message"]

    @property
    def names(self) -> list[str]:
        """Return whose engines were started, one after the other."""
        return [engine.service.name for engine in self.started]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """With one GPU: no room for a training beside vLLM."""
    made = World(tmp_path, monkeypatch, ("0",))
    yield made
    made.objects.close()


async def test_nothing_runs_until_a_model_is_asked_for(world: World) -> None:
    await world.look()
    assert (world.names, world.ready("a")) == ([], ("Pending", "vLLM starts for it when it is asked for"))
    assert world.ask("a") is None
    await world.look()
    assert (world.names, world.ask("a")) == (["a"], "http://127.0.0.1/0")
    assert world.ready("a")[0] == "Ready"


async def test_another_base_has_its_turn_when_the_first_is_idle(world: World) -> None:
    world.ask("a")
    await world.look()
    assert world.ask("b") is None
    world.ask("a")
    await world.look(module.LINGER_SECONDS - 1)
    assert world.names == ["a"]
    assert "one base at a time, and a now" in world.ready("b")[1]
    await world.look(2)
    assert (world.names, world.started[0].drained) == (["a", "b"], True)
    assert world.ready("a")[0] == "Pending"


async def test_others_have_their_turn_though_the_first_is_asked_again_and_again(world: World) -> None:
    world.make("InferenceService", "c", {"model": {"path": "base/c"}})
    world.ask("a")
    await world.look()
    for _ in range(int(module.MOST_LINGER_SECONDS) + 2):
        for name in ("b", "c", "a"):
            world.ask(name)
        await world.look(1)
        if len(world.started) > 1:
            break
    assert world.names == ["a", "c"]


async def test_a_published_model_does_not_take_another_bases_turn(world: World) -> None:
    world.ask("a")
    await world.look()
    world.ask("b")
    world.serving.want("a")
    await world.look(module.LINGER_SECONDS + 1)
    assert world.names == ["a", "b"]


async def test_a_base_that_cannot_be_served_takes_no_turn_again_at_once(world: World) -> None:
    world.unservable.add("b")
    world.ask("b")
    await world.look()
    assert world.ready("b") == ("PlanFailed", "model.path: holds no base; name a folder that holds one")
    await world.look(module.FIRST_PAUSE_SECONDS)  # it fails again, and pauses for twice as long
    world.ask("a")
    await world.look()
    world.ask("b")
    await world.look(module.LINGER_SECONDS + 1)
    assert (world.names, world.started[0].drained) == (["a"], None)


async def test_one_with_no_replicas_takes_no_turn(world: World) -> None:
    world.ask("a")
    await world.look()
    world.objects.change("inferenceservices", "b", {"spec": {"replicas": 0}})
    world.ask("b")
    await world.look(module.LINGER_SECONDS + 1)
    assert (world.names, world.started[0].drained) == (["a"], None)
    assert world.ready("b") == ("NoReplicas", "spec.replicas is 0")


async def test_vllm_that_has_ended_is_started_again_after_longer_and_longer_pauses(world: World) -> None:
    world.ask("a")
    await world.look()
    pause = module.FIRST_PAUSE_SECONDS
    for number in range(1, 4):
        world.started[-1].broken = "vLLM has ended"
        await world.look(0)
        assert (len(world.started), world.ask("a")) == (number, None)
        assert world.ready("a") == ("EngineFailing", "vLLM has ended")
        await world.look(pause - 1)
        assert len(world.started) == number
        await world.look(1)  # and it breaks again before a look finds it ready
        assert len(world.started) == number + 1
        pause *= 2


async def test_a_changed_service_is_started_again_and_a_removed_one_ends(world: World) -> None:
    world.ask("a")
    await world.look()
    world.objects.change("inferenceservices", "a", {"spec": {"vllm": {"maxModelLen": 512}}})
    await world.look()
    assert (world.names, world.started[0].drained) == (["a", "a"], True)
    world.objects.change("inferenceservices", "a", {"spec": {"replicas": 0}})
    await world.look()
    await world.look()
    assert (len(world.started), world.started[1].drained) == (2, True)


async def test_an_adapter_that_it_was_not_planned_for_starts_it_again(world: World) -> None:
    world.ask("a")
    await world.look()
    world.train(resources={"gpus": 0}, lora={"rank": 128})
    world.started[0].refused = "ft_a"
    await world.look()
    assert (world.names, world.started[1].desired.rank) == (["a", "a"], 128)


async def test_a_training_without_room_ends_vllm_which_comes_again(world: World) -> None:
    world.ask("a")
    await world.look()
    job = world.train()
    async with world.serving.room_for(job):
        assert world.started[0].drained
        world.ask("a")
        await world.look()
        assert len(world.started) == 1
        assert "job job has this machine, which has no room for both" in world.ready("a")[1]
    await world.look()
    assert len(world.started) == 1, "the job waits still, as one that is tried again"
    world.objects.change("tuningjobs", "job", {"spec": {"suspend": True}})
    await world.look()
    assert world.names == ["a", "a"]


async def test_after_a_training_the_base_whose_turn_was_next_comes_first(world: World) -> None:
    world.ask("a")
    await world.look()
    job = world.train()
    world.ask("b")
    async with world.serving.room_for(job):
        assert world.started[0].drained
    world.objects.change("tuningjobs", "job", {"spec": {"suspend": True}})
    await world.look()
    assert world.names == ["a", "b"]


async def test_with_a_card_for_each_a_training_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, ("0", "1"))
    world.ask("a")
    await world.look()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.serving.room_for(world.train()))
        await world.look()
        assert (world.ask("a"), world.started[0].drained) == ("http://127.0.0.1/0", None)
    world.objects.close()


async def test_a_route_to_a_job_waits_for_it_and_then_has_its_adapter(world: World) -> None:
    world.train(resources={"gpus": 0})
    routes = [{"name": "faq", "targets": [{"tuningJob": "job"}]}]
    world.objects.change("inferenceservices", "a", {"spec": {"routes": routes}})
    world.ask("a")
    await world.look()
    await world.look()
    assert world.started[0].keeper.desired.routes[0].targets[0].reason == "WaitingForTuningJob"
    true = {"status": "True", "reason": "Succeeded", "lastTransitionTime": "2026-12-01T10:00:00Z"}
    done = [{"type": kind} | true for kind in ("Succeeded", "Finished")]
    world.objects.set_status("tuningjobs", "job", {"modelId": "ft_a", "conditions": done})
    await world.look()
    assert world.started[0].keeper.desired.model_ids == ["ft_a"]
    assert len(world.started) == 1
