"""How the operator bears a thousand TuningJobs at once, on a control plane that shares its two cores with it.

No kubelet and no scheduler run: a stand-in ends the checks as a kubelet would, by the pods' status, and the real Job
controller does the rest. The controllers' queue limits are raised (`devcluster up --fast-controllers`): their defaults
of 20 requests a second, not the operator, would be measured otherwise. Lease renewals and Events are not counted.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from devcluster.cluster import Cluster
from tests.support.api_proxy import client_context, server_of
from tests.support.devcluster import own_cluster
from tests.support.operator_process import OperatorProcess
from tests.support.tuning_namespace import tuning_job

pytestmark = [pytest.mark.timeout(1200)]

CHECKED = json.dumps({"ok": True, "reason": "DatasetValid", "message": "1000 rows: all kept"})
TRAINED = {
    "ok": True,
    "reason": "Trained",
    "message": "10 steps",
    "registered": True,
    "adapterPath": "models/m",
    "modelId": "m",
    "heldOutRows": 5,
    "evaluation": {"baseLoss": 3.0, "tunedLoss": 1.0},
}


@pytest.fixture(scope="module")
def bench_cluster() -> Iterator[Cluster]:
    with own_cluster("bench", fast_controllers=True) as cluster:
        for part in ("kubelet", "kube-scheduler", "coredns", "kube-proxy"):
            cluster.end(part)
        yield cluster


@dataclass
class Api:
    """The API server as an admin who asks many things at once."""

    session: aiohttp.ClientSession
    server: str

    async def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        data = None if body is None else json.dumps(body)
        async with self.session.request(method, self.server + path, data=data, headers={"Content-Type": kind}) as reply:
            answer = await reply.json()
            assert reply.status < 300, answer
            return answer

    async def list(self, path: str, selector: str = "") -> list[dict[str, Any]]:
        query = f"?labelSelector={selector}&resourceVersion=0" if selector else "?resourceVersion=0"
        return list((await self.call("GET", path + query))["items"])


@asynccontextmanager
async def api_of(cluster: Cluster) -> AsyncIterator[Api]:
    connector = aiohttp.TCPConnector(ssl=client_context(cluster.kubeconfig), limit=16)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Api(session, server_of(cluster.kubeconfig))


@dataclass
class Figures:
    jobs: int
    first_jobs_seconds: float
    training_jobs_seconds: float
    all_finished_seconds: float
    writes_per_job: float
    memory_mb: float
    cpu_ms_per_job: float
    p95_create_to_job_seconds: float


async def chain(cluster: Cluster, namespace: str, operator: OperatorProcess, number: int) -> Figures:
    """Apply `number` TuningJobs and take them through the chain."""
    jobs, pods = f"/apis/batch/v1/namespaces/{namespace}/jobs", f"/api/v1/namespaces/{namespace}/pods"
    tuning_jobs = f"/apis/tuning.llmtuning.dev/v1alpha1/namespaces/{namespace}/tuningjobs"
    async with api_of(cluster) as api:
        cpu = operator.cpu_seconds()
        seen: dict[str, float] = {}
        watch = asyncio.create_task(_watch(api, jobs, seen))
        applied: dict[str, float] = {}

        async def apply(name: str) -> None:
            await api.call("POST", tuning_jobs, tuning_job(name))
            applied[name] = time.monotonic()

        started = time.monotonic()
        await asyncio.gather(*(apply(f"job-{n}") for n in range(number)))
        await _until(lambda: _count(api, jobs, "check"), number)
        first = time.monotonic() - started
        await asyncio.sleep(1)
        watch.cancel()
        waits = [seen[f"{name}-check"] - at for name, at in applied.items()]
        await _until(lambda: _count(api, pods, "check"), number)
        started = time.monotonic()
        await _end_pods(api, pods, "check", CHECKED)
        await _until(lambda: _count(api, jobs, "train"), number)
        training = time.monotonic() - started
        await _until(lambda: _count(api, pods, "train"), number)
        started = time.monotonic()
        await _end_pods(api, pods, "train", json.dumps(TRAINED))

        async def finished() -> int:
            return sum(tj.get("status", {}).get("phase") == "Succeeded" for tj in await api.list(tuning_jobs))

        await _until(finished, number)
        ended = time.monotonic() - started
    return Figures(
        jobs=number,
        first_jobs_seconds=first,
        training_jobs_seconds=training,
        all_finished_seconds=ended,
        writes_per_job=writes(operator) / number,
        memory_mb=operator.memory_mb(),
        cpu_ms_per_job=(operator.cpu_seconds() - cpu) * 1000 / number,
        p95_create_to_job_seconds=statistics.quantiles(waits, n=20)[-1],
    )


async def _end_pods(api: Api, path: str, role: str, message: str) -> None:
    """As a kubelet does when a container has ended well."""
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}

    async def end(pod: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        status = {
            "phase": "Succeeded",
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": False,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        name = pod["metadata"]["name"]
        await api.call("PATCH", f"{path}/{name}/status", {"status": status}, "application/merge-patch+json")

    await asyncio.gather(*(end(pod) for pod in await api.list(path, f"tuning.llmtuning.dev/role={role}")))


async def _count(api: Api, path: str, role: str) -> int:
    return len(await api.list(path, f"tuning.llmtuning.dev/role={role}"))


async def _until(count: Any, number: int) -> None:
    deadline = time.monotonic() + 300
    while (there := await count()) < number:
        assert time.monotonic() < deadline, f"{there} of {number}"
        await asyncio.sleep(0.5)


async def _watch(api: Api, path: str, seen: dict[str, float]) -> None:
    """Note when each Job is first seen."""
    async with api.session.get(f"{api.server}{path}?watch=true", timeout=aiohttp.ClientTimeout()) as reply:
        async for line in reply.content:
            seen.setdefault(json.loads(line)["object"]["metadata"]["name"], time.monotonic())


def writes(operator: OperatorProcess) -> float:
    """API writes so far; Lease renewals, the certificates and Events are not of the chain."""
    of_chain = r'resource="(?:tuningjobs/status|tuningjobs|jobs)",verb="(?:create|patch|delete)"'
    pattern = rf'tuning_operator_api_requests_total\{{code="2\d\d",{of_chain}\}} (\S+)'
    return sum(float(number) for number in re.findall(pattern, operator.get("metrics")))


def test_a_hundred_and_a_thousand_at_once(bench_cluster: Cluster, tmp_path: Path) -> None:
    results = []
    for number in (100, 1000):
        with bench_cluster.namespace() as namespace:
            operator = OperatorProcess(bench_cluster.kubeconfig, namespace, tmp_path / f"{number}.log")
            operator.start()
            try:
                operator.wait_ready()
                figures = asyncio.run(chain(bench_cluster, namespace, operator, number))
                print(f"\n{figures}")
                results.append(figures)
                if number == 1000:
                    _settled_and_restarted(operator)
            finally:
                operator.end()
    hundred, thousand = results
    print(f"operator's processor time a job, 1,000 against 100: {thousand.cpu_ms_per_job / hundred.cpu_ms_per_job:.2f}")
    print(f"time to the first Jobs a job: {thousand.first_jobs_seconds / hundred.first_jobs_seconds / 10:.2f}")


def _settled_and_restarted(operator: OperatorProcess) -> None:
    before = writes(operator)
    time.sleep(60)
    print(f"writes in 60 s once settled: {writes(operator) - before:.0f}")
    operator.end()
    operator.start()
    operator.wait_ready()
    time.sleep(15)
    print(f"writes in 15 s after a restart with 1,000 finished: {writes(operator):.0f}; {operator.memory_mb():.0f} MB")
