"""What ends a training of two pods on a real cluster: what is said of it, how soon, and that the next start goes on.

Each ends with the adapter of a training that nothing disturbed, to the byte.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.nodes_on_a_cluster import PLENTY, SMALL, Orders, Training, adapter_hash, rank_faults
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, tuning_namespace, wait_until
from tuning_operator.pods.observed import read_time

pytestmark = [pytest.mark.timeout(1800)]

A_MINUTE = 60.0
SECONDS = 600.0
"""For a training of two pods on a machine that others use, too."""
SPEC: dict[str, Any] = {
    "training": {**SMALL, "maxSteps": 200, "saveSteps": 5},
    "resources": {**PLENTY, "nodes": 2},
}


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    """The chart names the network interface, which is what the pods have anyway; GPUs that are asked for may lack."""
    values = {"nodes.networkInterface": "eth0", "allowCPUFallback": "true"}
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE, values=values) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def orders(space: TuningNamespace) -> Iterator[Orders]:
    with rank_faults(space) as orders:
        yield orders


@pytest.fixture(scope="module")
def undisturbed(space: TuningNamespace) -> str:
    """The adapter of a training of two pods that nothing disturbed."""
    training = begin(space, "plain")
    (container,) = (space.get("job", "plain-train") or {})["spec"]["template"]["spec"]["containers"]
    assert {"name": "GLOO_SOCKET_IFNAME", "value": "eth0"} in container["env"]
    return finish(training)


def begin(space: TuningNamespace, name: str, **spec: Any) -> Training:
    training = Training(space, name)
    space.apply(tuning_job(name, **{**SPEC, "retries": 3, **spec}))
    wait_until(lambda: bool(training.job()), 120, lambda: f"its Job; has {training.status}")
    return training


def finish(training: Training) -> str:
    """The hash of its adapter."""
    space, name = training.space, training.name
    job = space.wait(name, "Finished", seconds=SECONDS)
    assert space.conditions(name)["Succeeded"]["status"] == "True", job["status"]
    return adapter_hash(space, name)


def attempt_ends(training: Training, *, failed: int, message: str, seconds: float = SECONDS) -> float:
    """Wait until the attempt is counted; returns when that was, in Unix time."""

    def is_counted() -> bool:
        training.pods()
        attempts = training.status.get("attempts") or {}
        return attempts.get("failed") == failed and attempts.get("jobUid") == training.jobs[-1]

    wait_until(is_counted, seconds, lambda: f"attempt {failed}; has {training.status}")
    now = time.time()
    attempts = training.status["attempts"]
    print(f"{training.name}: {attempts['reason']}: {attempts['message']}")
    assert attempts["message"].startswith(message), attempts["message"]
    return read_time(attempts["time"]).timestamp() if "time" in attempts else now


def test_two_pods_with_a_rank_each_make_the_adapter_of_one_pod_with_two(
    space: TuningNamespace, undisturbed: str
) -> None:
    one = begin(space, "one", resources={**PLENTY, "gpus": 2})
    assert finish(one) == undisturbed
    assert "nodes" not in one.status


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_in_a_pass_or_a_checkpoint_ends_both_pods(
    space: TuningNamespace, orders: Orders, undisturbed: str, rank: int
) -> None:
    name = f"killed-{rank}"
    given = orders.give(f"forward@{rank}", f"checkpoint@{rank}")
    training = begin(space, name)
    said = f"RuntimeError: rank {rank} of 2 on node {rank} ({name}-train-{rank}.{name}-train) was ended by SIGKILL"
    for number, order in enumerate(given, start=1):
        counted = attempt_ends(training, failed=number, message=said)
        took = counted - orders.deaths()[order]
        print(f"{order}: counted after {took:.0f} s")
        assert took < A_MINUTE
        assert f"({name}-train-{rank}-" in training.status["attempts"]["message"]  # the pod, and its node
        training.next_job()
    assert finish(training) == undisturbed
    assert "resumed from step " in space.kubectl("logs", training.pod_of(0))
    assert training.status["attempts"]["failed"] == 2


def test_a_rank_that_is_killed_in_publishing_has_another_publish(
    space: TuningNamespace, orders: Orders, undisturbed: str
) -> None:
    (order,) = orders.give("publishing@0")
    training = begin(space, "publishing")
    said = "RuntimeError: rank 0 of 2 on node 0 (publishing-train-0.publishing-train) was ended by SIGKILL"
    assert attempt_ends(training, failed=1, message=said) - orders.deaths()[order] < A_MINUTE
    training.next_job()
    assert finish(training) == undisturbed
    assert "resumed from step 200 " in space.kubectl("logs", training.pod_of(0))


def test_a_pod_of_another_index_has_ended_well_before_publishing_and_is_not_missed(
    space: TuningNamespace, orders: Orders, undisturbed: str
) -> None:
    orders.give("hold@0")
    training = begin(space, "held")

    def waits_for_publishing() -> bool:
        return [node["state"] for node in training.nodes] == ["Running", "Succeeded"]

    wait_until(waits_for_publishing, SECONDS, lambda: f"the end of pod 1; has {training.status}")
    space.kubectl("delete", "pod", training.pod_of(1), "--wait")
    orders.take_back("hold@0")
    assert finish(training) == undisturbed
    assert "attempts" not in training.status


def test_the_pod_of_index_0_is_deleted_gracefully_and_then_at_once(space: TuningNamespace, undisturbed: str) -> None:
    training = begin(space, "first", retries=0)
    for how in ((), ("--grace-period=0", "--force")):
        wait_until(training.has_begun, SECONDS, lambda: f"a step; has {training.status}")
        pod, since = training.pod_of(0), time.time()
        space.kubectl("delete", "pod", pod, "--wait=false", *how)
        said = f"rank 0 on node 0 ({pod} on node) was deleted, and not by this operator"
        took = attempt_ends(training, failed=0, message=said) - since
        print(f"index 0 deleted {how}: said after {took:.0f} s")
        assert took < A_MINUTE
        training.next_job()
    assert finish(training) == undisturbed
    assert training.status["attempts"]["failed"] == 0


def test_one_that_is_deleted_and_applied_again_at_once_has_nothing_of_the_first(
    space: TuningNamespace, undisturbed: str
) -> None:
    first = begin(space, "again")
    wait_until(first.has_begun, SECONDS, lambda: f"a step; has {first.status}")
    old = {pod["metadata"]["name"] for pod in first.pods()}
    space.kubectl("delete", "tj", "again", "--wait=false")
    wait_until(lambda: space.get("tj", "again") is None, 60, "the end of the first")
    second = begin(space, "again")
    assert finish(second) == undisturbed
    uid = (space.get("tj", "again") or {})["metadata"]["uid"]
    for kind, name in (("service", "again-train"), ("networkpolicy", "again-nodes"), ("job", "again-train")):
        assert (space.get(kind, name) or {})["metadata"]["ownerReferences"][0]["uid"] == uid
    assert {pod["metadata"]["name"] for pod in second.pods()}.isdisjoint(old)
    assert second.status["attempts"]["failed"] <= 1 if "attempts" in second.status else True
    print("again:", json.dumps(second.status.get("attempts")))


def test_a_half_placed_training_says_how_many_of_how_many_pods_are_placed(cluster: Any) -> None:
    with tuning_namespace(cluster) as stand_in:
        nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
        cores = sum(int(node["status"]["allocatable"]["cpu"]) for node in nodes)
        resources = {"cpu": f"{cores * 600}m", "nodes": 2}
        stand_in.apply(tuning_job("half", stand_in="sleep=120", resources=resources))
        stand_in.wait("half", "Stalled", reason="Unschedulable", seconds=120)
        said = stand_in.conditions("half")["Stalled"]["message"]
        assert said.startswith("1 of 2 pods are placed, that of index "), said
        half = Training(stand_in, "half")

        def half_runs() -> bool:
            return sorted(node["state"] for node in half.nodes) == ["Running", "Unschedulable"]

        wait_until(half_runs, 60, lambda: f"the placed pod to run; has {half.status}")
        stand_in.kubectl("patch", "tj", "half", "--type=merge", "-p", json.dumps({"spec": {"suspend": True}}))
        stand_in.wait("half", "Suspended", seconds=150)
        assert half.pods() == []
        assert half.nodes == []
