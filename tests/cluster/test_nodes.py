"""A training of two pods on a real cluster: the adapter of one pod with two ranks, one generation after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, tuning_namespace, wait_until

SMALL = {"batchSize": 2, "maxLength": 64}
PLENTY = {"cpu": "200m", "memory": "3Gi"}
KILL_ITS_RANK = """
import os, signal
from pathlib import Path
for entry in Path("/proc").glob("[0-9]*"):
    if "llm_tuning.run.rank" in (entry / "cmdline").read_text():
        os.kill(int(entry.name), signal.SIGKILL)
        print("killed", end="")
"""


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    """A namespace with the real trainer, which may train on the CPU where GPUs are asked for."""
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE, values={"allowCPUFallback": "true"}) as namespace:
        yield namespace


def trainers(space: TuningNamespace, name: str) -> list[dict[str, Any]]:
    return space.list("pods", f"tuning.llmtuning.dev/job={name},tuning.llmtuning.dev/role=train")


def status(space: TuningNamespace, name: str) -> dict[str, Any]:
    return dict((space.get("tj", name) or {}).get("status") or {})


def steps(space: TuningNamespace, name: str) -> int:
    return int((status(space, name).get("progress") or {}).get("step") or 0)


def adapter_hash(space: TuningNamespace, name: str) -> str:
    path = f"/workspace/{status(space, name)['adapterPath']}/adapter_model.safetensors"
    return space.run(f"hash-{name}", TRAINER_IMAGE, "sha256sum", path).split()[0]


def test_two_pods_make_the_adapter_of_one_pod_with_two_ranks(space: TuningNamespace) -> None:
    training = {"training": {**SMALL, "maxSteps": 6}}
    space.apply(
        tuning_job("two", resources={**PLENTY, "nodes": 2}, **training),
        tuning_job("one", resources={**PLENTY, "gpus": 2}, **training),
    )
    for name in ("two", "one"):
        job = space.wait(name, "Finished", seconds=300)
        assert space.conditions(name)["Succeeded"]["status"] == "True", job["status"]
    assert adapter_hash(space, "two") == adapter_hash(space, "one")
    listed = status(space, "two")["nodes"]
    assert [(node["index"], node["ranks"], node["state"]) for node in listed] == [
        (0, "0", "Succeeded"),
        (1, "1", "Succeeded"),
    ]
    assert {node["pod"] for node in listed} == {pod["metadata"]["name"] for pod in trainers(space, "two")}
    assert all(node["node"] for node in listed)
    assert "nodes" not in status(space, "one")

    job = space.get("job", "two-train") or {}
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    for kind, name in (("service", "two-train"), ("networkpolicy", "two-nodes")):
        assert space.get(kind, name) is not None
    space.kubectl("delete", "tj", "two", "--wait")
    wait_until(lambda: space.get("service", "two-train") is None, 60, "the end of the Service")


def test_one_end_is_the_end_of_both_and_the_next_job_goes_on_from_the_checkpoint(space: TuningNamespace) -> None:
    """A pod that is deleted stops both after a checkpoint and costs no retry; a rank that is killed costs one."""
    long = {"training": {**SMALL, "epochs": 400, "saveSteps": 2}}
    space.apply(tuning_job("long", resources={**PLENTY, "nodes": 2}, retries=1, **long))
    wait_until(lambda: steps(space, "long") > 4, 300, lambda: f"steps; has {status(space, 'long')}")
    generations = [(space.get("job", "long-train") or {})["metadata"]["uid"]]

    def next_generation() -> None:
        def is_there() -> bool:
            pods = trainers(space, "long")
            alive = [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]
            assert len({pod["metadata"]["ownerReferences"][0]["uid"] for pod in alive}) <= 1, "two generations"
            job = space.get("job", "long-train")
            return job is not None and job["metadata"]["uid"] not in generations

        wait_until(is_there, 150, lambda: f"another Job; has {status(space, 'long')}")
        generations.append((space.get("job", "long-train") or {})["metadata"]["uid"])

    second = next(pod for pod in trainers(space, "long") if pod["metadata"]["labels"][INDEX] == "1")
    before = steps(space, "long")
    space.kubectl("delete", "pod", second["metadata"]["name"], "--wait=false")
    next_generation()
    assert status(space, "long")["attempts"]["failed"] == 0
    wait_until(lambda: steps(space, "long") > before + 2, 300, lambda: f"steps; has {status(space, 'long')}")
    first = next(pod for pod in trainers(space, "long") if pod["metadata"]["labels"][INDEX] == "0")
    assert "resumed from step" in space.kubectl("logs", first["metadata"]["name"])

    second = next(pod for pod in trainers(space, "long") if pod["metadata"]["labels"][INDEX] == "1")
    killed = space.kubectl("exec", second["metadata"]["name"], "--", "python", "-c", KILL_ITS_RANK)
    assert killed == "killed"
    next_generation()
    attempts = status(space, "long")["attempts"]
    assert attempts["failed"] == 1
    assert attempts["message"].startswith(
        "RuntimeError: rank 1 of 2 on node 1 (long-train-1.long-train) was ended by SIGKILL"
    )
    space.kubectl("patch", "tj", "long", "--type=merge", "-p", json.dumps({"spec": {"suspend": True}}))
    space.wait("long", "Suspended", seconds=150)
    assert trainers(space, "long") == []


INDEX = "batch.kubernetes.io/job-completion-index"


def test_a_half_placed_training_says_how_many_of_how_many_pods_run(cluster: Any) -> None:
    with tuning_namespace(cluster) as stand_in:
        nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
        cores = sum(int(node["status"]["allocatable"]["cpu"]) for node in nodes)
        stand_in.apply(tuning_job("half", stand_in="sleep=120", resources={"cpu": f"{cores * 600}m", "nodes": 2}))
        stand_in.wait("half", "Stalled", reason="Unschedulable", seconds=120)
        said = stand_in.conditions("half")["Stalled"]["message"]
        assert said.startswith("1 of 2 pods run, that of index "), said
        states = sorted(node["state"] for node in status(stand_in, "half")["nodes"])
        assert states == ["Running", "Unschedulable"]
