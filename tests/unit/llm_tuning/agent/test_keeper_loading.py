"""The wanted adapters are kept loaded as what is wanted changes; a bad one harms no other.

A turn is one look and one step; where the order of two things matters, it is a step while a look waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llm_tuning.agent import adapter as adapter_module
from llm_tuning.agent import keeper as keeper_module
from llm_tuning.agent.adapter import SETTLED_ATTEMPTS
from llm_tuning.agent.engine_life import DEADLY_TIMES
from llm_tuning.agent.keeper import UNLOAD_SECONDS
from llm_tuning.engines.vllm import engine as engine_module
from tests.unit.llm_tuning.agent.conftest import PLAN, Pod, desire, eventually, must_not_answer, write_adapter

# --- loaded and proven -----------------------------------------------------------------------------------------------


async def test_wanted_adapters_are_loaded_under_their_own_path_and_proven(pod: Pod) -> None:
    pod.want({"support": {"ft_a": 9, "ft_b": 1}, "again": "ft_a"})
    assert not pod.keeper.ready
    await pod.turn()
    assert pod.engine.loras == {name: str(pod.models / name) for name in ("ft_a", "ft_b")}
    assert pod.proofs.asked == ["ft_a", "ft_b"]
    report = pod.keeper.report()
    assert report.ready
    assert report.engine_up
    assert report.revision == pod.keeper.desired.revision  # type: ignore[union-attr]
    assert [(a.model_id, a.loaded, a.effective, a.settled, a.reason) for a in report.adapters] == [
        ("ft_a", True, "True", True, "Effective"),
        ("ft_b", True, "True", True, "Effective"),
    ]
    assert pod.keeper.blocked("ft_a") is None
    await pod.turn(5)
    assert pod.engine.called("load") == ["ft_a", "ft_b"], "once is enough"
    assert pod.proofs.asked == ["ft_a", "ft_b"]


async def test_nothing_is_loaded_and_nothing_ready_before_it_is_known_what_is_wanted(pod: Pod) -> None:
    await pod.turn()
    assert not pod.keeper.ready
    assert pod.keeper.blocked("ft_a") == "is not among the wanted adapters"
    pod.want({})
    assert pod.keeper.ready, "the base alone"


# --- a bad adapter harms no other ------------------------------------------------------------------------------------


async def test_a_refused_load_is_tried_again_with_longer_pauses_and_settles(pod: Pod) -> None:
    pod.engine.refuse["ft_bad"] = (500, "LoRA rank 99\n is greater than max_lora_rank 16")
    pod.want({"support": "ft_bad", "other": "ft_b"})
    await pod.turn()
    assert pod.reason("ft_bad") == "LoadFailed"
    assert pod.adapter("ft_bad").message == (
        "the engine does not load it: 500: LoRA rank 99 is greater than max_lora_rank 16"
    )
    assert not pod.adapter("ft_bad").settled
    assert not pod.keeper.ready
    assert must_not_answer(pod, "ft_bad")
    assert pod.keeper.blocked("ft_b") is None
    tries, at = 1, []
    for second in range(1, 200):
        await pod.turn(1)
        if pod.engine.called("load").count("ft_bad") > tries:
            tries += 1
            at.append(second)
        assert pod.keeper.ready == (tries >= SETTLED_ATTEMPTS)
    assert at == [1, 3, 7, 15, 31, 63, 123, 183], "doubled, and at most a minute"
    del pod.engine.refuse["ft_bad"]
    await pod.turn(60)
    assert pod.keeper.blocked("ft_bad") is None, "and taken when it can be"


async def test_days_of_failures_are_survived(pod: Pod) -> None:
    """The pauses double: 2.0 ** 1024 is no float."""
    pod.engine.refuse["ft_bad"] = (500, "no")
    write_adapter(pod.models, "ft_large", rank=64)
    pod.want({"support": {"ft_bad": 1, "ft_large": 1}})
    await pod.turn()
    for adapter in pod.keeper._adapters.values():
        adapter.attempts = 5000
    await pod.turn(10_000)
    assert pod.reason("ft_bad") == "LoadFailed"
    assert pod.reason("ft_large") == "RankTooHigh"
    assert pod.keeper._adapters["ft_bad"].due - pod.now == 60
    assert pod.keeper._adapters["ft_large"].due - pod.now == 600


async def test_a_misfit_is_refused_unloaded_and_looked_at_again(pod: Pod) -> None:
    pod.want({"other": "ft_b"})
    folder = write_adapter(pod.models, "ft_bad", rank=64)
    pod.keeper.want(desire({"bad": "ft_bad", "good": "ft_b"}))
    await pod.turn()
    assert pod.engine.called("load") == ["ft_b"]
    said = pod.adapter("ft_bad")
    assert (said.loaded, said.effective, said.settled, said.reason) == (False, "False", True, "RankTooHigh")
    assert str(pod.keeper.blocked("ft_bad")).startswith("RankTooHigh: ft_bad has rank 64")
    assert pod.keeper.ready
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace("64", "8"))
    await pod.turn(5)
    assert must_not_answer(pod, "ft_bad"), "not yet looked at again"
    await pod.turn(5)
    assert pod.keeper.blocked("ft_bad") is None


async def test_a_misfit_that_the_engine_still_has_is_unloaded(pod: Pod) -> None:
    """An earlier agent loaded it; meanwhile its files are gone."""
    pod.engine.loras["ft_gone"] = "somewhere"
    pod.keeper.want(desire({"bad": "ft_gone"}))
    await pod.turn()
    await pod.turn()
    assert pod.engine.loras == {}
    assert pod.reason("ft_gone") == "AdapterNotFound"


async def test_an_adapter_that_comes_later_than_its_name(pod: Pod) -> None:
    pod.keeper.want(desire({"late": "ft_late"}))
    await pod.turn()
    assert pod.reason("ft_late") == "AdapterNotFound"
    pod.write("ft_late")
    await pod.turn(10)
    assert pod.keeper.blocked("ft_late") is None


@pytest.mark.parametrize("how", ["template", "rank_pattern", "weights", "folder"])
async def test_no_file_of_an_adapter_ends_the_agent(pod: Pod, how: str) -> None:
    folder = write_adapter(pod.models, "ft_bad", config={"rank_pattern": [1]} if how == "rank_pattern" else None)
    if how == "template":
        (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\xfa")
    if how == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"\3\0\0\0\0\0\0\0[1]")
    if how == "folder":
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.safetensors").mkdir()
    pod.want({"bad": "ft_bad", "good": "ft_b"})
    await pod.turn()
    assert pod.reason("ft_bad") == "AdapterInvalid"
    assert pod.adapter("ft_bad").settled
    assert pod.engine.called("load") == ["ft_b"]
    assert pod.keeper.blocked("ft_b") is None


async def test_a_load_that_is_never_answered_holds_up_no_other(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a dead volume: the engine is up, and that one call hangs."""
    monkeypatch.setattr(engine_module, "LOAD_SECONDS", 0.05)
    pod.engine.hang.add("ft_bad")
    pod.want({"bad": "ft_bad", "good": "ft_b"})
    for _ in range(3):
        await pod.turn(0.5)
    assert pod.keeper.blocked("ft_b") is None
    assert pod.reason("ft_bad") == "LoadFailed"
    assert must_not_answer(pod, "ft_bad")
    for _ in range(5):
        await pod.turn(5)
    assert pod.keeper.ready
    pod.engine.hang.clear()
    await pod.turn(60)
    assert pod.keeper.blocked("ft_bad") is None


async def test_too_many_adapters_are_refused_and_the_others_stay(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(replace(PLAN, max_adapters=2))
    pod.want({"one": "ft_a", "two": "ft_b", "three": "ft_c"})
    await pod.turn()
    assert [pod.reason(name) for name in ("ft_a", "ft_b", "ft_c")] == ["Effective", "Effective", "TooManyAdapters"]
    assert pod.keeper.ready
    pod.want({"two": "ft_b", "three": "ft_c"})
    await pod.turn(10)
    await pod.turn()
    assert set(pod.engine.loras) == {"ft_b", "ft_c"}
    assert pod.keeper.blocked("ft_c") is None


async def test_a_wanted_adapter_is_never_forgotten_for_those_that_were_unloaded(make_pod: Callable[..., Pod]) -> None:
    """A GPU's vLLM keeps what it unloads, up to a number, and reads one that it forgot again: unproven."""
    pod = make_pod(replace(PLAN, max_adapters=4))
    pod.engine.keeps = 4
    for number in range(12):
        pod.want({"idle": {"ft_a": 0, "ft_b": 1}, "rolled": f"ft_{number}"})
        await pod.turn()
        assert pod.reason(f"ft_{number}") == "Effective"
    assert pod.engine.forgotten == []
    assert pod.engine.called("load") == ["ft_a", "ft_b", *(f"ft_{number}" for number in range(12))]
    assert set(pod.engine.called("chat")) == {"ft_a", "ft_b"}, "those that are loaded when another comes"


async def test_while_there_is_room_no_adapter_is_asked_for_anything(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(replace(PLAN, max_adapters=4))
    pod.want({name: name for name in ("ft_a", "ft_b", "ft_c", "ft_d")})
    await pod.turn()
    assert pod.engine.called("chat") == []


async def test_a_load_waits_where_the_wanted_adapters_cannot_be_used(
    make_pod: Callable[..., Pod], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = make_pod(replace(PLAN, max_adapters=2))
    pod.engine.keeps = 2
    for name in ("ft_b", "ft_c"):
        pod.want({"idle": "ft_a", "rolled": name})
        await pod.turn()
    pod.engine.hang.add("/v1/completions")
    monkeypatch.setattr(engine_module, "LOAD_SECONDS", 0.2)
    pod.want({"idle": "ft_a", "rolled": "ft_d"})
    await pod.turn()
    assert "ft_d" not in pod.engine.called("load")
    assert pod.reason("ft_d") == "LoadFailed"
    pod.engine.hang.clear()
    await pod.turn(10)
    assert pod.reason("ft_d") == "Effective"
    assert pod.engine.forgotten == []


async def test_the_spare_slot_is_never_taken(make_pod: Callable[..., Pod]) -> None:
    """vLLM keeps an unloaded adapter in its slot; on the CPU the base would be answered from the last one."""
    pod = make_pod(replace(PLAN, max_adapters=3, max_loads=3))
    pod.want({"one": "ft_a", "two": "ft_b"})
    await pod.turn()
    for name in ("ft_c", "ft_d"):
        pod.want({"one": "ft_a", "two": name})
        await pod.turn()
    assert pod.engine.called("load") == ["ft_a", "ft_b", "ft_c"]
    assert pod.reason("ft_d") == "TooManyAdapters"
    assert "restart the pods" in pod.adapter("ft_d").message
    assert pod.keeper.ready
    pod.want({"two": "ft_d"})
    await pod.turn(10_000)
    await pod.turn(10_000)
    assert pod.engine.loras == {}
    assert pod.reason("ft_d") == "TooManyAdapters", "its place is not free although it is unloaded"
    for restart in (pod.engine.kill, pod.engine.restart):
        await restart()
        await pod.keeper.look()
        if restart == pod.engine.kill:
            await pod.engine.start()
        await pod.turn(1)
        assert pod.keeper.blocked("ft_d") is None, "an engine that starts has all its places"
        for name in ("ft_e", "ft_f", "ft_g"):
            pod.want({"two": name, "one": "ft_d"})
            await pod.turn(1)
        assert pod.reason("ft_g") == "TooManyAdapters"
        pod.want({"one": "ft_d"})


async def test_loads_of_an_earlier_agent_count(make_pod: Callable[..., Pod], tmp_path: Path) -> None:
    plan = replace(PLAN, max_adapters=3, max_loads=4)
    pod = make_pod(plan)
    pod.engine.loras |= {"ft_a": "/elsewhere", "ft_b": "/elsewhere"}
    pod.want({"one": "ft_a"})
    pod.keeper.loads.file = tmp_path / "loads"
    await pod.turn()
    again = make_pod(plan)
    again.keeper.loads.file = tmp_path / "loads"
    again.want({"one": "ft_a", "two": "ft_c"})
    await again.turn()
    assert [again.reason(name) for name in ("ft_a", "ft_c")] == ["Effective", "TooManyAdapters"]
    await pod.engine.restart()
    later = make_pod(plan)
    later.keeper.loads.file = tmp_path / "loads"
    later.want({"one": "ft_a", "two": "ft_c"})
    await later.turn()
    assert [later.reason(name) for name in ("ft_a", "ft_c")] == ["Effective", "Effective"], "a fresh engine"


async def test_a_load_that_is_refused_takes_no_place(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(replace(PLAN, max_adapters=1, max_loads=1))
    pod.engine.refuse["ft_a"] = (500, "no")
    pod.want({"one": "ft_a"})
    for _ in range(4):
        await pod.turn(10)
    pod.engine.refuse.clear()
    await pod.turn(60)
    assert pod.reason("ft_a") == "Effective"


async def test_an_adapter_that_ends_the_engine_is_given_up_and_the_others_served(pod: Pod) -> None:
    pod.engine.deadly.add("ft_deadly")
    pod.want({"good": "ft_a", "bad": "ft_deadly"})
    for _ in range(DEADLY_TIMES):
        await pod.turn(1)
        await pod.keeper.look()
        assert not pod.keeper.engine_up
        assert pod.adapter("ft_a").reason == "EngineDown"
        await pod.engine.start()
    await pod.turn(1)
    assert pod.keeper.blocked("ft_a") is None
    said = pod.adapter("ft_deadly")
    assert (said.reason, said.settled) == ("LoadFailed", True)
    assert f"ended {DEADLY_TIMES} times" in said.message
    assert pod.keeper.ready
    for _ in range(10):
        await pod.turn(600)
    assert pod.engine.called("load").count("ft_deadly") == DEADLY_TIMES
    assert pod.keeper.ready


async def test_an_adapter_that_failed_before_is_found_out_as_well(pod: Pod) -> None:
    """It was refused thrice, so it counts as settled; then its files are changed, and it ends the engine."""
    pod.engine.refuse["ft_deadly"] = (500, "no")
    pod.want({"good": "ft_a", "bad": "ft_deadly"})
    for _ in range(4):
        await pod.turn(10)
    assert pod.adapter("ft_deadly").settled
    pod.engine.refuse.clear()
    pod.engine.deadly.add("ft_deadly")
    for _ in range(DEADLY_TIMES):
        await pod.turn(60)
        await pod.keeper.look()
        assert not pod.keeper.engine_up
        await pod.engine.start()
    await pod.turn(60)
    assert f"ended {DEADLY_TIMES} times" in pod.adapter("ft_deadly").message
    assert pod.keeper.blocked("ft_a") is None


# --- what is wanted changes ------------------------------------------------------------------------------------------


async def test_an_added_adapter_takes_no_readiness_and_is_blocked_until_proven(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.engine.refuse["ft_new"] = (500, "no")
    pod.want({"support": {"ft_a": 1, "ft_new": 1}})
    for _ in range(5):
        assert pod.keeper.ready
        assert pod.keeper.blocked("ft_a") is None
        assert must_not_answer(pod, "ft_new")
        await pod.turn(1)
    assert pod.proofs.asked == ["ft_a"], "what was proven stays so"


async def test_changed_weights_load_and_prove_nothing(pod: Pod) -> None:
    pod.want({"support": {"ft_a": 9, "ft_b": 1}})
    await pod.turn()
    calls = list(pod.engine.calls)
    pod.want({"support": {"ft_a": 0, "ft_b": 1}, "again": "ft_a"})
    await pod.turn(1)
    assert pod.engine.calls == calls
    assert pod.proofs.asked == ["ft_a", "ft_b"]
    assert pod.keeper.blocked("ft_a") is None


async def test_an_unwanted_adapter_is_unloaded_after_its_requests(pod: Pod) -> None:
    pod.want({"support": {"ft_a": 1, "ft_b": 1}})
    await pod.turn()
    pod.keeper.in_flight["ft_a"] = 2
    pod.want({"support": "ft_b"})
    assert must_not_answer(pod, "ft_a"), "no new ones from now on"
    await pod.turn(1)
    assert set(pod.engine.loras) == {"ft_a", "ft_b"}
    pod.keeper.in_flight["ft_a"] = 1
    await pod.turn(UNLOAD_SECONDS / 2)
    assert set(pod.engine.loras) == {"ft_a", "ft_b"}
    del pod.keeper.in_flight["ft_a"]
    await pod.turn(1)
    assert set(pod.engine.loras) == {"ft_b"}
    assert pod.engine.called("unload") == ["ft_a"]


async def test_a_request_without_end_holds_no_adapter_for_ever(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.keeper.in_flight["ft_a"] = 1
    pod.want({"support": "ft_b"})
    await pod.turn(UNLOAD_SECONDS - 1)
    assert "ft_a" in pod.engine.loras
    await pod.turn(2)
    assert set(pod.engine.loras) == {"ft_b"}


async def test_wanted_again_before_it_was_gone(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.keeper.in_flight["ft_a"] = 1
    pod.want({"support": "ft_b"})
    await pod.turn(1)
    pod.want({"support": {"ft_a": 1, "ft_b": 1}})
    assert must_not_answer(pod, "ft_a")
    await pod.turn(1)
    await pod.turn(UNLOAD_SECONDS * 2)
    assert set(pod.engine.loras) == {"ft_a", "ft_b"}
    assert pod.keeper.blocked("ft_a") is None
    assert pod.proofs.asked == ["ft_a", "ft_b", "ft_a"]


async def test_what_is_no_longer_wanted_is_not_loaded_any_more(pod: Pod) -> None:
    """The list changes while a slow adapter before it is proven."""
    pod.want({"support": {"ft_a": 1, "ft_gone": 1}})
    await pod.keeper.look()
    pod.proofs.hold = True
    step = asyncio.create_task(pod.keeper.step())
    await pod.proofs.wait_until_begun()
    pod.want({"support": "ft_a"})
    pod.proofs.release()
    await step
    assert pod.engine.called("load") == ["ft_a"]


async def test_an_adapter_unwanted_while_it_is_loaded_is_unloaded(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.keeper.look()
    pod.proofs.hold = True
    step = asyncio.create_task(pod.keeper.step())
    await pod.proofs.wait_until_begun()
    pod.want({"support": "ft_b"})
    pod.proofs.release()
    await step
    await pod.turn(1)
    await pod.turn(1)
    assert set(pod.engine.loras) == {"ft_b"}
    assert must_not_answer(pod, "ft_a")


async def test_what_an_earlier_agent_loaded_is_loaded_anew_and_strays_go(pod: Pod) -> None:
    pod.engine.loras |= {"ft_a": "/elsewhere", "ft_stray": "/elsewhere"}
    pod.want({"support": "ft_a"})
    await pod.keeper.look()
    assert must_not_answer(pod, "ft_a"), "loaded by nobody knows whom"
    await pod.keeper.step()
    assert pod.engine.loras == {"ft_a": str(pod.models / "ft_a")}
    assert pod.engine.called("unload") == ["ft_stray", "ft_a"]
    assert pod.keeper.blocked("ft_a") is None


async def test_the_same_wish_again_is_no_news(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.keeper.changed.clear()
    pod.want({"support": "ft_a"})
    assert not pod.keeper.changed.is_set()
    pod.want({"support": "ft_b"})
    assert pod.keeper.changed.is_set()


# --- the loops -------------------------------------------------------------------------------------------------------


async def test_the_loops_bring_all_back_by_themselves(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(adapter_module, "FIRST_RETRY_SECONDS", 0.02)
    pod.keeper.clock = time.monotonic
    pod.engine.refuse["ft_bad"] = (400, "no")
    running = asyncio.create_task(pod.keeper.run())
    try:
        pod.want({"support": "ft_a", "bad": "ft_bad"})
        await eventually(lambda: pod.keeper.blocked("ft_a") is None)
        await eventually(lambda: pod.keeper.ready)
        assert pod.engine.called("load").count("ft_bad") == SETTLED_ATTEMPTS
        for _ in range(2):
            await pod.engine.kill()
            await eventually(lambda: not pod.keeper.ready)
            await pod.engine.start()
            await eventually(lambda: pod.keeper.blocked("ft_a") is None)
        pod.want({"support": "ft_b"})
        await eventually(lambda: set(pod.engine.loras) == {"ft_b"})
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
