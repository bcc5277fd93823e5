"""GPUs on a real API server and kubelet: the RuntimeClass of pods that have them, and parts of a card."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.tuning_namespace import CHART, TuningNamespace, tuning_job, tuning_namespace, wait_until


@pytest.fixture(scope="module")
def runtime_class(cluster: Any) -> Iterator[str]:
    """A RuntimeClass of runc's, which every node has."""
    name = f"runtime-{secrets.token_hex(3)}"
    body = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": "runc"}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(body))
    yield name
    cluster.kubectl("delete", "runtimeclass", name)


def test_slices_are_not_joined_and_whole_cards_run_under_their_runtime_class(cluster: Any, runtime_class: str) -> None:
    values = {"gpuResource": "nvidia.com/mig-1g.10gb", "defaults.gpu.runtimeClassName": runtime_class}
    with tuning_namespace(cluster, values=values) as space:
        space.apply(tuning_job("two", resources={"gpus": 2}), service("two-each"))
        refused = space.wait("two", "Stalled", reason="GPUsNotCombinable")
        assert refused["status"]["phase"] == "Pending"
        assert space.list("jobs") == []
        wait_until(lambda: ready(space) == ("False", "GPUsNotCombinable"), 60, lambda: f"no; has {ready(space)}")
        assert space.get("deployment", "two-each") is None
        space.cluster.helm(
            *("upgrade", "llm-tuning", str(CHART), "-n", space.name, "--reset-then-reuse-values"),
            *("--set", "gpuResource=nvidia.com/gpu", "--wait", "--timeout", "90s"),
        )
        wait_until(lambda: space.get("deployment", "two-each") is not None, 60, "the service's Deployment")
        replica = (space.get("deployment", "two-each") or {})["spec"]["template"]["spec"]
        assert replica["runtimeClassName"] == runtime_class
        space.kubectl("delete", "inferenceservices.tuning.llmtuning.dev", "two-each")  # it would hold the GPUs
        space.wait("two", "Succeeded")
        [trainer] = space.list("pods", "tuning.llmtuning.dev/role=train")
        assert trainer["spec"]["runtimeClassName"] == runtime_class
        [check] = space.list("jobs", "tuning.llmtuning.dev/role=check")
        assert "runtimeClassName" not in check["spec"]["template"]["spec"]


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}, "resources": {"gpus": 2}},
    }


def ready(space: TuningNamespace) -> tuple[str, str]:
    found = space.get("inferenceservices.tuning.llmtuning.dev", "two-each") or {}
    conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
    return conditions.get("Ready", {}).get("status", ""), conditions.get("Ready", {}).get("reason", "")
