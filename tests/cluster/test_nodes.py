"""A training of two pods on a real cluster: one is lost on the way, the adapter that of one pod with two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.nodes_on_a_cluster import PLENTY, SMALL, Training, adapter_hash
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, tuning_namespace, wait_until


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    """A namespace with the real trainer, which may train on the CPU where GPUs are asked for."""
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE, values={"allowCPUFallback": "true"}) as namespace:
        yield namespace


def logs_of_rank(space: TuningNamespace, name: str, rank: int) -> str:
    command = [sys.executable, "-m", "llm_tuning.kubectl.main", "logs", name, "--rank", str(rank), "-n", space.name]
    environment = {**os.environ, "KUBECONFIG": str(space.cluster.kubeconfig)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def test_two_pods_one_of_which_is_lost_make_the_adapter_of_one_pod_with_two_ranks(space: TuningNamespace) -> None:
    training = {"training": {**SMALL, "maxSteps": 400, "saveSteps": 5}}
    two = Training(space, "two")
    space.apply(tuning_job("two", resources={**PLENTY, "nodes": 2}, retries=0, **training))
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

    space.apply(tuning_job("one", resources={**PLENTY, "gpus": 2}, **training))
    for name in ("two", "one"):
        job = space.wait(name, "Finished", seconds=400)
        assert space.conditions(name)["Succeeded"]["status"] == "True", job["status"]
    assert adapter_hash(space, "two") == adapter_hash(space, "one")
    assert "resumed from step" in logs_of_rank(space, "two", 0)
    assert "node 1 (two-train-1.two-train) of 2 is there" in logs_of_rank(space, "two", 1)
    assert [node["state"] for node in two.nodes] == ["Succeeded", "Succeeded"]
    assert (two.status["progress"]["step"], two.status["progress"]["percent"]) == (400, 100)
    assert "nodes" not in Training(space, "one").status

    for kind, name in (("service", "two-train"), ("networkpolicy", "two-nodes")):
        assert space.get(kind, name) is not None
    space.kubectl("delete", "tj", "two", "--wait")
    for kind, name in (("service", "two-train"), ("networkpolicy", "two-nodes"), ("job", "two-train")):
        wait_until(lambda kind=kind, name=name: space.get(kind, name) is None, 60, f"the end of {kind} {name}")
