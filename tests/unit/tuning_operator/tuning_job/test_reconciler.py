"""The worker on an API server in memory: what it writes, in which order, and what it makes of refusals."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.operator_objects import CHECKED, TRAINED, UID, Raw, make_job, make_pod, make_status, make_tuning_job
from tests.support.pass_bench import KEY, Bench
from tuning_operator.core.cache import JOBS, PODS, TUNING_JOBS
from tuning_operator.core.errors import AlreadyExists, Conflict, Forbidden, Unavailable


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
