"""The worker on an API server in memory: what it writes, in which order, and what it makes of refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from llm_tuning.api.tuning_job import Progress
from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_objects import (
    CHECKED,
    SETTINGS,
    TRAINED,
    UID,
    Raw,
    after,
    make_job,
    make_pod,
    make_status,
    make_tuning_job,
    make_warning,
)
from tuning_operator.core import warnings as pass_loop
from tuning_operator.core.cache import JOBS, PODS, TUNING_JOBS, Cache
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.errors import AlreadyExists, Conflict, Forbidden, LeaseLost, Unavailable
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.pods.trouble import Reported
from tuning_operator.tuning_job import reconciler as worker
from tuning_operator.tuning_job.reconciler import TuningJobReconciler

KEY = ("team", "faq")


@dataclass
class Bench:
    """A worker whose watches deliver when told to."""

    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.clock)
        self.store = Cache({TUNING_JOBS: self.queue.add})
        self.cluster.now = self.now
        self.worker = TuningJobReconciler(self.cluster, self.store, self.queue, SETTINGS, Metrics(), "me", self.now)  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return after(self.seconds)

    def deliver(self) -> None:
        for kind, events in self.cluster.watch.items():
            while events:
                self.store.apply_event(kind, *events.popleft())

    async def look(self) -> None:
        """All events, then passes as long as one is due."""
        self.deliver()
        self.queue.add(KEY)
        while len(self.queue):
            await self.one_pass()

    async def one_pass(self) -> None:
        key = await self.queue.get()
        try:
            await self.worker.reconcile(key)
        finally:
            self.queue.done(key)

    def start(self, **spec: Any) -> None:
        self.cluster.add(TUNING_JOBS, make_tuning_job(**spec))

    @property
    def status(self) -> Raw:
        return dict((self.cluster.get(TUNING_JOBS, "faq") or {})["status"])

    def condition(self, kind: str) -> tuple[str, str]:
        return next((c["status"], c["reason"]) for c in self.status["conditions"] if c["type"] == kind)

    def message(self, kind: str) -> str:
        return str(next(c["message"] for c in self.status["conditions"] if c["type"] == kind))

    def end_job(self, role: str, result: Raw | None, name: str = "pod") -> None:
        """Its pod has succeeded, and the Job is complete."""
        job = self.cluster.get(JOBS, f"faq-{role}")
        assert job is not None
        if result is not None:
            pod = make_pod(role, phase="Succeeded", result=result, job_uid=job["metadata"]["uid"], ended=self.seconds)
            self.cluster.add(PODS, pod)
        time = timestamp(self.now())
        job["status"] = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": time}]}
        self.cluster.change(JOBS, job)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    for module in (worker, pass_loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.clock))
    return made


async def test_a_new_tuning_job_gets_its_check_and_then_its_status(bench: Bench) -> None:
    bench.start()
    bench.deliver()
    await bench.one_pass()
    assert bench.cluster.writes == ["create faq-check"], "others' Jobs come before this one's status"
    assert len(bench.queue) == 1
    await bench.one_pass()
    assert bench.cluster.writes == ["create faq-check", "status of faq"]
    assert bench.status["phase"] == "Checking"
    await bench.look()
    await bench.look()
    assert len(bench.cluster.writes) == 2, "nothing has changed, so nothing is written"


async def test_its_own_writes_are_known_before_any_watch_tells_of_them(bench: Bench) -> None:
    bench.start()
    await bench.look()
    for events in bench.cluster.watch.values():
        events.clear()
    for _ in range(3):
        await bench.worker.reconcile(KEY)
    assert bench.cluster.writes == ["create faq-check", "status of faq"]


async def test_a_whole_life(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.end_job(CHECK, CHECKED)
    await bench.look()
    bench.end_job(TRAIN, TRAINED)
    await bench.look()
    await bench.look()
    assert bench.cluster.writes == [
        "create faq-check",
        "status of faq",
        "create faq-train",
        "status of faq",
        "event DatasetValid",
        "status of faq",
        "event Trained",
        "event Evaluated",
        "event Succeeded",
    ]
    assert bench.status["progress"]["percent"] == 100


async def test_a_loss_that_was_reported_between_two_writes_is_not_lost(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.worker.report(KEY, Reported(Progress(percent=7, step=1, loss=2.5, last_update_time="t")))
    bench.worker.report(KEY, Reported(Progress(percent=8, step=2, last_update_time="u")))
    bench.seconds += 20
    await bench.look()
    assert (bench.status["progress"]["step"], bench.status["progress"]["loss"]) == (2, 2.5)


async def test_what_the_api_server_gives_back_is_not_written_again(bench: Bench) -> None:
    """It makes 3.0 a 3 and adds defaults; that is no difference."""
    bench.start()
    await bench.look()
    bench.worker.report(KEY, Reported(Progress(percent=7, step=1, loss=2.0, epoch=1.0, last_update_time="t")))
    bench.seconds += 20
    await bench.look()
    assert bench.status["progress"]["loss"] == 2
    writes = len(bench.cluster.writes)
    bench.seconds += 20
    await bench.look()
    assert len(bench.cluster.writes) == writes


async def test_a_job_that_is_there_already_is_taken_for_its_own(bench: Bench) -> None:
    """The answer to the creation was lost with the process, and the watch has not told of it yet."""
    bench.start()
    bench.deliver()
    await bench.worker.reconcile(KEY)
    uid = (bench.cluster.get(JOBS, "faq-check") or {})["metadata"]["uid"]
    bench.store._objects[JOBS].clear()  # as after a restart whose list was older
    bench.cluster.watch[JOBS].clear()
    bench.end_job(CHECK, CHECKED)
    bench.cluster.watch[JOBS].clear()
    with pytest.raises(AlreadyExists):
        await bench.worker.reconcile(KEY)
    await bench.look()
    assert (bench.cluster.get(JOBS, "faq-check") or {})["metadata"]["uid"] == uid
    assert bench.condition("DatasetValid") == ("True", "DatasetValid")


async def test_a_name_that_somebody_has_is_said_and_waited_for(bench: Bench) -> None:
    foreign = {"metadata": {"name": "faq-check", "namespace": "team"}, "spec": {}, "status": {}}
    bench.cluster.add(JOBS, foreign)
    bench.cluster.watch[JOBS].clear()  # it lacks our label: no watch tells of it
    bench.start()
    with pytest.raises(AlreadyExists):
        await bench.look()
    await bench.look()
    assert bench.condition("Stalled") == ("True", "NameTaken")
    writes = list(bench.cluster.writes)
    for _ in range(3):  # once a minute a list, which has none but the operator's own
        items, version = await bench.cluster.list_all(JOBS, None)
        assert bench.store.apply_list(JOBS, items, version, None) == [], "no watch has missed it"
        try:
            await bench.look()
        except AlreadyExists:
            await bench.look()
    assert bench.cluster.writes == writes
    bench.cluster.remove(JOBS, "team", "faq-check")
    bench.cluster.watch[JOBS].clear()
    bench.store.apply_list(JOBS, [], str(10**6), None)
    await bench.look()
    assert bench.condition("Stalled")[0] == "False"
    assert bench.cluster.writes[-2:] == ["create faq-check", "status of faq"]


async def test_never_a_second_trainer_beside_one_that_no_watch_has_told_of(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.end_job(CHECK, CHECKED)
    await bench.look()
    job = bench.cluster.get(JOBS, "faq-train")
    assert job is not None
    pod = make_pod(TRAIN, job_uid=job["metadata"]["uid"])
    bench.cluster.add(PODS, pod)
    bench.cluster.watch[PODS].clear()  # late
    bench.cluster.remove(JOBS, "team", "faq-train")  # by hand, in the background
    await bench.look()
    assert bench.cluster.get(JOBS, "faq-train") is None
    bench.cluster.remove(PODS, "team", pod["metadata"]["name"])
    await bench.look()
    assert bench.cluster.get(JOBS, "faq-train") is not None


async def test_a_pod_whose_end_was_lost_on_the_way_is_read_before_anything_is_concluded(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.end_job(CHECK, CHECKED)
    bench.cluster.watch[PODS].clear()
    await bench.look()
    assert bench.cluster.reads == [], "the watch may only be late"
    bench.seconds += 6
    await bench.look()
    assert bench.cluster.reads[0] == "pods"
    assert bench.message("DatasetValid") == CHECKED["message"]


async def test_a_conflict_makes_the_object_be_read_anew(bench: Bench) -> None:
    bench.start()
    bench.deliver()
    await bench.one_pass()
    raw = bench.cluster.get(TUNING_JOBS, "faq")
    assert raw is not None
    raw["spec"]["suspend"] = True
    raw["metadata"]["generation"] = 2
    bench.cluster.change(TUNING_JOBS, raw)
    with pytest.raises(Conflict):
        await bench.worker.reconcile(KEY)
    await bench.worker.reconcile(KEY)  # before any watch has told of it
    assert bench.status["observedGeneration"] == 2
    assert bench.status["phase"] == "Suspended"


async def test_a_tuning_job_that_is_gone_is_forgotten(bench: Bench) -> None:
    bench.start()
    bench.deliver()
    await bench.one_pass()
    bench.cluster.remove(TUNING_JOBS, "team", "faq")
    await bench.worker.reconcile(KEY)
    assert bench.store.get(TUNING_JOBS, *KEY) is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('create jobs: jobs.batch "faq-check" is forbidden: exceeded quota: few, requested: count/jobs.batch=1',
         "QuotaExceeded"),
        ('create jobs: jobs.batch is forbidden: User "x" cannot create resource "jobs"', "PodCreationFailed"),
    ],
)  # fmt: skip
async def test_a_job_that_the_api_server_refuses_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    async def refuse(kind: str, body: Raw) -> Raw:
        raise Forbidden(said)

    create = bench.cluster.create
    monkeypatch.setattr(bench.cluster, "create", refuse)
    bench.start()
    for _ in range(3):
        with pytest.raises(Forbidden):
            await bench.look()
    assert bench.condition("Stalled") == ("True", reason)
    assert bench.cluster.writes == ["status of faq", f"event {reason}"]
    monkeypatch.setattr(bench.cluster, "create", create)
    await bench.look()
    assert bench.condition("Stalled")[0] == "False"


async def test_a_quota_that_was_lifted_leaves_no_trace(bench: Bench) -> None:
    bench.start()
    await bench.look()
    assert bench.condition("Stalled")[0] == "False"


async def test_an_event_that_cannot_be_written_does_not_hold_up_the_chain(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise Unavailable("no")

    monkeypatch.setattr(bench.cluster, "write_event", refuse)
    bench.start()
    await bench.look()
    bench.end_job(CHECK, CHECKED)
    await bench.look()
    assert bench.condition("DatasetValid")[0] == "True"


# --- progress --------------------------------------------------------------------------------------------------------


def progress(step: int) -> Progress:
    return Progress(percent=step, step=step, last_update_time=f"step {step}")


async def reported(bench: Bench, step: int) -> None:
    bench.worker.report(KEY, Reported(progress(step)))
    await bench.look()


async def test_progress_is_written_at_most_once_in_ten_seconds_and_the_newest_counts(bench: Bench) -> None:
    bench.start()
    await bench.look()
    before = len(bench.cluster.writes)
    for step in range(1, 31):
        bench.seconds += 1
        await reported(bench, step)
    assert len(bench.cluster.writes) - before == 3
    assert bench.status["progress"]["step"] == 30


async def test_progress_alone_is_no_event_and_the_same_progress_no_write(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.seconds += 20
    await reported(bench, 1)
    writes = list(bench.cluster.writes)
    bench.seconds += 20
    await reported(bench, 1)
    assert bench.cluster.writes == writes
    assert not any(write.startswith("event") for write in writes)


async def test_progress_of_a_namesake_is_not_taken_over(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.worker.report(KEY, Reported(progress(90)))
    bench.cluster.remove(TUNING_JOBS, "team", "faq")
    bench.cluster.remove(JOBS, "team", "faq-check")
    bench.start(uid="another")
    bench.seconds += 20
    await bench.look()
    assert "progress" not in bench.status


async def test_a_report_for_a_tuning_job_that_is_not_there_is_dropped(bench: Bench) -> None:
    bench.worker.report(KEY, Reported(progress(1)))
    assert len(bench.queue) == 0


# --- Warning Events --------------------------------------------------------------------------------------------------


async def test_events_are_read_once_for_all_that_are_stuck_within_seconds(bench: Bench) -> None:
    for number in range(20):
        bench.cluster.add(TUNING_JOBS, make_tuning_job(f"j{number}", uid=f"uid-{number}"))
    bench.deliver()
    keys = [("team", f"j{number}") for number in range(20)]
    for key in keys:
        await bench.worker.reconcile(key)
    bench.seconds += 10
    bench.deliver()
    job = bench.cluster.get(JOBS, "j0-check")
    assert job is not None
    bench.cluster.warnings.append(make_warning(job, "FailedCreate", "Error creating: exceeded quota: q"))
    for key in keys:
        await bench.worker.reconcile(key)
    assert bench.cluster.reads == ["events"]
    stalled = (bench.cluster.get(TUNING_JOBS, "j0") or {})["status"]["conditions"][-1]
    assert (stalled["type"], stalled["reason"]) == ("Stalled", "QuotaExceeded")
    bench.seconds += 10
    await bench.worker.reconcile(keys[0])
    assert bench.cluster.reads == ["events", "events"]


async def test_events_that_cannot_be_read_are_asked_for_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Callable[[str], Any] = bench.cluster.list_warnings

    async def fail(namespace: str) -> list[Raw]:
        raise Unavailable("no answer")

    bench.start()
    await bench.look()
    bench.seconds += 10
    monkeypatch.setattr(bench.cluster, "list_warnings", fail)
    with pytest.raises(Unavailable):
        await bench.look()
    monkeypatch.setattr(bench.cluster, "list_warnings", read)
    await bench.look()
    assert bench.cluster.reads == ["events"]


# --- the loop --------------------------------------------------------------------------------------------------------


async def one_pass(bench: Bench) -> None:
    """The loop over one key, ended by the next wait."""
    bench.deliver()
    import asyncio

    task = asyncio.create_task(bench.worker.run())
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_pass_that_fails_is_tried_again_later_and_the_loop_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(kind: str, body: Raw) -> Raw:
        raise Unavailable("the API server is away")

    monkeypatch.setattr(bench.cluster, "create", fail)
    bench.start()
    with caplog.at_level(logging.INFO, logger="tuning_operator"):
        await one_pass(bench)
    assert "the API server is away" in caplog.text
    assert bench.worker.busy_since == {}
    assert bench.queue._due[KEY] == pytest.approx(0.5)


async def test_a_fault_of_the_operator_itself_ends_no_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(worker, "desire", fail)
    bench.start()
    await one_pass(bench)
    assert KEY in bench.queue._due


async def test_without_the_lease_nothing_is_written_and_the_loop_ends(bench: Bench) -> None:
    def lost() -> None:
        raise LeaseLost("not ours")

    bench.cluster.guard = lost
    bench.start()
    bench.deliver()
    with pytest.raises(LeaseLost):
        await bench.worker.run()
    assert bench.cluster.writes == []


async def test_a_finished_tuning_job_goes_when_its_time_is_over(bench: Bench) -> None:
    bench.start(ttlSecondsAfterFinished=30)
    await bench.look()
    bench.end_job(CHECK, CHECKED)
    await bench.look()
    bench.end_job(TRAIN, TRAINED)
    await bench.look()
    await bench.look()
    assert bench.queue._due[KEY] == pytest.approx(30)
    bench.seconds += 31
    await bench.look()
    assert bench.cluster.get(TUNING_JOBS, "faq") is None


async def test_a_job_of_a_namesake_that_was_deleted_is_waited_out(bench: Bench) -> None:
    bench.cluster.add(JOBS, make_job(CHECK, owner="the earlier one"))
    bench.start(uid=UID)
    await bench.look()
    assert bench.cluster.writes == ["status of faq"]
    assert bench.condition("Stalled")[0] == "False"
    bench.cluster.remove(JOBS, "team", "faq-check")
    await bench.look()
    assert "create faq-check" in bench.cluster.writes


async def test_jobs_that_wait_for_each_other_are_told_so(bench: Bench) -> None:
    for name, start in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        model = {"path": "base/tiny", "adapter": {"tuningJob": start}}
        status = make_status(DatasetValid="True/DatasetValid")
        bench.cluster.add(TUNING_JOBS, make_tuning_job(name, uid=name, model=model, status=status))
    bench.deliver()

    async def stalled(name: str) -> str:
        await bench.worker.reconcile(("team", name))
        status = (bench.cluster.get(TUNING_JOBS, name) or {})["status"]
        return next(str(c["message"]) for c in status["conditions"] if c["type"] == "Stalled")

    assert "a -> b -> c -> a" in await stalled("a")
    assert "c -> a -> b -> c" in await stalled("c")
    assert await stalled("d") == "", "it only waits for one that waits"
