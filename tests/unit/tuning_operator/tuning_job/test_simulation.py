"""Whole lives of a TuningJob in a world of dicts, stopped at every write and meddled with in every state.

`World.settle` fails where a second pass would write; `World._create` fails where two trainers would run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from llm_tuning.pod.roles import CHECK, REPORT, TRAIN
from tests.support.operator_objects import TRAINED, Raw, make_status, make_tuning_job
from tests.support.operator_world import World

REFUSED = {"exit_code": 64, "result": {"ok": False, "reason": "DatasetInvalid", "message": "row 3: prompt is empty"}}
NO_GPU = {"exit_code": 75, "result": {"ok": False, "reason": "GPUUnavailable", "message": "no CUDA"}}
CRASH = {"exit_code": 1, "result": "ImportError: libx.so"}
GOOD = {"result": TRAINED}
FROM_FIRST: Raw = {"path": "base/tiny", "adapter": {"tuningJob": "first"}}
FIRST = make_tuning_job("first", uid="first", status=make_status(Finished="True", Succeeded="True"))


def world(*, others: dict[str, Raw] | None = None, **given: Any) -> World:
    outcomes = {role: given.pop(role) for role in (CHECK, TRAIN, REPORT) if role in given}
    made = World(make_tuning_job(**{"retries": 1, **given}), others=others or {})
    made.outcomes |= outcomes
    return made


LIVES: dict[str, tuple[Callable[[], World], tuple[str, str], list[str]]] = {
    # name: (the world, how Succeeded ends, the children)
    "plain": (world, ("True", "Succeeded"), ["faq-check", "faq-train"]),
    "bad data": (lambda: world(check=[REFUSED]), ("False", "DatasetInvalid"), ["faq-check"]),
    "the check dies": (lambda: world(check=[CRASH]), ("False", "RetriesExhausted"), ["faq-check"]),
    "refused by the trainer": (lambda: world(train=[REFUSED]), ("False", "DatasetInvalid"), ["faq-check", "faq-train"]),
    "second attempt": (lambda: world(train=[CRASH, GOOD]), ("True", "Succeeded"), ["faq-check", "faq-train"]),
    "no GPU": (lambda: world(train=[NO_GPU]), ("False", "GPUUnavailable"), ["faq-check", "faq-train"]),
    "no retries": (lambda: world(train=[CRASH], retries=0), ("False", "RetriesExhausted"), ["faq-check", "faq-train"]),
    "lost result": (
        lambda: world(train=[GOOD | {"lost": True}]),
        ("True", "Succeeded"),
        ["faq-check", "faq-report", "faq-train"],
    ),
    "nothing to report": (
        lambda: world(train=[GOOD | {"lost": True}], report=[REFUSED]),
        ("False", "ResultLost"),
        ["faq-check", "faq-report", "faq-train"],
    ),
    "from an adapter": (
        lambda: world(others={"first": FIRST}, model=FROM_FIRST),
        ("True", "Succeeded"),
        ["faq-check", "faq-train"],
    ),
}


@pytest.fixture(params=LIVES, ids=lambda name: name.replace(" ", "-"))
def life(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_life_ends_as_it_should(life: str) -> None:
    make, (status, reason), children = LIVES[life]
    ended = make().run()
    assert (ended.condition("Succeeded")["status"], ended.condition("Succeeded")["reason"]) == (status, reason)
    assert sorted(ended.jobs) == children
    assert ended.condition("Reconciling")["status"] == "False"
    assert ended.condition("Stalled")["status"] == "False"
    assert len(ended.writes) <= 8, ended.writes


def test_killed_before_any_write_it_ends_the_same(life: str) -> None:
    undisturbed = LIVES[life][0]().run()
    for number in range(len(undisturbed.writes)):
        killed = LIVES[life][0]()
        killed.kill_at = number
        assert killed.run().end() == undisturbed.end(), f"killed before write {number}"
        assert killed.kill_at is None
        assert [w for w in killed.writes if w != "status"] == [w for w in undisturbed.writes if w != "status"]


def test_pods_that_are_seen_late_change_nothing(life: str) -> None:
    undisturbed, late = LIVES[life][0]().run(), LIVES[life][0]()
    late.late_pods = True
    assert late.run().end() == undisturbed.end()


def test_a_status_that_was_wiped_in_any_state_comes_back(life: str) -> None:
    undisturbed = LIVES[life][0]().run()
    for number, _ in enumerate(LIVES[life][0]().states()):
        wiped = LIVES[life][0]()
        for at, _ in enumerate(wiped.states()):
            if at == number:
                del wiped.job["status"]
                wiped.settle()
        assert wiped.run().end() == undisturbed.end(), f"wiped in state {number}"


def test_a_child_that_was_deleted_in_any_state_does_no_harm(life: str) -> None:
    make, (status, reason), _ = LIVES[life]
    for number, _ in enumerate(make().states()):
        for child in ("faq-check", "faq-train"):
            shorn = make()
            for at, _ in enumerate(shorn.states(80)):
                if at == number:
                    shorn.jobs.pop(child, None)
                    shorn.pods = {n: p for n, p in shorn.pods.items() if not n.startswith(child)}
            found = shorn.condition("Succeeded")
            assert (found["status"], found["reason"]) == (status, reason), f"{child} deleted in state {number}"


def test_suspended_and_resumed_in_any_state() -> None:
    for number, _ in enumerate(world().states()):
        paused = world()
        for at, _ in enumerate(paused.states(80)):
            if at == number and paused.condition("Finished")["status"] != "True":
                paused.spec(suspend=True)
                for _ in range(4):
                    paused.settle()
                    paused.step()
                paused.settle()
                assert not paused.live(CHECK) + paused.live(TRAIN)
                if paused.condition("Finished")["status"] == "True":
                    continue  # its pod had ended already
                assert paused.condition("Suspended")["status"] == "True", f"suspended in state {number}"
                assert paused.job["status"]["phase"] == "Suspended"
                paused.spec(suspend=False)
        assert paused.condition("Succeeded")["status"] == "True"
        assert paused.condition("Suspended")["status"] == "False"


def test_it_waits_for_the_start_adapter_for_ever_and_trains_once_it_is_there() -> None:
    waiting = world(model=FROM_FIRST)
    waiting.run(steps=30)
    assert waiting.condition("Reconciling")["reason"] == "AdapterJobNotFound"
    assert sorted(waiting.jobs) == ["faq-check"]
    waiting.others["first"] = copy.deepcopy(FIRST)
    waiting.run()
    assert waiting.condition("Succeeded")["status"] == "True"
    assert waiting.job["status"]["startAdapterModelId"] == FIRST["status"]["modelId"]


def test_what_waits_is_not_written_again_and_again() -> None:
    stuck = world(train=[{"hang": True}])
    stuck.run(steps=200)
    assert stuck.condition("Trained")["reason"] == "Training"
    assert len(stuck.writes) == 5


def test_equal_worlds_give_equal_wishes() -> None:
    first, second = list(world().run().job.items()), list(world().run().job.items())
    assert first == second
