"""The chain on a real node: apply to adapter, with the operator in its pod, installed by helm."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.tuning_namespace import (
    STAND_IN_IMAGE,
    TRAINER_IMAGE,
    TuningNamespace,
    tuning_job,
    tuning_namespace,
    wait_until,
)

TERMINAL = ("DatasetValid", "Trained", "Registered", "Evaluated", "Succeeded", "Finished")


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    """A namespace whose trainer is the stand-in."""
    with tuning_namespace(cluster) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def begun(space: TuningNamespace) -> TuningNamespace:
    """Three TuningJobs are applied at once there; each has a test that waits for it."""
    bad = tuning_job("bad", dataset="datasets/bad.jsonl", resources={"gpus": 2})
    space.apply(tuning_job("plain"), tuning_job("once"), bad)
    return space


def test_from_apply_to_a_registered_and_evaluated_adapter(begun: TuningNamespace) -> None:
    space = begun
    job = space.wait("plain", "Finished")
    conditions = space.conditions("plain")
    assert {kind: conditions[kind]["status"] for kind in TERMINAL} == dict.fromkeys(TERMINAL, "True")
    assert all(c["observedGeneration"] == job["metadata"]["generation"] for c in conditions.values())
    status = job["status"]
    assert status["phase"] == "Succeeded"
    assert status["progress"]["percent"] == 100
    assert status["adapterPath"] == f"models/{status['modelId']}"
    assert status["evaluation"]["tunedLoss"] < status["evaluation"]["baseLoss"]
    listed = json.loads(
        space.run("list", STAND_IN_IMAGE, "tune-llm", "registry", "list", "--json", "--output_dir", "/workspace/models")
    )
    assert status["modelId"] in {model["model_id"] for model in listed["models"]}


def test_a_finished_job_is_never_run_again(begun: TuningNamespace) -> None:
    space = begun
    job = space.wait("once", "Finished")
    space.kubectl("delete", "jobs", "-l", "tuning.llmtuning.dev/job=once", "--wait")
    space.kubectl("patch", "tj", "once", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    space.kubectl("patch", "tj", "once", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    time.sleep(5)
    assert space.list("jobs", "tuning.llmtuning.dev/job=once") == []
    after = space.get("tj", "once")
    assert after is not None
    assert after["status"]["modelId"] == job["status"]["modelId"]
    assert after["status"]["completionTime"] == job["status"]["completionTime"]


def test_bad_data_ends_before_a_trainer_starts(begun: TuningNamespace) -> None:
    space = begun
    space.wait("bad", "Finished")
    conditions = space.conditions("bad")
    assert conditions["DatasetValid"]["status"] == "False"
    assert "row" in conditions["DatasetValid"]["message"]
    assert conditions["Succeeded"]["status"] == "False"
    assert [job["metadata"]["name"] for job in space.list("jobs", "tuning.llmtuning.dev/job=bad")] == ["bad-check"]


def test_ppo_waits_for_the_adapter_of_another_job_and_says_so(space: TuningNamespace) -> None:
    first = tuning_job("first", stand_in="sleep=1")
    model = {"path": "base/tiny", "adapter": {"tuningJob": "first"}}
    space.apply(tuning_job("second", dataset="datasets/ppo.jsonl", mode="ppo", model=model))
    space.wait("second", "Reconciling", reason="AdapterJobNotFound")
    space.wait("second", "DatasetValid")
    assert space.get("job", "second-train") is None
    space.apply(first)
    job = space.wait("second", "Finished")
    earlier = space.get("tj", "first")
    assert earlier is not None
    assert job["status"]["startAdapterModelId"] == earlier["status"]["modelId"]
    assert space.conditions("second")["Succeeded"]["status"] == "True"


def test_suspend_ends_the_pods_and_resume_goes_on(space: TuningNamespace) -> None:
    space.apply(tuning_job("pause", stand_in="sleep=8"))
    trainer = "tuning.llmtuning.dev/job=pause,tuning.llmtuning.dev/role=train"

    def running() -> bool:
        return any(p["status"].get("phase") == "Running" for p in space.list("pods", trainer))

    wait_until(running, 60, "the trainer")
    space.kubectl("patch", "tj", "pause", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    job = space.wait("pause", "Suspended")
    assert space.list("pods", trainer) == []
    assert job["status"]["phase"] == "Suspended"
    space.kubectl("patch", "tj", "pause", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    space.wait("pause", "Finished")
    conditions = space.conditions("pause")
    assert conditions["Suspended"]["status"] == "False"
    assert conditions["Succeeded"]["status"] == "True"


def test_the_real_trainer(cluster: Any) -> None:
    """SFT, then PPO from its adapter, by torch and TRL in the trainer image; missing CUDA is said at once."""
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE) as space:
        small: dict[str, Any] = {"training": {"maxSteps": 4, "batchSize": 4, "maxLength": 64}}
        plenty = {"cpu": "1", "memory": "4Gi"}
        model = {"path": "base/tiny", "adapter": {"tuningJob": "sft"}}
        space.apply(
            tuning_job("sft", resources=plenty, **small),
            tuning_job("ppo", mode="ppo", dataset="datasets/ppo.jsonl", model=model, resources=plenty, **small),
            tuning_job("cuda", resources={"gpus": 1, **plenty}, retries=0),
        )
        cuda = space.wait("cuda", "Finished", seconds=240)
        assert space.conditions("cuda")["Succeeded"]["reason"] == "GPUUnavailable", cuda["status"]
        for name in ("sft", "ppo"):
            job = space.wait(name, "Finished", seconds=240)
            assert space.conditions(name)["Succeeded"]["status"] == "True", job["status"]
            assert job["status"]["mlflowRunId"]
