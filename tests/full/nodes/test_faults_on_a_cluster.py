"""Two pods of one training on a devcluster: the network between them is cut, one is slow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import Cluster
from tests.support.node_pods import ten_times_slower
from tests.support.nodes_on_a_cluster import PLENTY, SMALL, Training
from tests.support.pod_faults import cut_off, processes_of
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, tuning_namespace, wait_until

LONG = {"training": {**SMALL, "epochs": 1000, "saveSteps": 5}}


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    if not isinstance(cluster, Cluster):
        pytest.skip("the processes of its pods are reached from this machine in a devcluster alone")
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE) as namespace:
        yield namespace


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
