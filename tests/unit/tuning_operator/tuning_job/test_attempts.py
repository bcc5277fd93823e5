"""One Job of several pods after the other: causes, counts, and never two at once."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from llm_tuning.pod.roles import TRAIN
from tests.support.desires import CHECKED_POD, condition, created, full_condition, message
from tests.support.operator_objects import (
    TRAINED,
    jobs_in,
    make_job,
    make_pod,
)
from tests.support.several_nodes import (
    CRASH,
    FULL,
    LOST,
    REFUSED,
    STOPPED,
    attempts,
    failed,
    job,
    pods,
    seen,
    states,
    there,
    wanted,
)
from tests.support.tuning_world import HANG, NO_ROOM, OK, Faults, World, live
from tuning_operator.core.cache import JOBS, PODS
from tuning_operator.core.constants import LABEL_INDEX
from tuning_operator.core.desired import ObjectRef

SEEDS = int(os.environ.get("SEEDS", "3"))


def test_a_failed_job_is_counted_then_deleted_and_made_again_once_no_pod_is_left() -> None:
    over = {
        "jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=2)],
        "pods": [failed(1, 0, LOST, ended=51), failed(2, 1, CRASH, ended=52)],
    }
    counted = wanted(job(), **over)
    assert counted.delete == []
    assert counted.requeue_after == 0
    assert counted.status is not None
    kept = counted.status["attempts"]
    assert kept == {
        "failed": 1,
        "jobUid": "job-train",
        "reason": "UnexpectedError",
        "message": CRASH["message"],
        "time": "2026-01-02T03:05:15Z",
    }
    assert message(counted, "Stalled") == f"attempt 1 of 4 failed: {CRASH['message']}"

    raw = attempts(job(), **kept)
    deleted = wanted(raw, **over)
    assert deleted.delete == [ObjectRef(JOBS, "faq-train", "job-train")]
    assert deleted.status is not None
    assert deleted.status["attempts"] == kept

    leaving = make_pod(number=2, index=1)
    assert not wanted(raw, pods=[leaving]).create  # its Job is gone already: never two generations
    assert wanted(raw).requeue_after == 10
    assert not wanted(raw).create  # as the Job controller, which waits 10 s after the first failure
    assert created(wanted(raw, seconds=80)) == ["faq-train"]
    at_work = [make_pod(number=n, index=n, job_uid="next", created=10) for n in (0, 1)]
    soon, later = (
        wanted(raw, jobs=[make_job(nodes=2, uid="next")], pods=at_work, seconds=seconds) for seconds in (20, 90)
    )
    assert condition(soon, "Stalled") == ("True", "UnexpectedError")
    assert soon.requeue_after == 51
    assert condition(later, "Stalled") == ("False", "NotStalled")


def test_what_the_cluster_ends_or_somebody_stops_costs_no_retry() -> None:
    evicted = failed(2, 1, STOPPED, disrupted=True)
    for second, first in ((evicted, failed(1, 0, STOPPED)), (failed(2, 1, STOPPED), failed(1, 0, STOPPED))):
        over = {"jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=1)], "pods": [first, second]}
        desired = wanted(job(retries=0), **over)
        assert desired.status is not None
        assert desired.status["attempts"]["failed"] == 0
        assert condition(desired, "Finished")[0] == "False"
        assert "time" not in desired.status["attempts"]
        assert created(wanted(attempts(job(), **desired.status["attempts"]))) == ["faq-train"]  # at once
    over["pods"] = [failed(1, 0, STOPPED), evicted]
    said = message(wanted(job(retries=0), **over), "Stalled")
    assert said.startswith("ended, and goes on: ranks 2-3 on node 1 (faq-train-2) was ended by the cluster: Eviction")


def test_retries_are_used_up_by_one_failed_job_each() -> None:
    over = {
        "jobs": [make_job(nodes=2, uid="third", failed="BackoffLimitExceeded", failures=1)],
        "pods": [failed(1, 0, LOST, job_uid="third", ended=51), failed(2, 1, CRASH, job_uid="third", ended=52)],
    }
    raw = attempts(job(retries=2), failed=2, jobUid="second", reason="UnexpectedError", message="x")
    desired = wanted(raw, **over)
    assert full_condition(desired, "Succeeded") == (
        "False",
        "RetriesExhausted",
        f"the training failed 3 times; last: {CRASH['message']}",
    )
    again = wanted(attempts(job(retries=3), failed=2, jobUid="second"), **over)
    assert condition(again, "Finished")[0] == "False"


def test_bad_input_of_any_pod_is_final_whoever_failed_first() -> None:
    over = {
        "jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=1)],
        "pods": [failed(2, 1, LOST, ended=40), failed(1, 0, REFUSED, ended=50)],
    }
    desired = wanted(job(), **over)
    assert full_condition(desired, "Succeeded") == ("False", "DatasetInvalid", "row 3: no prompt")


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_claim_without_room_costs_no_retry_and_is_asked_again_every_five_minutes(nodes: int) -> None:
    """With one pod the Job has tried it as often as `retries` says; what is on the claim is not lost all the same."""
    raw = job(nodes=nodes, retries=0)
    over: dict[str, Any] = {
        "jobs": [make_job(nodes=nodes, failed="BackoffLimitExceeded", failures=1)],
        "pods": [failed(1, 0, FULL), *([failed(2, 1, LOST)] if nodes == 2 else [])],
    }
    counted = wanted(raw, **over)
    assert condition(counted, "Finished")[0] == "False"
    assert not counted.delete
    assert counted.status is not None
    kept = counted.status["attempts"]
    assert (kept["failed"], kept["reason"]) == (0, "VolumeFull")
    said = message(counted, "Stalled")
    assert FULL["message"] in said
    assert said.endswith("; it is started again every 5 minutes until there is room")
    raw = attempts(raw, **kept)
    assert wanted(raw, **over).delete == [ObjectRef(JOBS, "faq-train", "job-train")]
    waits = wanted(raw, seconds=100)
    assert not waits.create
    assert waits.requeue_after == 70 + 300 - 100
    assert condition(waits, "Stalled") == ("True", "VolumeFull")
    assert created(wanted(raw, seconds=376)) == ["faq-train"]
    again = [make_pod(number=3 + n, index=n, job_uid="next", created=380) for n in range(nodes)]
    later = wanted(raw, jobs=[make_job(nodes=nodes, uid="next")], pods=again, seconds=480)
    assert condition(later, "Stalled") == ("False", "NotStalled")


def test_a_deadline_is_final_be_the_claim_full_or_not() -> None:
    late = {"jobs": [make_job(failed="DeadlineExceeded")], "pods": [failed(1, 0, FULL)]}
    assert condition(wanted(job(nodes=1, activeDeadlineSeconds=60), **late), "Succeeded")[1] == "DeadlineExceeded"


def test_a_deadline_is_final() -> None:
    late = {"jobs": [make_job(nodes=2, failed="DeadlineExceeded")], "pods": [failed(1, 0, STOPPED)]}
    desired = wanted(job(activeDeadlineSeconds=60), **late)
    assert condition(desired, "Succeeded") == ("False", "DeadlineExceeded")


def test_a_pod_that_is_deleted_is_named_with_its_node_whoever_goes_with_it() -> None:
    going = pods(second=make_pod(number=2, index=1, node="gpu-1", deleting=True))
    first = wanted(job(), **going)
    assert states(first) == ["Running", "Deleted"]
    going["jobs"] = [make_job(nodes=2, fails="BackoffLimitExceeded")]
    going["pods"][0] = make_pod(number=1, index=0, node="gpu-0", deleting=True)
    raw = seen(job(), "Running", "Deleted")
    assert states(wanted(raw, **going)) == ["Terminating", "Deleted"]
    said = "ranks 2-3 on node 1 (faq-train-2 on gpu-1) was deleted, and not by this operator"
    assert message(wanted(raw, **going), "Stalled") == said

    ended = {"jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=2)]}
    for left in ([CHECKED_POD], [failed(1, 0, STOPPED)], [failed(1, 0, LOST)]):
        desired = wanted(seen(job(retries=0), "Terminating", "Deleted"), **ended, pods=left)
        assert message(desired, "Stalled") == f"ended, and goes on: {said}"
        assert states(desired) == ["Failed" if left != [CHECKED_POD] else "Missing", "Deleted"]
    evicted = wanted(seen(job(), "Terminating", "EvictionByEvictionAPI"), **ended, pods=[failed(1, 0, STOPPED)])
    assert message(evicted, "Stalled").endswith(
        "(faq-train-2 on gpu-1) was ended by the cluster: EvictionByEvictionAPI"
    )
    crashed = wanted(seen(job(), "Terminating", "Running"), **ended, pods=[failed(2, 1, CRASH)])
    assert message(crashed, "Stalled") == f"attempt 1 of 4 failed: {CRASH['message']}"


@pytest.mark.parametrize(("failure", "state"), [(49, "Terminating"), (50, "Terminating"), (51, "Deleted")])
def test_the_controller_deletes_the_others_of_a_failed_pod_before_its_job_says_so(failure: float, state: str) -> None:
    """As on a cluster whose network is cut: both pods fail, one of them a moment earlier."""
    cut = pods(failed(1, 0, LOST, ended=failure), make_pod(number=2, index=1, node="gpu-1", deleting=True, ended=50))
    observed = seen(job(), "Running", "Running")
    assert states(wanted(observed, **cut)) == ["Failed", state]
    cut["jobs"] = [make_job(nodes=2, failed="BackoffLimitExceeded", failures=1)]
    said = message(wanted(seen(job(), "Failed", state), **cut), "Stalled")
    deleted = "ranks 2-3 on node 1 (faq-train-2 on gpu-1) was deleted, and not by this operator"
    assert (said == f"ended, and goes on: {deleted}") == (state == "Deleted")
    assert (LOST["message"] in said) == (state != "Deleted")


def test_a_pod_that_is_gone_at_once_was_deleted_while_its_job_is_well() -> None:
    there = {"jobs": [make_job(nodes=2)], "pods": [make_pod(number=1, index=0)]}
    assert states(wanted(seen(job(), "Running", "Running"), **there)) == ["Running", "Deleted"]
    there["jobs"] = [make_job(nodes=2, fails="BackoffLimitExceeded")]
    assert states(wanted(seen(job(), "Running", "Running"), **there)) == ["Running", "Missing"]


def test_a_job_whose_pods_nobody_saw_says_so() -> None:
    gone = {"jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=2)], "pods": [CHECKED_POD]}
    said = "ended, and goes on: the training failed (BackoffLimitExceeded), and no pod of it is left to tell why"
    assert message(wanted(job(), **gone), "Stalled") == said
    both = "(faq-train-1 on gpu-0) or ranks 2-3 on node 1 (faq-train-2 on gpu-1) was deleted, and not by this operator"
    assert message(wanted(seen(job(), "Running", "Running"), **gone), "Stalled").endswith(both)


def test_the_next_job_has_states_of_its_own() -> None:
    raw = seen(job(), "Running", "Deleted")
    fresh = pods(first=make_pod(number=3, index=0), second=make_pod(number=4, index=1))
    assert states(wanted(raw, **fresh)) == ["Running", "Running"]
    assert "nodes" not in (wanted(attempts(raw, failed=0, message="x", reason="NodeLost")).status or {"nodes": 1})


def test_a_node_that_is_gone_is_named_while_kubernetes_waits_for_its_pod() -> None:
    """The pods that are left say so in half a minute; the Job controller waits for a kubelet that says nothing."""
    lost = {
        "ok": False,
        "reason": "NodeLost",
        "message": "ranks 2 to 3 of 4 on node 1 (faq-train-1.faq-train) was not heard of for 30 s: its pod was ended",
    }
    over = {
        "jobs": [make_job(nodes=2, fails="BackoffLimitExceeded", failures=1)],
        "pods": [
            failed(1, 0, lost, ended=59, node="gpu-0"),
            make_pod(number=2, index=1, node="gpu-1", deleting=True, ended=60),
        ],
    }
    raw = seen(job(), "Running", "Running")
    soon, later = wanted(raw, **over), wanted(raw, **over, seconds=181)
    for desired in (soon, later):
        assert condition(desired, "Stalled") == ("True", "NodeLost")
        assert message(desired, "Stalled").startswith(f"{lost['message']} (faq-train-2 on gpu-1)")
        assert not desired.delete
    assert soon.requeue_after is not None
    assert "waits for the end of pod faq-train-2 on gpu-1, which Kubernetes does not confirm" in message(
        later, "Stalled"
    )


def test_what_is_published_counts_though_a_pod_fails_after_it() -> None:
    over = {
        "jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=1)],
        "pods": [make_pod(number=1, index=0, phase="Succeeded", result=TRAINED), failed(2, 1, LOST)],
    }
    assert condition(wanted(job(retries=0), **over), "Succeeded") == ("True", "Succeeded")
    over["pods"][0] = make_pod(number=1, index=0, phase="Succeeded")
    assert condition(wanted(job(), **over), "Succeeded")[0] == "Unknown"


def test_out_of_memory_stays_the_reason_when_retries_are_used_up() -> None:
    over = {
        "jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=1)],
        "pods": [failed(1, 0, LOST), make_pod(number=2, index=1, phase="Failed", exit_code=137, reason="OOMKilled")],
    }
    desired = wanted(job(retries=0), **over)
    assert condition(desired, "Succeeded") == ("False", "OutOfMemory")
    assert message(desired, "Succeeded").startswith(
        "the training failed: ranks 2-3 on node 1 (faq-train-2): the trainer"
    )


def test_a_message_names_no_log_that_goes_with_the_job() -> None:
    over = {
        "jobs": [make_job(nodes=2, failed="BackoffLimitExceeded", failures=1)],
        "pods": [failed(1, 0, LOST), make_pod(number=2, index=1, phase="Failed", exit_code=137)],
    }
    assert "kubectl logs" not in message(wanted(job(), **over), "Stalled")
    assert message(wanted(job(retries=0), **over), "Succeeded").endswith("see `kubectl logs faq-train-2`")


def test_a_job_of_one_pod_that_an_older_operator_made_goes_on_as_one() -> None:
    alone = {"jobs": [make_job()], "pods": [make_pod(phase="Failed", exit_code=1, result=CRASH), make_pod(number=2)]}
    desired = wanted(job(), **alone, seconds=20)
    assert not desired.delete
    assert "nodes" not in (desired.status or {"nodes": 1})
    assert message(desired, "Stalled").startswith("attempt 1 of 4 failed: ")


def test_a_namesakes_service_and_policy_are_waited_for_in_silence() -> None:
    raw = job()
    for kind in ("headless", "policies"):
        found = there(raw)
        other = found[kind] if kind == "headless" else found[kind][0]
        other["metadata"]["ownerReferences"][0] |= {"uid": "namesake", "name": "faq"}
        desired = wanted(raw, **{kind: other if kind == "headless" else [other]})
        assert condition(desired, "Stalled") == ("False", "NotStalled")
        assert not jobs_in(desired)


@pytest.mark.parametrize("index", ["0", "1"])
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_pod_that_is_deleted_is_the_one_that_is_named_when_all_are_gone(index: str, seed: int) -> None:
    world, deleted = World(random.Random(seed), {TRAIN: [*[HANG] * 100, OK]}), list[str]()

    def act(world: World, number: int) -> None:
        running = [pod for pod in world.all(PODS) if pod["metadata"]["labels"].get(LABEL_INDEX) == index]
        if not deleted and running and number > 30:
            deleted.append(running[0]["metadata"]["name"])
            world.delete_pod(running[0])

    await live(world, Faults(), act=act, spec={"resources": {"gpus": 0, "nodes": 2}, "retries": 0})
    said = world.end()["status"]["attempts"]
    assert (said["failed"], said["message"]) == (
        0,
        f"rank {index} on node {index} ({deleted[0]}) was deleted, and not by this operator",
    )


PLANS: dict[str, tuple[dict[str, list[str]], str]] = {
    "well": ({}, "Succeeded"),
    "tries again": ({TRAIN: ["75", "1", OK]}, "Succeeded"),
    "refuses": ({TRAIN: ["75", "64"]}, "DatasetInvalid"),
    "never works": ({TRAIN: ["1"]}, "RetriesExhausted"),
    "waits for room": ({TRAIN: ["75", *[NO_ROOM] * 4, OK]}, "Succeeded"),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("faulty", [False, True])
async def test_whatever_happens_to_the_operator_no_two_generations_live_and_the_end_is_the_plans(
    plan: str, seed: int, faulty: bool
) -> None:
    ends, reason = PLANS[plan]
    world = World(random.Random(seed), ends)
    trouble = Faults(kill=0.1, lag=0.5, lose=0.05, double=0.2, interleave=0.2) if faulty else Faults()
    await live(world, trouble, spec={"resources": {"gpus": 0, "nodes": 2}, "retries": 3})
    conditions = {kind: why for kind, _, why, _ in world.end()["conditions"]}
    assert conditions["Succeeded"] == reason
