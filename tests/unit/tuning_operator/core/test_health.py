"""What the kubelet and Prometheus are answered, over real HTTP."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.operator_objects import make_tuning_job
from tuning_operator.core.cache import TUNING_JOBS, Cache, Key
from tuning_operator.core.health import HANG_SECONDS, Health, HealthServer
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue

BUSY: dict[Key, float] = {}


@pytest.fixture
def health() -> Health:
    BUSY.clear()
    return Health(lambda: BUSY)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def url(health: Health, metrics: Metrics) -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = HealthServer(health, metrics.registry, "127.0.0.1", port)
    await server.start()
    yield f"http://127.0.0.1:{port}"
    await server.close()


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        return reply.status, await reply.text()


async def test_it_lives_and_is_ready_once_it_is(health: Health, url: str) -> None:
    assert await get(f"{url}/healthz") == (200, "ok")
    assert await get(f"{url}/readyz") == (503, "waiting")
    health.ready = True
    assert await get(f"{url}/readyz") == (200, "ok")


async def test_a_stale_watch_calls_for_a_restart(health: Health, url: str) -> None:
    health.stale_watch = "the watch of pods has delivered nothing for 90 s"
    assert await get(f"{url}/healthz") == (500, "the watch of pods has delivered nothing for 90 s")


def test_a_pass_that_hangs_calls_for_a_restart_and_a_slow_one_does_not(health: Health) -> None:
    BUSY["team", "slow"] = time.monotonic() - HANG_SECONDS + 30
    assert health.problem() is None
    BUSY["team", "faq"] = time.monotonic() - HANG_SECONDS - 30
    problem = health.problem()
    assert problem is not None
    assert problem.startswith("the reconcile of team/faq hangs for 15")


async def test_metrics(metrics: Metrics, url: str) -> None:
    cache, queue = Cache(), WorkQueue(metrics=metrics.queue("tuningjob"))
    metrics.watch(cache, {"tuningjob": queue, "inferenceservice": WorkQueue()})
    metrics.count_request("create", "jobs", 201)
    metrics.count_request("create", "jobs", 0)
    metrics.count_report(401)
    queue.add(("team", "faq"))
    cache.put(TUNING_JOBS, make_tuning_job(status={"phase": "Training"}))
    cache.put(TUNING_JOBS, make_tuning_job("new", uid="new"))
    status, text = await get(f"{url}/metrics")
    assert status == 200
    for line in (
        'tuning_operator_api_requests_total{code="201",resource="jobs",verb="create"} 1.0',
        'tuning_operator_api_requests_total{code="0",resource="jobs",verb="create"} 1.0',
        'tuning_operator_progress_reports_total{code="401"} 1.0',
        'workqueue_depth{name="tuningjob"} 1.0',
        'workqueue_depth{name="inferenceservice"} 0.0',
        'workqueue_adds_total{name="tuningjob"} 1.0',
        'tuning_jobs{phase="Training"} 1.0',
        'tuning_jobs{phase="Pending"} 1.0',
    ):
        assert line in text.splitlines()
