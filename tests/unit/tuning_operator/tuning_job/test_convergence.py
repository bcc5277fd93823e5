"""A TuningJob's life under seeded schedules: whatever happens, its end is what its pods and its user lead to.

The operator (see `tests.support.tuning_world`) is killed between any two writes and begins again with an empty memory;
watches deliver late, twice, or not at all until the next list; people suspend, delete and meddle meanwhile.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from tests.support.operator_objects import make_status, make_tuning_job
from tests.support.tuning_world import (
    HANG,
    LOST,
    NAME,
    NO_GPU,
    NO_ROOM,
    OK,
    OOM,
    Faults,
    World,
    finished,
    has_ended,
    live,
)
from tuning_operator.core.cache import JOBS, PODS, TUNING_JOBS

PLANS: dict[str, dict[str, list[str]]] = {
    "well": {},
    "refused": {"check": ["64"]},
    "check crashes once": {"check": ["137", OK]},
    "check crashes": {"check": ["1"]},
    "result of the check lost": {"check": [LOST]},
    "trainer refuses": {"train": ["75", "64"]},
    "tries again": {"train": ["75", OOM, OK]},
    "never works": {"train": ["137", "75", "1"]},
    "out of memory": {"train": [OOM]},
    "result lost": {"train": [LOST]},
    "result lost after a failure": {"train": ["137", LOST]},
    "nothing to report": {"train": [LOST], "report": ["64"]},
    "no GPU": {"train": [NO_GPU]},
    "no room for two Jobs": {"train": [*[NO_ROOM] * 9, OK]},
    "no room for the check": {"check": [NO_ROOM]},
}
TROUBLE = Faults(kill=0.1, lag=0.5, lose=0.05, double=0.2, interleave=0.2)
SEEDS = int(os.environ.get("SEEDS", "3"))
"""Schedules of each case; some hundreds where something was changed."""
PLANS_WITH_A_SIDECAR = PLANS | {"trainer refuses at once": {"train": ["64"]}}
each_plan = pytest.mark.parametrize("plan", PLANS, ids=[name.replace(" ", "-") for name in PLANS])
each_seed = pytest.mark.parametrize("seed", range(SEEDS))
each_of_twice_the_seeds = pytest.mark.parametrize("seed", range(2 * SEEDS))


_calm: dict[str, World] = {}


async def calm(plan: str) -> World:
    """After a life of this plan in which nothing goes wrong; lived once."""
    if plan not in _calm:
        _calm[plan] = World(random.Random(0), PLANS_WITH_A_SIDECAR[plan])
        await live(_calm[plan], Faults())
    return _calm[plan]


@each_plan
@each_seed
async def test_the_end_is_the_same_with_every_kind_of_trouble(plan: str, seed: int) -> None:
    world = World(random.Random(seed), PLANS[plan])
    await live(world, TROUBLE)
    assert world.end() == (await calm(plan)).end()


async def test_the_trouble_kills_the_operator() -> None:
    operators = [await live(World(random.Random(seed), PLANS["well"]), TROUBLE) for seed in range(3)]
    assert sum(operator.deaths for operator in operators) > 0


EXPECTED = {
    "well": ("True", "Succeeded"),
    "refused": ("False", "DatasetInvalid"),
    "check crashes once": ("True", "Succeeded"),
    "check crashes": ("False", "RetriesExhausted"),
    "result of the check lost": ("True", "Succeeded"),
    "trainer refuses": ("False", "DatasetInvalid"),
    "tries again": ("True", "Succeeded"),
    "never works": ("False", "RetriesExhausted"),
    "out of memory": ("False", "OutOfMemory"),
    "result lost": ("True", "Succeeded"),
    "no room for two Jobs": ("True", "Succeeded"),
    "no room for the check": ("False", "VolumeFull"),
    "result lost after a failure": ("True", "Succeeded"),
    "nothing to report": ("False", "ResultLost"),
    "no GPU": ("False", "GPUUnavailable"),
}
NOT_TRAINED = {"refused", "check crashes", "no room for the check"}
REPORTED = {"result lost", "result lost after a failure", "nothing to report"}


@pytest.mark.parametrize("plan", ["well", "refused", "trainer refuses at once", "result of the check lost"])
@each_seed
async def test_a_sidecar_that_never_ends_keeps_no_result_and_no_pod(plan: str, seed: int) -> None:
    """Whatever trouble there is meanwhile; and never two trainers at once, which the world itself asserts."""
    world = World(random.Random(seed), PLANS_WITH_A_SIDECAR[plan], sidecar=True)
    await live(world, TROUBLE)
    assert world.end()["conditions"] == (await calm(plan)).end()["conditions"]
    assert world.all(PODS) == [], "a GPU that a proxy holds is a GPU that nobody else has"


@each_plan
async def test_the_end_says_what_has_happened(plan: str) -> None:
    world = await calm(plan)
    conditions = {kind: (status, reason) for kind, status, reason, _ in world.end()["conditions"]}
    assert conditions["Succeeded"] == EXPECTED[plan]
    assert conditions["Reconciling"] == ("False", "Finished")
    assert conditions["Stalled"][0] == "False"
    assert world.end()["status"]["startTime"]
    children = {"faq-check"} if plan in NOT_TRAINED else {"faq-check", "faq-train"}
    assert set(world.job_names()) == children | ({"faq-report"} if plan in REPORTED else set())


@each_seed
async def test_a_life_without_trouble_takes_few_writes(seed: int) -> None:
    world = World(random.Random(seed), {})
    await live(world, Faults(lag=0.5))
    writes = [write for write in world.cluster.writes if not write.startswith("event")]
    assert len(writes) <= 8, writes
    told = [event["reason"] for event in world.cluster.events]
    assert sorted({*told, "Training"}) == ["DatasetValid", "Evaluated", "Succeeded", "Trained", "Training"]
    assert {event["count"] for event in world.cluster.events} == {1}


def meddle(world: World, number: int) -> None:
    """People suspend, resume, and delete Jobs and pods, but not for ever."""
    if number > 60:
        world.suspend(False)
        return
    rng = world.rng
    chance = rng.random()
    if chance < 0.08:
        world.suspend(True)
    elif chance < 0.2:
        world.suspend(False)
    elif chance < 0.24:
        world.delete_a_job()
    elif chance < 0.32:
        world.vanish()
    elif chance < 0.34 and (pods := world.all(PODS)):
        world.delete_pod(rng.choice(pods))


@pytest.mark.parametrize("plan", ["well", "tries again", "result lost", "refused"])
@each_of_twice_the_seeds
async def test_whatever_people_do_meanwhile(plan: str, seed: int) -> None:
    world = World(random.Random(seed), PLANS[plan])
    await live(world, TROUBLE, act=meddle, spec={"retries": 100})
    succeeded = {kind: status for kind, status, *_ in world.end()["conditions"]}["Succeeded"]
    assert succeeded == EXPECTED[plan][0], world.end()
    assert world.trained == (succeeded == "True")


@each_of_twice_the_seeds
async def test_deleted_at_any_moment_nothing_is_left(seed: int) -> None:
    def act(world: World, number: int) -> None:
        if number == seed:
            world.delete()

    world = World(random.Random(seed), {})
    await live(world, TROUBLE, act=act)
    if world.cluster.get(TUNING_JOBS, NAME) is None:
        assert world.all(JOBS) == []
        assert world.all(PODS) == []


@each_of_twice_the_seeds
async def test_suspended_at_any_moment_no_pod_runs_and_the_status_says_so(seed: int) -> None:
    def act(world: World, number: int) -> None:
        if number == seed:
            world.suspend(True)
        if number == seed + 60 and not finished(world):
            assert [pod for pod in world.all(PODS) if not has_ended(pod)] == []
            conditions = {kind: (status, reason) for kind, status, reason, _ in world.end()["conditions"]}
            assert conditions["Suspended"] == ("True", "Suspended"), conditions
            assert world.end()["status"]["phase"] == "Suspended"
            world.suspend(False)

    world = World(random.Random(seed), {"train": ["75", OK]})
    await live(world, TROUBLE, act=act)
    assert {kind: status for kind, status, *_ in world.end()["conditions"]}["Succeeded"] == "True"


@each_of_twice_the_seeds
async def test_kueue_lets_jobs_in_and_takes_that_back(seed: int) -> None:
    world = World(random.Random(seed), {})
    await live(world, TROUBLE, spec={"queueName": "team-a", "retries": 100})
    assert world.end()["conditions"] == (await calm("well")).end()["conditions"]
    if seed == 2:  # of those that were held back for long enough
        assert "Queued" in {event["reason"] for event in world.cluster.events}


@each_plan
async def test_equal_input_gives_byte_equal_statuses(plan: str) -> None:
    def bytes_of(world: World) -> str:
        return json.dumps(world.cluster.get(TUNING_JOBS, NAME))

    first, second = World(random.Random(7), PLANS[plan]), World(random.Random(7), PLANS[plan])
    await live(first, TROUBLE)
    await live(second, TROUBLE)
    assert bytes_of(first) == bytes_of(second)


@each_plan
@pytest.mark.parametrize("number", range(8))
async def test_killed_before_any_write_it_ends_the_same(plan: str, number: int) -> None:
    undisturbed, world = await calm(plan), World(random.Random(0), PLANS[plan])
    operator = await live(world, Faults(kill_at=number))
    assert operator.deaths == (number < len(undisturbed.cluster.writes))
    assert world.end() == undisturbed.end()


@pytest.mark.parametrize("plan", ["well", "result lost", "refused"])
@pytest.mark.parametrize("moment", range(0, 30, 3))
async def test_a_status_that_was_wiped_at_any_moment_comes_back(plan: str, moment: int) -> None:
    def act(world: World, number: int) -> None:
        if number == moment:
            world.wipe_status()

    world = World(random.Random(moment), PLANS[plan])
    await live(world, Faults(lag=0.5), act=act)
    assert world.end() == (await calm(plan)).end()


@pytest.mark.parametrize("child", ["faq-check", "faq-train"])
@pytest.mark.parametrize("moment", range(0, 30, 3))
async def test_a_child_that_was_deleted_at_any_moment_does_no_harm(child: str, moment: int) -> None:
    def act(world: World, number: int) -> None:
        if number == moment:
            world.remove_job(child)

    world = World(random.Random(moment), PLANS["well"])
    await live(world, Faults(lag=0.5), act=act)
    assert {kind: status for kind, status, *_ in world.end()["conditions"]}["Succeeded"] == "True"


# --- with a base that is fetched -------------------------------------------------------------------------------------

FETCHES: dict[str, tuple[dict[str, list[str]], tuple[str, str]]] = {
    "well": ({}, ("True", "Succeeded")),
    "no such source": ({"fetch": ["64"]}, ("False", "SourceNotFound")),
    "crashes once": ({"fetch": ["75", OK]}, ("True", "Succeeded")),
    "crashes": ({"fetch": ["75"]}, ("False", "RetriesExhausted")),
    "check refuses": ({"check": ["64"]}, ("False", "DatasetInvalid")),
}
FROM_HUB = {"model": {"uri": "hf://owner/tiny"}}
each_fetch = pytest.mark.parametrize("plan", FETCHES, ids=[name.replace(" ", "-") for name in FETCHES])
_fetched: dict[str, World] = {}


async def calm_fetch(plan: str) -> World:
    if plan not in _fetched:
        _fetched[plan] = World(random.Random(0), FETCHES[plan][0])
        await live(_fetched[plan], Faults(), spec=FROM_HUB)
    return _fetched[plan]


@each_fetch
async def test_a_fetch_comes_first_and_its_end_is_the_end(plan: str) -> None:
    world = await calm_fetch(plan)
    conditions = {kind: (status, reason) for kind, status, reason, _ in world.end()["conditions"]}
    assert conditions["Succeeded"] == FETCHES[plan][1]
    has_failed = "fetch" in FETCHES[plan][0] and conditions["Succeeded"][0] == "False"
    assert conditions["Fetched"][0] == ("False" if has_failed else "True")
    assert ("faq-check" in world.job_names()) is not has_failed


@each_fetch
@each_seed
async def test_with_a_fetch_the_end_is_the_same_with_every_kind_of_trouble(plan: str, seed: int) -> None:
    world = World(random.Random(seed), FETCHES[plan][0])
    await live(world, TROUBLE, spec=FROM_HUB)
    assert world.end() == (await calm_fetch(plan)).end()


@pytest.mark.parametrize("number", range(10))
async def test_killed_before_any_write_of_a_life_with_a_fetch_it_ends_the_same(number: int) -> None:
    undisturbed, world = await calm_fetch("well"), World(random.Random(0), {})
    operator = await live(world, Faults(kill_at=number), spec=FROM_HUB)
    assert operator.deaths == (number < len(undisturbed.cluster.writes))
    assert world.end() == undisturbed.end()


@each_of_twice_the_seeds
async def test_whatever_people_do_to_a_life_with_a_fetch(seed: int) -> None:
    world = World(random.Random(seed), {"fetch": [LOST, OK]})
    await live(world, TROUBLE, act=meddle, spec={**FROM_HUB, "retries": 100})
    assert {kind: status for kind, status, *_ in world.end()["conditions"]}["Succeeded"] == "True", world.end()


async def test_without_retries_the_first_failure_is_the_end() -> None:
    world = World(random.Random(0), {"train": ["137", OK]})
    await live(world, Faults(), spec={"retries": 0})
    assert {kind: rest for kind, *rest in world.end()["conditions"]}["Succeeded"][:2] == ["False", "RetriesExhausted"]


async def test_it_waits_for_the_start_adapter_and_trains_once_it_is_there() -> None:
    first = make_tuning_job("first", uid="first", status=make_status(Finished="True", Succeeded="True"))
    seen: list[Any] = []

    def act(world: World, number: int) -> None:
        if number == 30:
            seen.extend([{kind: reason for kind, _, reason, _ in world.end()["conditions"]}, world.job_names()])
            world.cluster.add(TUNING_JOBS, first)

    world = World(random.Random(0), PLANS["well"])
    await live(world, Faults(), act=act, spec={"model": {"path": "base/tiny", "adapter": {"tuningJob": "first"}}})
    conditions, jobs = seen
    assert (conditions["Reconciling"], jobs) == ("AdapterJobNotFound", ["faq-check"])
    assert {kind: status for kind, status, *_ in world.end()["conditions"]}["Succeeded"] == "True"
    assert world.end()["status"]["startAdapterModelId"] == first["status"]["modelId"]


async def test_what_waits_is_not_written_again_and_again() -> None:
    written: list[list[str]] = []

    def act(world: World, number: int) -> None:
        if number in (60, 200):
            written.append([write for write in world.cluster.writes if not write.startswith("event")])
        if number == 200:
            assert {kind: reason for kind, _, reason, _ in world.end()["conditions"]}["Trained"] == "Training"
            world.delete()

    await live(World(random.Random(0), {"train": [HANG]}), Faults(), act=act)
    assert written[0] == written[1]
    assert len(written[0]) == 5
