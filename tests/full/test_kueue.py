"""TuningJobs in a queue of the real Kueue: admitted, queued, evicted and admitted again, never two trainers at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import Cluster
from devcluster.kueue_install import install_kueue
from tests.support.devcluster import own_cluster
from tests.support.nodes_on_a_cluster import PLENTY, SMALL, Training
from tests.support.tuning_namespace import (
    STAND_IN_IMAGE,
    TRAINER_IMAGE,
    TuningNamespace,
    pod,
    tuning_job,
    tuning_namespace,
    wait_until,
)
from tuning_operator.core.constants import LABEL_INDEX

pytestmark = [pytest.mark.timeout(900)]

API = "kueue.x-k8s.io/v1beta2"


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    """A cluster of its own: Kueue's webhooks see every Job of a cluster."""
    with own_cluster("kueue") as cluster:
        install_kueue(cluster)
        cluster.kubectl(
            "apply",
            "-f",
            "-",
            input=_yaml({"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "default"}}),
        )
        yield cluster


@pytest.fixture
def space(node: Cluster) -> Iterator[TuningNamespace]:
    """A namespace whose queue has room for one pod at a time."""
    with tuning_namespace(node) as namespace:
        _make_queue(namespace, cpu="500m", memory="1Gi")
        yield namespace


def _make_queue(space: TuningNamespace, *, cpu: str, memory: str) -> None:
    """Make, or change, the ClusterQueue of the namespace's name and its LocalQueue; who has priority evicts others."""
    resources = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": memory}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "default", "resources": resources}]}
    queue = {
        "apiVersion": API,
        "kind": "ClusterQueue",
        "metadata": {"name": space.name},
        "spec": {
            "resourceGroups": [group],
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name}},
        },
    }
    local = {
        "apiVersion": API,
        "kind": "LocalQueue",
        "metadata": {"name": "team-a"},
        "spec": {"clusterQueue": space.name},
    }
    space.cluster.kubectl("apply", "-f", "-", input=_yaml(queue))
    space.apply(local)


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(value)


def queued(name: str, nodes: int = 1, **spec: Any) -> dict[str, Any]:
    return tuning_job(name, queueName="team-a", resources={"cpu": "400m", "nodes": nodes}, **spec)


def trainers(space: TuningNamespace) -> list[dict[str, Any]]:
    pods = space.list("pods", "tuning.llmtuning.dev/role=train")
    return [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]


def test_one_after_the_other(space: TuningNamespace) -> None:
    space.apply(queued("first", stand_in="sleep=12"))
    wait_until(lambda: bool(trainers(space)), 60, "the first trainer")
    space.apply(queued("second"))
    space.wait("second", "Reconciling", reason="Queued")
    assert "team-a" in space.conditions("second")["Reconciling"]["message"]
    second = space.get("tuningjobs", "second")
    assert second is not None
    assert second["status"]["phase"] == "Queued"
    for name in ("first", "second"):
        space.wait(name, "Finished", seconds=120)
        assert space.conditions(name)["Succeeded"]["status"] == "True"
    for job in space.list("jobs"):
        assert job["spec"]["suspend"] is False, "Kueue has admitted it"
    text = space.kubectl("get", "jobs", "-o", "yaml", "--show-managed-fields")
    assert "f:suspend" in text, "somebody owns it"
    for job in _with_managers(space):
        for entry in job["metadata"]["managedFields"]:
            if entry["manager"] == "tuning-operator":
                assert "f:suspend" not in entry["fieldsV1"].get("f:spec", {})


def test_evicted_and_admitted_again(space: TuningNamespace, node: Cluster) -> None:
    space.apply(queued("evicted", stand_in="sleep=15"))
    wait_until(lambda: bool(trainers(space)), 60, "the trainer")
    _hold(node, space.name, "HoldAndDrain")
    space.wait("evicted", "Reconciling", reason="Queued", seconds=60)
    wait_until(lambda: not trainers(space), 60, "the pods' end")
    _hold(node, space.name, "None")
    space.wait("evicted", "Finished", seconds=120)
    assert space.conditions("evicted")["Succeeded"]["status"] == "True"
    log = space.run("log", "localhost/llm-tuning/stand-in:dev", "sh", "-c", "cat /workspace/models/.stand-in/*.jsonl")
    assert log.count('"publish"') == 1, log


def test_suspend_in_a_queue(space: TuningNamespace) -> None:
    space.apply(queued("paused", stand_in="sleep=8"))
    wait_until(lambda: bool(trainers(space)), 60, "the trainer")
    space.kubectl("patch", "tj", "paused", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    space.wait("paused", "Suspended", seconds=60)
    assert trainers(space) == []
    space.kubectl("patch", "tj", "paused", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    space.wait("paused", "Finished", seconds=120)
    assert space.conditions("paused")["Succeeded"]["status"] == "True"


def test_several_pods_are_admitted_all_or_none(space: TuningNamespace) -> None:
    both = Training(space, "both")
    space.apply(queued("both", stand_in="sleep=5", nodes=2))
    asked = (
        "Job both-train waits for LocalQueue team-a to admit it: 2 pods at once, each with 400m CPU and 256Mi; Kueue"
    )
    wait_until(lambda: _reconciling(space, "both").startswith(asked), 240, lambda: f"a reason; has {both.status}")
    said = _reconciling(space, "both")
    assert "insufficient quota for cpu in flavor default" in said, said
    assert both.status["phase"] == "Queued"
    assert trainers(space) == []

    _make_queue(space, cpu="900m", memory="1Gi")
    space.wait("both", "Finished", seconds=150)
    assert space.conditions("both")["Succeeded"]["status"] == "True", both.status
    assert {pod["metadata"]["labels"][LABEL_INDEX] for pod in both.pods()} == {"0", "1"}


def test_several_pods_are_evicted_together_and_go_on_from_the_checkpoint(node: Cluster) -> None:
    with tuning_namespace(node, trainer=TRAINER_IMAGE) as space:
        _make_queue(space, cpu="700m", memory="8Gi")  # for the check, or for both trainers
        long, low = {"training": {**SMALL, "epochs": 1000, "saveSteps": 5}}, Training(space, "low")
        space.apply(tuning_job("low", queueName="team-a", resources={**PLENTY, "nodes": 2}, retries=0, **long))
        wait_until(low.has_begun, 300, lambda: f"a step; has {low.status}")
        wait_until(lambda: low.step > 5, 120, lambda: f"steps; has {low.status}")
        low.job()
        _apply_first(space)
        since = time.monotonic()
        space.wait("low", "Reconciling", reason="Queued", seconds=120)
        wait_until(lambda: not [pod for pod in trainers(space) if _runs(pod)], 60, "the end of both pods")
        assert _runs_of("first", space), "what evicted them"
        print(f"evicted: both pods ended after {time.monotonic() - since:.0f} s: {_reconciling(space, 'low')}")
        saved = low.step
        assert ": 2 pods at once, each with " in _reconciling(space, "low")
        space.kubectl("delete", "job", "first")
        low.job()
        wait_until(lambda: bool(low.pods()) and low.has_begun(), 300, lambda: f"a step; has {low.status}")
        log = space.kubectl("logs", low.pod_of(0))
        assert "resumed from step" in log, log
        wait_until(lambda: low.step > saved, 120, lambda: f"steps; has {low.status}")
        assert (low.status.get("attempts") or {}).get("failed", 0) == 0, low.status
        space.kubectl("delete", "tj", "low", "--wait")


def _apply_first(space: TuningNamespace) -> None:
    """A Job of somebody else with a higher priority, which needs the room of both trainers."""
    priority = {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": "first"}, "value": 1000}
    space.cluster.kubectl("apply", "-f", "-", input=_yaml({**priority, "description": "of a test"}))
    asks = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}}
    body = pod("first", STAND_IN_IMAGE, ["sleep", "600"], claim=None)["spec"]
    body["containers"][0]["resources"] = asks
    labels = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "first"}
    space.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "first", "labels": labels},
            "spec": {"suspend": True, "template": {"metadata": {"labels": {"job": "first"}}, "spec": body}},
        }
    )


def _runs(pod: dict[str, Any]) -> bool:
    return pod["status"].get("phase") in ("Pending", "Running")


def _runs_of(job: str, space: TuningNamespace) -> bool:
    def is_there() -> bool:
        return any(pod["status"].get("phase") == "Running" for pod in space.list("pods", f"job={job}"))

    wait_until(is_there, 60, f"the pod of {job}")
    return True


def _reconciling(space: TuningNamespace, name: str) -> str:
    return str(space.conditions(name).get("Reconciling", {}).get("message", ""))


def _hold(node: Cluster, queue: str, policy: str) -> None:
    node.kubectl("patch", "clusterqueue", queue, "--type=merge", "-p", f'{{"spec": {{"stopPolicy": "{policy}"}}}}')


def _with_managers(space: TuningNamespace) -> list[dict[str, Any]]:
    import json

    return list(json.loads(space.kubectl("get", "jobs", "-o", "json", "--show-managed-fields"))["items"])
