"""Reports in, what is wanted out: held back until it is news."""

from __future__ import annotations

import asyncio
import time

import pytest

from llm_tuning.agent.contract import DesiredRoute, DesiredRoutes, DesiredTarget, Report
from tests.support.service_objects import told
from tuning_operator.core.constants import STALE_REPORT_SECONDS
from tuning_operator.inference_service.agents import Agents

KEY = ("team", "faq")
WANTED = DesiredRoutes(routes=(DesiredRoute(name="support", targets=(DesiredTarget(model_id="ft_a"),)),))
OTHER = DesiredRoutes(routes=(DesiredRoute(name="other", targets=(DesiredTarget(model_id="ft_b"),)),))


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.changes = 0
        self.agents = Agents(self._changed, clock=lambda: self.now, hold_seconds=0.05)

    def _changed(self, key: tuple[str, str]) -> None:
        assert key == KEY
        self.changes += 1


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_an_agent_that_knows_nothing_is_told_at_once(bench: Bench) -> None:
    bench.agents.publish(KEY, WANTED)
    assert await bench.agents.exchange(KEY, "uid-1", Report()) == WANTED


async def test_the_answer_is_held_back_while_nothing_changes(bench: Bench) -> None:
    bench.agents.publish(KEY, WANTED)
    began = time.monotonic()
    assert await bench.agents.exchange(KEY, "uid-1", Report(revision=WANTED.revision)) is None
    assert time.monotonic() - began >= 0.05


async def test_all_that_wait_are_told_of_a_change(bench: Bench) -> None:
    bench.agents.hold_seconds = 30
    bench.agents.publish(KEY, WANTED)
    waiting = [
        asyncio.create_task(bench.agents.exchange(KEY, f"uid-{n}", Report(revision=WANTED.revision))) for n in range(3)
    ]
    await asyncio.sleep(0.01)
    bench.agents.publish(KEY, WANTED)
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting), "the same again is no news"
    bench.agents.publish(KEY, OTHER)
    async with asyncio.timeout(1):
        assert await asyncio.gather(*waiting) == [OTHER] * 3


async def test_before_the_first_pass_an_agent_waits(bench: Bench) -> None:
    bench.agents.hold_seconds = 30
    waiting = asyncio.create_task(bench.agents.exchange(KEY, "uid-1", Report()))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    bench.agents.publish(KEY, WANTED)
    async with asyncio.timeout(1):
        assert await waiting == WANTED


async def test_only_news_has_the_service_looked_at(bench: Bench) -> None:
    bench.agents.publish(KEY, WANTED)
    for expected, report in [
        (1, Report(revision=WANTED.revision)),
        (1, Report(revision=WANTED.revision)),
        (2, Report(revision=WANTED.revision, adapters=(told(),))),
        (2, Report(revision=WANTED.revision, adapters=(told(),))),
    ]:
        await bench.agents.exchange(KEY, "uid-1", report)
        assert bench.changes == expected


async def test_what_was_told_long_ago_counts_no_more_and_its_return_is_news(bench: Bench) -> None:
    await bench.agents.exchange(KEY, "uid-1", Report(engine_up=True))
    assert bench.agents.reports(KEY).keys() == {"uid-1"}
    bench.now = STALE_REPORT_SECONDS + 1
    assert bench.agents.reports(KEY) == {}
    changes = bench.changes
    await bench.agents.exchange(KEY, "uid-1", Report(engine_up=True))
    assert bench.changes == changes + 1


async def test_reports_of_pods_that_are_gone_are_forgotten(bench: Bench) -> None:
    for uid in ("uid-1", "uid-2"):
        await bench.agents.exchange(KEY, uid, Report())
    bench.agents.keep_only(KEY, {"uid-2"})
    assert bench.agents.reports(KEY).keys() == {"uid-2"}
    bench.agents.forget(KEY)
    assert bench.agents.reports(KEY) == {}
