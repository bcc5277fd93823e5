"""What is loaded is proven before it answers, and a proof counts only for the engine that it was made on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llm_tuning.agent import keeper as keeper_module
from llm_tuning.agent.adapter import VERDICTS
from llm_tuning.agent.engine_life import DEADLY_TIMES
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.proof.judge import Verdict
from tests.unit.llm_tuning.agent.conftest import Pod, eventually, must_not_answer

NOT_THERE = TryAgain("ServerSilent", "no answer in time")


async def test_an_adapter_is_blocked_until_it_is_proven(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    assert pod.keeper.blocked("ft_a") == "the engine is down: it is starting"
    await pod.keeper.look()
    assert pod.keeper.blocked("ft_a") == "Loading: it is about to be loaded"
    pod.proofs.hold = True
    step = asyncio.create_task(pod.keeper.step())
    await pod.proofs.wait_until_begun()
    assert "ft_a" in pod.engine.loras
    assert pod.keeper.blocked("ft_a") == "Proving: loaded, and being proven"
    assert not pod.keeper.ready
    pod.proofs.release()
    await step
    assert pod.keeper.blocked("ft_a") is None
    assert pod.keeper.ready


@pytest.mark.parametrize(
    ("verdict", "effective", "reason", "answers"),
    [
        (Verdict.EFFECTIVE, "True", "Effective", True),
        (Verdict.NO_EFFECT, "False", "NoEffect", False),
        (Verdict.DIFFERENT, "False", "Different", False),
        (Verdict.TOO_SMALL_TO_TELL, "Unknown", "TooSmallToTell", True),
        (Verdict.CANNOT_BE_PROVEN, "Unknown", "CannotBeProven", True),
    ],
)
async def test_what_a_verdict_means(pod: Pod, verdict: Verdict, effective: str, reason: str, answers: bool) -> None:
    pod.proofs.verdicts["ft_bad"] = verdict
    pod.want({"support": "ft_bad", "other": "ft_b"})
    await pod.turn()
    said = pod.adapter("ft_bad")
    assert (said.effective, said.reason, said.settled) == (effective, reason, True)
    assert pod.keeper.blocked("ft_bad") == (None if answers else f"{reason}: ft_bad is {verdict}")
    assert pod.keeper.blocked("ft_b") is None
    assert pod.keeper.ready, "settled, whatever came of it"
    await pod.turn(1000)
    assert pod.proofs.asked.count("ft_bad") == 1, "a verdict is a verdict"


def test_every_verdict_has_a_meaning() -> None:
    assert set(VERDICTS) == set(Verdict)


async def test_the_real_proof_asks_the_engine(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod()
    pod.keeper.prove = None
    pod.want({"support": "ft_a"})
    await pod.turn()
    assert pod.reason("ft_a") == "CannotBeProven"
    assert "parity.json" in pod.adapter("ft_a").message


@pytest.mark.parametrize("fault", [NOT_THERE, InputError("not served"), KeyError("surprise")], ids=repr)
async def test_a_proof_that_fails_is_tried_again_without_another_load(pod: Pod, fault: Exception) -> None:
    pod.proofs.verdicts["ft_bad"] = fault
    pod.want({"bad": "ft_bad", "good": "ft_b"})
    await pod.turn()
    said = pod.adapter("ft_bad")
    assert (said.loaded, said.reason, said.settled, said.effective) == (True, "Proving", False, "Unknown")
    assert "could not be proven yet" in said.message
    assert must_not_answer(pod, "ft_bad")
    assert pod.keeper.blocked("ft_b") is None
    await pod.turn(1)
    await pod.turn(2)
    assert pod.keeper.ready, "it no longer holds up the pod"
    assert must_not_answer(pod, "ft_bad"), "and still must not answer"
    del pod.proofs.verdicts["ft_bad"]
    await pod.turn(4)
    assert pod.keeper.blocked("ft_bad") is None
    assert pod.engine.called("load") == ["ft_bad", "ft_b"]


async def test_an_adapter_that_was_proven_is_not_blamed_for_a_later_end(pod: Pod) -> None:
    pod.want({"good": "ft_a"})
    for _ in range(DEADLY_TIMES + 2):
        await pod.turn(1)
        assert pod.keeper.blocked("ft_a") is None
        await pod.engine.kill()
        await pod.keeper.look()
        await pod.engine.start()
    await pod.turn(1)
    assert pod.keeper.blocked("ft_a") is None


async def test_readiness_is_lost_with_the_engine_and_regained_with_every_adapter_proven_anew(pod: Pod) -> None:
    pod.want({"support": {"ft_a": 1, "ft_b": 1}})
    await pod.turn()
    assert pod.keeper.ready
    pod.keeper.changed.clear()
    await pod.engine.kill()
    await pod.keeper.look()
    assert not pod.keeper.ready
    assert pod.keeper.changed.is_set()
    assert str(pod.keeper.blocked("ft_a")).startswith("the engine is down: it does not answer")
    report = pod.keeper.report()
    assert not report.engine_up
    assert {(a.loaded, a.effective, a.settled, a.reason) for a in report.adapters} == {
        (False, "Unknown", False, "EngineDown")
    }
    await pod.keeper.step()
    await pod.engine.start()
    await pod.keeper.look()
    assert must_not_answer(pod, "ft_a"), "up, but nothing is loaded"
    assert not pod.keeper.ready
    await pod.keeper.step()
    assert pod.engine.called("load") == ["ft_a", "ft_b"] * 2
    assert pod.proofs.asked == ["ft_a", "ft_b"] * 2
    assert pod.keeper.ready
    assert pod.keeper.blocked("ft_a") is None


async def test_a_proof_on_an_engine_that_restarted_meanwhile_is_void(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.keeper.look()
    pod.proofs.hold = True
    step = asyncio.create_task(pod.keeper.step())
    await pod.proofs.wait_until_begun()
    await pod.engine.kill()
    await pod.keeper.look()
    await pod.engine.start()
    await pod.keeper.look()
    pod.proofs.release()
    await step
    assert must_not_answer(pod, "ft_a")
    assert pod.reason("ft_a") != "Effective"
    pod.proofs.hold = False
    await pod.turn(1)
    assert pod.proofs.asked == ["ft_a", "ft_a"]
    assert pod.keeper.blocked("ft_a") is None


async def in_the_middle_of_a_proof(pod: Pod, verdict: Verdict | Exception) -> asyncio.Task[Any]:
    """The step that proves ft_a; it goes on with `pod.proofs.release()`."""
    pod.want({"support": "ft_a"})
    await pod.keeper.look()
    pod.proofs.hold = True
    pod.proofs.verdicts["ft_a"] = verdict
    step: asyncio.Task[Any] = asyncio.create_task(pod.keeper.step())
    await pod.proofs.wait_until_begun()
    return step


@pytest.mark.parametrize("verdict", [Verdict.EFFECTIVE, Verdict.DIFFERENT, NOT_THERE], ids=str)
async def test_a_proof_is_void_also_where_no_look_saw_the_restart(pod: Pod, verdict: Verdict | Exception) -> None:
    """The second half of the numbers is of an engine without the adapter."""
    step = await in_the_middle_of_a_proof(pod, verdict)
    await pod.engine.restart()
    pod.proofs.release()
    await step
    assert must_not_answer(pod, "ft_a")
    assert pod.reason("ft_a") == "Loading"
    assert not pod.adapter("ft_a").settled


@pytest.mark.parametrize("verdict", [Verdict.NO_EFFECT, NOT_THERE], ids=str)
async def test_a_proof_that_ends_after_the_engine_says_nothing(pod: Pod, verdict: Verdict | Exception) -> None:
    step = await in_the_middle_of_a_proof(pod, verdict)
    await pod.engine.kill()
    await pod.keeper.look()
    pod.proofs.release()
    await step
    assert pod.reason("ft_a") == "EngineDown"
    assert pod.keeper._adapters["ft_a"].attempts == 0


async def test_a_slow_proof_hides_no_end_of_the_engine(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_SECONDS", 0.02)
    pod.want({"support": "ft_a"})
    running = asyncio.create_task(pod.keeper.run())
    try:
        await eventually(lambda: pod.keeper.blocked("ft_a") is None)
        pod.proofs.hold = True
        pod.want({"support": {"ft_a": 1, "ft_slow": 1}})
        await eventually(lambda: pod.proofs.asked[-1] == "ft_slow")
        await pod.engine.kill()
        await eventually(lambda: must_not_answer(pod, "ft_a"))
    finally:
        pod.proofs.release()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
