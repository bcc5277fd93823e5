"""Two pods of one training on a devcluster: the network is cut, one is slow or is evicted, their claim fills up."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import Cluster
from llm_tuning.models.metrics_file import read_metrics
from tests.support.node_pods import ten_times_slower
from tests.support.nodes_on_a_cluster import PLENTY, SMALL, Training
from tests.support.pod_faults import cut_off, join, processes_of
from tests.support.small_claim import small_claim
from tests.support.tuning_namespace import (
    CLAIM,
    TRAINER_IMAGE,
    TuningNamespace,
    tuning_job,
    tuning_namespace,
    wait_until,
)

LONG = {"training": {**SMALL, "epochs": 1000, "saveSteps": 5}}
TWELVE_SECONDS = 12


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    if not isinstance(cluster, Cluster):
        pytest.skip("the processes of its pods are reached from this machine in a devcluster alone")
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE) as namespace:
        yield namespace


@pytest.fixture(autouse=True)
def _ends_all(space: TuningNamespace) -> Iterator[None]:
    """Leave the next test no training of one that has failed, which would take its cores."""
    yield
    space.kubectl("delete", "tj", "--all", "--wait")


def begin(space: TuningNamespace, name: str, **spec: Any) -> Training:
    """Start a training of two pods, and wait for some steps."""
    training = Training(space, name)
    space.apply(tuning_job(name, resources={**PLENTY, "nodes": 2}, **{**LONG, **spec}))
    wait_until(training.has_begun, 300, lambda: f"a step; has {training.status}")
    wait_until(lambda: training.step > 5, 120, lambda: f"steps; has {training.status}")
    training.job()
    return training


def pod(training: Training, index: int) -> dict[str, Any]:
    return training.space.get("pod", training.pod_of(index)) or {}


def steps_done(training: Training) -> int:
    """As the run writes them down at once: its log and the status have them seconds later."""
    cluster, claim = training.space.cluster, training.space.get("pvc", CLAIM) or {}
    root = cluster.plan.state / "volumes" / claim["spec"]["volumeName"]
    metrics = root / "models" / ".work" / training.status["modelId"] / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(metrics)), default=0)


def saved_step(training: Training) -> int:
    """The checkpoint from which the present Job has gone on, once it has."""
    wait_until(training.has_begun, 300, lambda: f"a step; has {training.status}")
    log = training.space.kubectl("logs", training.pod_of(0))
    found = re.search(r"resumed from step (\d+)", log)
    assert found, log
    return int(found[1])


def end(training: Training) -> None:
    training.space.kubectl("delete", "tj", training.name, "--wait")


def test_a_cut_between_the_pods_ends_both_within_a_minute_and_the_next_two_go_on(space: TuningNamespace) -> None:
    training = begin(space, "cut")
    first, second = pod(training, 0), pod(training, 1)
    cut_off(second, first)
    since = time.monotonic()
    wait_until(lambda: bool(training.status.get("attempts")), 90, lambda: f"an end; has {training.status}")
    seconds, attempts = time.monotonic() - since, training.status["attempts"]
    print(f"\ncut: told after {seconds:.0f} s: {attempts}")
    assert seconds < 60 + 5  # the status is written, and read here, after the pods have ended
    assert attempts["reason"] == "NodeLost"
    message = attempts["message"]
    assert "was not heard of for 30 s: its pod was ended or evicted, or the network between them is cut" in message
    assert any(f"rank {index} of 2 on node {index} (cut-train-{index}.cut-train)" in message for index in (0, 1))
    training.next_job()
    print(f"next Job after {time.monotonic() - since:.0f} s")
    wait_until(training.has_begun, 300, lambda: f"a step; has {training.status}")
    print(f"first step after {time.monotonic() - since:.0f} s")
    assert "resumed from step" in space.kubectl("logs", training.pod_of(0))
    end(training)


def test_a_rank_ten_times_slower_is_told_in_the_status_and_not_ended(space: TuningNamespace) -> None:
    training = begin(space, "slow")
    (rank,) = processes_of(pod(training, 1), "llm_tuning.run.rank")
    with ten_times_slower(rank):
        since = time.monotonic()
        space.wait("slow", "Reconciling", reason="SlowRank", seconds=180)
        said = space.conditions("slow")["Reconciling"]["message"]
        print(f"\nslow rank: told after {time.monotonic() - since:.0f} s: {said}")
        assert said.startswith("rank 1 of 2 on node 1 (slow-train-1.slow-train) is slow: it takes ")
        before = training.step
        wait_until(lambda: training.step > before + 3, 60, lambda: f"steps of a slow run; has {training.status}")
    space.wait("slow", "Reconciling", reason="Training", seconds=180)
    assert ("Warning", "SlowRank") in [(event["type"], event["reason"]) for event in space.events("slow")]
    assert "attempts" not in training.status
    assert len(training.jobs) == 1
    end(training)


def test_a_network_that_is_back_after_twelve_seconds_costs_nothing(space: TuningNamespace) -> None:
    training = begin(space, "back")
    first, second = pod(training, 0), pod(training, 1)
    cut_off(second, first)
    since = time.monotonic()
    time.sleep(4)  # what was sent before the cut
    stands_at = steps_done(training)
    time.sleep(max(0.0, since + TWELVE_SECONDS - time.monotonic()))
    assert steps_done(training) == stands_at, "the network was not cut"
    join(second, first)
    cut_for = time.monotonic() - since
    wait_until(lambda: steps_done(training) > stands_at, 60, lambda: f"a step; has {training.status}")
    print(f"\nback: cut for {cut_for:.0f} s at step {stands_at}, next step after {time.monotonic() - since:.0f} s")
    wait_until(lambda: training.step > stands_at + 10, 120, lambda: f"more steps; has {training.status}")
    training.job()
    assert "attempts" not in training.status
    assert len(training.jobs) == 1
    assert [pod(training, index)["metadata"]["uid"] for index in (0, 1)] == [
        p["metadata"]["uid"] for p in (first, second)
    ]
    end(training)


def test_an_evicted_pod_ends_both_within_a_minute_and_the_next_two_go_on(space: TuningNamespace) -> None:
    training = begin(space, "evicted", retries=0)
    name, before = training.pod_of(1), training.step
    evict(space, name)
    since = time.monotonic()
    wait_until(lambda: bool(training.status.get("attempts")), 90, lambda: f"an end; has {training.status}")
    seconds, attempts = time.monotonic() - since, training.status["attempts"]
    print(f"\nevicted: told after {seconds:.0f} s: {attempts}")
    assert seconds < 60
    assert attempts["reason"] == "NodeLost"
    assert attempts["message"].startswith(f"rank 1 on node 1 ({name} on ")
    assert ") was ended by the cluster: " in attempts["message"]
    assert attempts["failed"] == 0
    assert "time" not in attempts, "it counts"
    training.next_job()
    print(f"next Job after {time.monotonic() - since:.0f} s")
    saved = saved_step(training)
    print(f"resumed from step {saved} after {time.monotonic() - since:.0f} s; at {before} when it was evicted")
    assert saved >= before - LONG["training"]["saveSteps"]
    wait_until(lambda: training.step > saved, 120, lambda: f"steps; has {training.status}")
    end(training)


def evict(space: TuningNamespace, name: str) -> None:
    """What `kubectl drain` does to a pod."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": space.name}}
    path = f"/api/v1/namespaces/{space.name}/pods/{name}/eviction"
    space.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body))


def test_a_claim_that_fills_up_ends_both_and_the_run_goes_on_by_itself_once_there_is_room(
    space: TuningNamespace,
) -> None:
    with small_claim(space, "small", mebibytes=48) as small:
        training = begin(space, "full", volume={"claimName": "small"}, retries=0)
        before, model = training.step, training.status["modelId"]
        small.fill_up()
        since = time.monotonic()
        space.wait("full", "Stalled", reason="VolumeFull", seconds=90)
        said = space.conditions("full")["Stalled"]["message"]
        print(f"\nfull: told after {time.monotonic() - since:.0f} s: {said}")
        assert "spec.volume.claimName: no space is left in models" in said
        assert said.endswith("started again every 5 minutes until there is room")
        wait_until(lambda: bool(training.status.get("attempts")), 60, lambda: f"its count; has {training.status}")
        assert training.status["attempts"]["failed"] == 0
        kept = small.on_node("ls", f"{small.folder}/models/.work/{model}/checkpoints").split()
        print(f"checkpoints that stay: {kept}")
        small.make_room()
        training.next_job(seconds=400)
        print(f"next Job after {time.monotonic() - since:.0f} s")
        saved = saved_step(training)
        print(f"resumed from step {saved}; at {before} when it was filled")
        assert f"checkpoint-{saved}" in kept
        wait_until(lambda: training.step > saved, 120, lambda: f"steps; has {training.status}")
        assert training.status["modelId"] == model
        space.wait("full", "Stalled", status="False", seconds=180)
        end(training)
