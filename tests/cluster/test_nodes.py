"""A training of two pods on a real cluster, one of which is lost on the way: it goes on from its checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.nodes_on_a_cluster import PLENTY, SMALL, Training
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, tuning_namespace, wait_until


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE) as namespace:
        yield namespace


def logs_of_rank(space: TuningNamespace, name: str, rank: int) -> str:
    command = [sys.executable, "-m", "llm_tuning.kubectl.main", "logs", name, "--rank", str(rank), "-n", space.name]
    environment = {**os.environ, "KUBECONFIG": str(space.cluster.kubeconfig)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_training_of_two_pods_one_of_which_is_lost_goes_on_from_its_checkpoint(space: TuningNamespace) -> None:
    two, training = Training(space, "two"), {**SMALL, "maxSteps": 400, "saveSteps": 5}
    space.apply(tuning_job("two", resources={**PLENTY, "nodes": 2}, retries=0, training=training))
    wait_until(two.has_begun, 400, lambda: f"a step; has {two.status}")
    first, second = two.nodes
    assert [(node["index"], node["ranks"], node["state"], node["node"]) for node in (first, second)] == [
        (0, "0", "Running", second["node"]),
        (1, "1", "Running", first["node"]),
    ]
    lost = second["pod"]
    space.kubectl("delete", "pod", lost, "--wait=false")
    two.next_job()
    assert two.status["attempts"]["failed"] == 0  # of no retries
    assert two.status["attempts"]["message"].startswith(f"rank 1 on node 1 ({lost} on ")

    job = space.wait("two", "Finished", seconds=400)
    assert space.conditions("two")["Succeeded"]["status"] == "True", job["status"]
    assert "resumed from step" in logs_of_rank(space, "two", 0)
    assert "node 1 (two-train-1.two-train) of 2 is there" in logs_of_rank(space, "two", 1)
    assert [node["state"] for node in two.nodes] == ["Succeeded", "Succeeded"]
    assert (two.status["progress"]["step"], two.status["progress"]["percent"]) == (400, 100)

    for kind, name in (("service", "two-train"), ("networkpolicy", "two-nodes")):
        assert space.get(kind, name) is not None
    space.kubectl("delete", "tj", "two", "--wait")
    for kind, name in (("service", "two-train"), ("networkpolicy", "two-nodes"), ("job", "two-train")):
        wait_until(lambda kind=kind, name=name: space.get(kind, name) is None, 60, f"the end of {kind} {name}")
