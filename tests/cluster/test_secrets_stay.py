"""Nothing secret shows, and nothing of another namespace is reached, through a TuningJob."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import KubectlError
from tests.support.tuning_namespace import STAND_IN_IMAGE, TuningNamespace, tuning_job, tuning_namespace

CANARY = "canary-4f1d7c1e-never-to-be-seen"


SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "llm-tuning-mlflow"},
    "data": {"MLFLOW_TRACKING_PASSWORD": base64.b64encode(CANARY.encode()).decode()},
}
TRACKING = {"credentialsSecret": {"name": "llm-tuning-mlflow"}, "experimentName": "stand-in:canary"}
SPECS: dict[str, dict[str, Any]] = {
    "with": {"tracking": TRACKING},
    "refused": {"tracking": {**TRACKING, "experimentName": "stand-in:canary,exit=64"}},
    "link": {"dataset": "datasets/elsewhere/passwd"},
    "token": {},
}


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    """All TuningJobs are applied at once; a test waits for the end of those that it is about."""
    with tuning_namespace(cluster) as namespace:
        namespace.run("link", STAND_IN_IMAGE, "ln", "-sfn", "/etc", "/workspace/datasets/elsewhere")
        namespace.apply(SECRET, *(tuning_job(name, **spec) for name, spec in SPECS.items()))
        yield namespace


def test_a_canary_shows_nowhere(space: TuningNamespace) -> None:
    """In no log, Event, status, argument, environment or file, though the trainer has it."""
    for name in SPECS:
        space.wait(name, "Finished")
    shown = [
        space.kubectl("get", kind, "-o", "yaml") for kind in ("tuningjobs", "jobs", "pods", "events", "configmaps")
    ]
    for pod in space.list("pods"):
        logs = space.kubectl("logs", pod["metadata"]["name"])
        shown.append(logs)
        if pod["metadata"]["name"].startswith("with-train"):
            assert "MLFLOW_TRACKING_PASSWORD" in logs, "the stand-in names what it was given: it did have the secret"
    assert all(CANARY not in text and base64.b64encode(CANARY.encode()).decode() not in text for text in shown)
    found = space.run("search", STAND_IN_IMAGE, "sh", "-c", f"! grep -r {CANARY} /workspace")
    assert CANARY not in found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("credentialsSecret", {"name": "default-token"}),
        ("credentialsSecret", {"name": "llm-tuning-x", "namespace": "kube-system"}),
    ],
)
def test_other_secrets_are_refused_by_the_api_server(space: TuningNamespace, field: str, value: Any) -> None:
    with pytest.raises(KubectlError, match="credentialsSecret"):
        space.apply(tuning_job("other", tracking={field: value}))


@pytest.mark.parametrize(
    "spec",
    [
        {"volume": {"claimName": "kube-system/tuning"}},
        {"volume": {"claimName": "tuning", "namespace": "kube-system"}},
        {"volume": {"hostPath": "/"}},
        {"model": {"path": "/etc"}},
        {"model": {"path": "base/../../etc"}},
        {"dataset": {"configMap": {"name": "other/x", "key": "k"}}},
        {"model": {"adapter": {"tuningJob": "other/job"}}},
    ],
)
def test_what_is_elsewhere_cannot_be_named(space: TuningNamespace, spec: dict[str, Any]) -> None:
    with pytest.raises(KubectlError, match=r"spec\."):
        space.apply(tuning_job("elsewhere", **spec))


def test_a_link_out_of_the_claim_is_refused_by_the_check(space: TuningNamespace) -> None:
    space.wait("link", "Finished")
    condition = space.conditions("link")["DatasetValid"]
    assert (condition["status"], condition["reason"]) == ("False", "PathOutsideVolume")
    assert "spec.dataset.path" in condition["message"]


def test_pods_have_no_api_token_and_no_way_to_more(space: TuningNamespace) -> None:
    space.wait("token", "Finished")
    pods = space.list("pods", "tuning.llmtuning.dev/job=token")
    assert {pod["metadata"]["labels"]["tuning.llmtuning.dev/role"] for pod in pods} == {"check", "train"}
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert "kube-api-access" not in json.dumps(pod["spec"]["volumes"])
        for source in (s for v in pod["spec"]["volumes"] for s in v.get("projected", {}).get("sources", ())):
            if "serviceAccountToken" in source:
                audience = f"tuningjob.tuning.llmtuning.dev/{space.name}/token/"
                assert source["serviceAccountToken"]["audience"].startswith(audience)
