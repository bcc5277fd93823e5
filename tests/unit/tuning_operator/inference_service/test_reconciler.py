"""A pass over an InferenceService on an API server in memory: what is written, and that it ends."""

from __future__ import annotations

import copy
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from llm_tuning.agent.contract import Report
from llm_tuning.api.tuning_job import Progress
from llm_tuning.pod.roles import FETCH
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_objects import SETTINGS, START, Raw, make_pod
from tests.support.service_objects import SERVICE_UID, make_service, make_serving_pod, told
from tuning_operator.core.cache import (
    BUDGETS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    JOBS,
    KINDS,
    PODS,
    SERVICES,
    SERVING,
    Cache,
)
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.errors import AlreadyExists, Conflict, Forbidden
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.inference_service.agents import Agents
from tuning_operator.inference_service.reconciler import FIRST_REPORTS_SECONDS, InferenceServiceReconciler
from tuning_operator.pods import reporting
from tuning_operator.pods.trouble import Reported, Trouble

KEY = ("team", "faq")


class Bench:
    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.queue = WorkQueue()
        self.store = Cache({INFERENCE_SERVICES: self.queue.add})
        self.agents = Agents(self.queue.add, hold_seconds=0)
        self.worker = InferenceServiceReconciler(
            self.cluster,  # type: ignore[arg-type]
            self.store,
            self.queue,
            SETTINGS,
            Metrics(),
            now=lambda: START,
            agents=self.agents,
        )
        self.worker.started -= FIRST_REPORTS_SECONDS

    async def settle(self) -> None:
        """Events and passes until there are none."""
        while True:
            for kind in KINDS:
                while self.cluster.watch[kind]:
                    self.store.apply_event(kind, *self.cluster.watch[kind].popleft())
            if not len(self.queue):
                return
            key = await self.queue.get()
            try:
                await self.worker.reconcile(key)
            finally:
                self.queue.done(key)

    def roll_out(self) -> None:
        """The Deployment controller and a kubelet do their work."""
        deployment = self.cluster.get(DEPLOYMENTS, "faq")
        assert deployment is not None
        replicas = deployment["spec"]["replicas"]
        deployment["status"] = {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas}
        self.cluster.change(DEPLOYMENTS, deployment)
        for number in range(replicas):
            self.cluster.add(PODS, make_serving_pod(f"faq-{number}"))

    async def report(self, *adapters: Any) -> None:
        """Each agent does as it is told, and tells."""
        for uid in [pod["metadata"]["uid"] for pod in self.store.pods_of(SERVICE_UID)]:
            desired = await self.agents.exchange(KEY, uid, Report())
            revision = desired.revision if desired is not None else ""
            await self.agents.exchange(KEY, uid, Report(revision=revision, engine_up=True, adapters=adapters))

    @property
    def status(self) -> Raw:
        return dict((self.cluster.get(INFERENCE_SERVICES, "faq") or {}).get("status") or {})

    def ready(self) -> tuple[str, str]:
        return next((c["status"], c["reason"]) for c in self.status["conditions"] if c["type"] == "Ready")


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.fixture
async def serving(bench: Bench) -> Bench:
    """Two replicas, all well."""
    bench.cluster.add(INFERENCE_SERVICES, make_service(replicas=2))
    await bench.settle()
    bench.roll_out()
    await bench.settle()
    await bench.report(told())
    await bench.settle()
    assert bench.ready() == ("True", "Ready")
    bench.cluster.writes.clear()
    return bench


async def test_it_is_made_once_and_told(bench: Bench) -> None:
    bench.cluster.add(INFERENCE_SERVICES, make_service(replicas=2))
    await bench.settle()
    made = [write for write in bench.cluster.writes if write.startswith("create ")]
    assert made == ["create faq-serving", *["create faq"] * 4]
    assert bench.ready() == ("False", "Starting")
    bench.roll_out()
    await bench.settle()
    assert bench.ready() == ("False", "NoReport")
    await bench.report(told())
    await bench.settle()
    assert bench.ready() == ("True", "Ready")
    assert [event["reason"] for event in bench.cluster.events][-2:] == ["Ready", "Effective"]


async def test_a_pass_that_makes_something_writes_no_status(bench: Bench) -> None:
    bench.cluster.add(INFERENCE_SERVICES, make_service(replicas=2))
    for kind in KINDS:
        while bench.cluster.watch[kind]:
            bench.store.apply_event(kind, *bench.cluster.watch[kind].popleft())
    await bench.worker.reconcile(await bench.queue.get())
    assert [write for write in bench.cluster.writes if not write.startswith("create ")] == []
    bench.queue.done(KEY)
    await bench.settle()
    assert bench.cluster.writes.count("status of faq") == 1


async def test_a_settled_one_is_not_written_whatever_is_reported(serving: Bench) -> None:
    for _ in range(5):
        await serving.report(told())
        serving.queue.add(KEY)
        await serving.settle()
    assert serving.cluster.writes == []


async def test_a_restarted_operator_writes_nothing(serving: Bench) -> None:
    again = Bench()
    again.cluster = again.worker.cluster = serving.cluster  # type: ignore[assignment]
    for kind in KINDS:
        items, version = await serving.cluster.list_all(kind, None)
        again.store.apply_list(kind, items, version, None)
    again.worker.started += FIRST_REPORTS_SECONDS  # it has started now
    await again.settle()
    await again.report(told())
    await again.settle()
    assert serving.cluster.writes == []
    assert again.ready() == ("True", "Ready")


async def test_what_was_deleted_is_made_again(serving: Bench) -> None:
    for kind, name in ((CONFIG_MAPS, "faq-serving"), (SERVICES, "faq")):
        serving.cluster.remove(kind, "team", name)
        await serving.settle()
        assert serving.cluster.get(kind, name) is not None
    assert serving.cluster.writes == ["create faq-serving", "create faq"]


async def test_what_was_changed_is_put_right(serving: Bench) -> None:
    deployment = serving.cluster.get(DEPLOYMENTS, "faq")
    assert deployment is not None
    deployment["spec"]["replicas"] = 9
    serving.cluster.change(DEPLOYMENTS, deployment)
    await serving.settle()
    found = serving.cluster.get(DEPLOYMENTS, "faq")
    assert found is not None
    assert found["spec"]["replicas"] == 2
    assert serving.cluster.writes == ["apply faq"]


async def test_one_replica_loses_its_budget(serving: Bench) -> None:
    raw = serving.cluster.get(INFERENCE_SERVICES, "faq")
    assert raw is not None
    raw["spec"]["replicas"] = 1
    raw["metadata"]["generation"] = 2
    serving.cluster.change(INFERENCE_SERVICES, raw)
    await serving.settle()
    assert serving.cluster.get(BUDGETS, "faq") is None
    assert serving.cluster.get(DEPLOYMENTS, "faq") is not None


@pytest.mark.parametrize("kind", SERVING)
async def test_an_object_of_somebody_elses_is_never_touched(bench: Bench, kind: str) -> None:
    name = "faq-serving" if kind == CONFIG_MAPS else "faq"
    theirs = bench.cluster.add(kind, {"metadata": {"name": name, "namespace": "team"}, "spec": {"theirs": 1}})
    bench.cluster.watch[kind].clear()  # without our label no watch tells of it
    bench.cluster.add(INFERENCE_SERVICES, make_service(replicas=2))
    with pytest.raises(AlreadyExists):
        await bench.settle()
    bench.queue.add(KEY)
    await bench.settle()
    assert bench.cluster.get(kind, name) == theirs
    assert bench.ready() == ("False", "NameTaken")


async def test_a_refusal_is_said_and_tried_again(bench: Bench) -> None:
    def refuse(moment: str, write: str) -> None:
        if moment == "before" and write == "create faq":
            raise Forbidden("services is forbidden: exceeded quota: small")

    bench.cluster.hook = refuse
    bench.cluster.add(INFERENCE_SERVICES, make_service())
    with pytest.raises(Forbidden):
        await bench.settle()
    assert bench.ready() == ("False", "QuotaExceeded")
    bench.cluster.hook = lambda moment, write: None
    bench.queue.add(KEY)
    await bench.settle()
    assert bench.cluster.get(DEPLOYMENTS, "faq") is not None


async def test_a_conflict_makes_the_object_be_read_anew(serving: Bench) -> None:
    raw = serving.cluster.get(INFERENCE_SERVICES, "faq")
    assert raw is not None
    raw["metadata"]["labels"] = {"a": "b"}
    serving.cluster.change(INFERENCE_SERVICES, raw)
    serving.cluster.watch[INFERENCE_SERVICES].clear()
    await serving.report(told(effective="False", reason="NoEffect"))
    with pytest.raises(Conflict):
        await serving.settle()
    serving.queue.add(KEY)
    await serving.settle()
    assert serving.ready() == ("False", "NoEffect")


async def test_one_that_is_gone_is_forgotten(serving: Bench) -> None:
    serving.cluster.remove(INFERENCE_SERVICES, "team", "faq")
    await serving.settle()
    assert serving.agents.reports(KEY) == {}
    assert serving.cluster.writes == []
    assert copy.copy(serving.store.sizes())[INFERENCE_SERVICES] == 0


# --- with a base that is fetched -------------------------------------------------------------------------------------

FETCHED = {
    "ok": True,
    "reason": "Fetched",
    "sources": {"model": {"revision": "abc123", "path": "sources/hf/owner/tiny/abc123"}},
}


def end_the_fetch(bench: Bench) -> None:
    """The Job controller and a kubelet do their work."""
    ((_, name),) = bench.cluster.objects[JOBS]
    job = bench.cluster.get(JOBS, name) or {}
    pod = make_pod(FETCH, phase="Succeeded", result=FETCHED, job_uid=job["metadata"]["uid"], owner=SERVICE_UID)
    pod["metadata"]["labels"] = job["spec"]["template"]["metadata"]["labels"]
    bench.cluster.add(PODS, pod)
    ended = {"type": "Complete", "status": "True", "lastTransitionTime": timestamp(START)}
    job["status"] = {"conditions": [ended], "succeeded": 1}
    bench.cluster.change(JOBS, job)


async def test_a_base_by_uri_is_fetched_then_served_and_then_nothing_is_written(bench: Bench) -> None:
    bench.cluster.add(INFERENCE_SERVICES, make_service(model={"uri": "hf://owner/tiny"}))
    await bench.settle()
    assert bench.ready() == ("False", "Fetching")
    assert bench.cluster.get(DEPLOYMENTS, "faq") is None
    end_the_fetch(bench)
    await bench.settle()
    assert bench.status["model"]["revision"] == "abc123"
    assert bench.cluster.get(DEPLOYMENTS, "faq") is not None
    bench.cluster.writes.clear()
    bench.queue.add(KEY)
    await bench.settle()
    assert bench.cluster.writes == []


async def test_the_job_of_a_fetch_may_go_and_another_uri_is_another_job(bench: Bench) -> None:
    bench.cluster.add(INFERENCE_SERVICES, make_service(model={"uri": "hf://owner/tiny"}))
    await bench.settle()
    end_the_fetch(bench)
    await bench.settle()
    ((_, first),) = bench.cluster.objects[JOBS]
    raw = bench.cluster.get(INFERENCE_SERVICES, "faq") or {}
    raw["spec"]["model"] = {"uri": "hf://owner/other"}
    raw["metadata"]["generation"] = 2
    bench.cluster.change(INFERENCE_SERVICES, raw)
    await bench.settle()
    going = {name: "deletionTimestamp" in job["metadata"] for (_, name), job in bench.cluster.objects[JOBS].items()}
    assert going.pop(first) is True
    assert list(going.values()) == [False]
    assert bench.status["model"]["uri"] == "hf://owner/tiny", "that is what is served until the other is whole"


async def test_a_fetch_reports_and_that_is_written_once_in_ten_seconds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: seconds))
    bench.cluster.add(INFERENCE_SERVICES, make_service(model={"uri": "hf://owner/tiny"}))
    await bench.settle()
    bench.cluster.writes.clear()

    async def report(percent: int, waiting: Trouble | None = None) -> None:
        time = timestamp(START + timedelta(seconds=seconds))
        bench.worker.report(KEY, Reported(Progress(percent=percent, last_update_time=time), waiting=waiting))
        bench.queue.add(KEY)
        await bench.settle()

    for percent in range(1, 31):
        seconds += 1
        await report(percent)
    assert len(bench.cluster.writes) == 3
    assert bench.status["progress"]["percent"] == 30
    ((_, name),) = bench.cluster.objects[JOBS]
    job = bench.cluster.get(JOBS, name) or {}
    pod = make_pod(FETCH, job_uid=job["metadata"]["uid"], owner=SERVICE_UID)
    pod["metadata"]["labels"] = job["spec"]["template"]["metadata"]["labels"]
    bench.cluster.add(PODS, pod)
    seconds += 1
    await report(31, Trouble("RateLimited", "asked too often"))
    assert bench.ready() == ("False", "RateLimited"), "what it waits for is of now"
    bench.worker.report(("team", "nobody"), Reported(Progress(percent=1)))


@pytest.mark.parametrize("number", range(9))
async def test_killed_at_any_write_of_a_fetch_it_comes_to_the_same_objects(number: int) -> None:
    async def life(kill_at: int | None) -> dict[str, list[str]]:
        bench = Bench()
        bench.cluster.add(INFERENCE_SERVICES, make_service(model={"uri": "hf://owner/tiny"}))

        def hook(moment: str, write: str) -> None:
            if moment == "before" and len(bench.cluster.writes) == kill_at:
                bench.cluster.hook = lambda moment, write: None
                raise Killed

        bench.cluster.hook = hook
        for act in (None, end_the_fetch):
            if act is not None:
                act(bench)
            try:
                await bench.settle()
            except Killed:
                again = Bench()
                again.cluster = again.worker.cluster = bench.cluster  # type: ignore[assignment]
                for kind in KINDS:
                    bench.cluster.watch[kind].clear()
                    items, version = await bench.cluster.list_all(kind, None)
                    again.store.apply_list(kind, items, version, None)
                bench = again
                await bench.settle()
        return {kind: sorted(name for _, name in bench.cluster.objects[kind]) for kind in KINDS}

    assert await life(number) == await life(None)


class Killed(BaseException):
    """The process is gone at this moment."""
