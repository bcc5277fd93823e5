"""From `kubectl apply` to the trainer's process, against the same two Jobs applied by hand one after the other.

The check is included in both, and the images are there. What the operator may add are its own reactions.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import pytest

from tests.support.tuning_namespace import TuningNamespace, tuning_job, tuning_namespace

pytestmark = [pytest.mark.timeout(900)]

ROUNDS = 5


def test_what_the_operator_adds_to_two_jobs_by_hand(cluster: Any) -> None:
    with tuning_namespace(cluster) as space:
        by_operator, by_hand = [], []
        for number in range(ROUNDS):
            by_operator.append(_by_operator(space, f"run-{number}"))
            by_hand.append(_by_hand(space, f"run-{number}"))
        ours, plain = statistics.median(by_operator), statistics.median(by_hand)
        print(f"\napply to trainer: {ours:.2f} s by the operator, {plain:.2f} s by hand; {ours - plain:+.2f} s")


def _by_operator(space: TuningNamespace, name: str) -> float:
    started = time.monotonic()
    space.apply(tuning_job(name))
    elapsed = _until_running(space, f"tuning.llmtuning.dev/job={name},tuning.llmtuning.dev/role=train", started)
    space.wait(name, "Finished")
    return elapsed


def _by_hand(space: TuningNamespace, name: str) -> float:
    jobs = [_plain(space.get("job", f"{name}-{role}") or {}, f"{name}-plain-{role}") for role in ("check", "train")]
    started = time.monotonic()
    space.apply(jobs[0])
    space.kubectl("wait", "--for=condition=Complete", f"job/{jobs[0]['metadata']['name']}", "--timeout=60s")
    space.apply(jobs[1])
    return _until_running(space, f"batch.kubernetes.io/job-name={jobs[1]['metadata']['name']}", started)


def _plain(job: dict[str, Any], name: str) -> dict[str, Any]:
    """A Job of the operator's as a person would write it: nobody's child."""
    spec = copy.deepcopy(job["spec"])
    spec.pop("selector")
    spec["template"]["metadata"] = {"labels": {"app": name}}
    volumes = spec["template"]["spec"]["volumes"]
    kept = [volume for volume in volumes if volume["name"] != "reporting"]  # its annotation stays with the operator's
    spec["template"]["spec"]["volumes"] = kept
    container = spec["template"]["spec"]["containers"][0]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "reporting"]
    container["env"] = [entry for entry in container["env"] if not entry["name"].startswith("KUBEFLOW_")]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def _until_running(space: TuningNamespace, selector: str, started: float) -> float:
    while True:
        for pod in space.list("pods", selector):
            for status in pod["status"].get("containerStatuses", ()):
                if status["state"].get("running") or status["state"].get("terminated"):
                    return time.monotonic() - started
        assert time.monotonic() - started < 120
        time.sleep(0.1)
