"""TuningJobs in a queue of the real Kueue: admitted, queued, evicted and admitted again, never two trainers at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import Cluster
from devcluster.kueue_install import install_kueue
from tests.support.devcluster import own_cluster
from tests.support.tuning_namespace import TuningNamespace, tuning_job, tuning_namespace, wait_until

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
        resources = [{"name": "cpu", "nominalQuota": "500m"}, {"name": "memory", "nominalQuota": "1Gi"}]
        group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "default", "resources": resources}]}
        queue = {
            "apiVersion": API,
            "kind": "ClusterQueue",
            "metadata": {"name": namespace.name},
            "spec": {
                "resourceGroups": [group],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
            },
        }
        local = {
            "apiVersion": API,
            "kind": "LocalQueue",
            "metadata": {"name": "team-a"},
            "spec": {"clusterQueue": namespace.name},
        }
        node.kubectl("apply", "-f", "-", input=_yaml(queue))
        namespace.apply(local)
        yield namespace


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(value)


def queued(name: str, **spec: Any) -> dict[str, Any]:
    return tuning_job(name, queueName="team-a", resources={"cpu": "400m"}, **spec)


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


def _hold(node: Cluster, queue: str, policy: str) -> None:
    node.kubectl("patch", "clusterqueue", queue, "--type=merge", "-p", f'{{"spec": {{"stopPolicy": "{policy}"}}}}')


def _with_managers(space: TuningNamespace) -> list[dict[str, Any]]:
    import json

    return list(json.loads(space.kubectl("get", "jobs", "-o", "json", "--show-managed-fields"))["items"])
