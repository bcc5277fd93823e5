"""The agent beside an engine that is killed, and files that change under it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter

import pytest

from tests.engine.test_agent import ROUTES, WEIGHTS, ask, clients, files, pod
from tests.support.serving import BASE, ServedFiles
from tests.support.serving_pod import ServingPod

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

__all__ = ["files", "pod"]  # fixtures of the tests below


@pytest.mark.parametrize("part", ["the engine's core", "all of vLLM"])
async def test_an_engine_killed_answers_nothing_wrong_and_comes_back(
    pod: ServingPod, files: ServedFiles, part: str
) -> None:
    pod.want(ROUTES)
    await pod.until(pod.settled)
    async with clients(pod, files, {"a": {"ft_a"}, "b": {"ft_b"}, BASE: {BASE}}, pause=0.005) as crowd:
        await pod.until(lambda: min(crowd.good[name] for name in ("ft_a", "ft_b", BASE)) > 20)
        before, killed = Counter(crowd.good), time.monotonic()
        if part == "all of vLLM":
            pod.engine.kill()
        else:
            pod.engine.kill_core()
        await pod.until(lambda: not pod.keeper.engine_up, seconds=60)
        assert not pod.keeper.ready
        seen = time.monotonic()
        await pod.until(pod.engine.ended, seconds=60)
        ended = time.monotonic()
        await asyncio.to_thread(pod.engine.reap)
        pod.engine.start()
        await pod.until(lambda: pod.keeper.engine_up, seconds=300)
        up = time.monotonic()
        await pod.until(lambda: pod.keeper.ready)
        ready = time.monotonic()
        await pod.until(lambda: min(crowd.last_good.get(route, 0) for route in ("a", "b")) > up)
        again = time.monotonic()
        await asyncio.sleep(1)
        print(
            f"killed {part}: vLLM ended after {ended - killed:.1f} s, not ready {seen - killed:.2f} s after the kill, "
            f"engine up after {up - killed:.1f} s, ready {ready - up:.2f} s all routes answer {again - up:.2f} s "
            f"after it; 200s by X-Model-Id, each with the right content: {crowd.counts()}"
        )
    assert not crowd.wrong
    for name in ("ft_a", "ft_b", BASE):
        assert crowd.good[name] > before[name]


async def test_what_was_changed_under_a_running_engine_is_found_when_it_starts_again(
    pod: ServingPod, files: ServedFiles
) -> None:
    """vLLM reads weights and template when it starts: an adapter proven before answers nothing of the new ones."""
    weights = files.folder / "models/ft_b" / WEIGHTS
    kept = weights.read_bytes()
    shutil.copy(files.folder / "models/ft_a" / WEIGHTS, weights)
    async with clients(pod, files, {"a": {"ft_a"}, "b": {"ft_b"}, BASE: {BASE}}, pause=0.005) as crowd:
        await asyncio.sleep(1)
        assert crowd.good["ft_b"] > 0, "the engine keeps what it has loaded"
        pod.engine.kill()
        await pod.until(lambda: not pod.keeper.engine_up, seconds=10)
        await asyncio.to_thread(pod.engine.reap)
        pod.engine.start()
        await pod.until(lambda: pod.keeper.ready, seconds=300)
        assert pod.adapter("ft_b").reason == "Different"
        answer = await ask(pod, "b")
        print(f"weights changed under the engine: {answer.status} {answer.error}")
        assert answer.status == 503
        await asyncio.sleep(1)
    assert not crowd.wrong
    weights.write_bytes(kept)
