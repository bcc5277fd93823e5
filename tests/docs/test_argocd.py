"""The health checks of examples/argocd run in a real Lua, on statuses as the operator writes them."""

from __future__ import annotations

from typing import Any

import lupa.lua51
import pytest
import yaml

from llm_tuning.api.conditions import ConditionType, ServiceConditionType
from llm_tuning.api.kube import GROUP
from tests.support.pages import ROOT

CHECKS = yaml.safe_load((ROOT / "examples/argocd/health.yaml").read_text())["data"]


def health(kind: str, *conditions: tuple[str, str, str], seen: bool = True, **spec: Any) -> tuple[str, str]:
    """Status and message for an object with such conditions (type, status, reason)."""
    known = {str(word) for kind in (ConditionType, ServiceConditionType) for word in kind}
    assert {name for name, _, _ in conditions} <= known
    status: dict[str, Any] = {"observedGeneration": 2 if seen else 1, "conditions": []}
    for name, truth, reason in conditions:
        status["conditions"].append({"type": name, "status": truth, "reason": reason, "message": "words"})
    body = {"metadata": {"generation": 2}, "spec": {"replicas": 1, **spec}, "status": status}
    lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(body, recursive=True)
    found = lua.execute(CHECKS[f"resource.customizations.health.{GROUP}_{kind}"])
    return found["status"], found["message"]


WORKING = ("Reconciling", "True", "Training")


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ([("Succeeded", "Unknown", "Running"), ("Suspended", "False", "NotSuspended"), WORKING], "Progressing"),
        ([("Succeeded", "True", "Succeeded"), ("Stalled", "False", "NotStalled")], "Healthy"),
        ([("Succeeded", "False", "DatasetInvalid"), ("Stalled", "False", "NotStalled")], "Degraded"),
        ([("Succeeded", "Unknown", "Running"), ("Stalled", "True", "ImagePullFailed"), WORKING], "Degraded"),
        ([("Succeeded", "Unknown", "Running"), ("Suspended", "True", "Suspended")], "Suspended"),
        ([], "Progressing"),
    ],
)
def test_tuning_job(conditions: list[tuple[str, str, str]], wanted: str) -> None:
    status, message = health("TuningJob", *conditions)
    assert status == wanted
    assert message in {f"{reason}: words" for _, _, reason in conditions} | {"no condition yet"}


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ([("Ready", "True", "Ready"), ("Reconciling", "False", "Settled")], "Healthy"),
        ([("Ready", "False", "Starting"), ("Reconciling", "True", "Starting")], "Progressing"),
        ([("Ready", "False", "NoEffect"), ("Reconciling", "False", "Settled")], "Degraded"),
        ([("Ready", "False", "EngineFailing"), ("Reconciling", "True", "Starting"),
          ("Stalled", "True", "EngineFailing")], "Degraded"),
        ([], "Progressing"),
    ],
)  # fmt: skip
def test_inference_service(conditions: list[tuple[str, str, str]], wanted: str) -> None:
    status, message = health("InferenceService", *conditions)
    assert status == wanted
    assert message in {f"{reason}: words" for _, _, reason in conditions} | {"no condition yet"}


def test_a_service_scaled_to_nothing_is_suspended() -> None:
    assert health("InferenceService", ("Ready", "False", "NoReplicas"), replicas=0)[0] == "Suspended"


@pytest.mark.parametrize("kind", ["TuningJob", "InferenceService"])
def test_an_old_status_is_not_believed(kind: str) -> None:
    done = ("Succeeded" if kind == "TuningJob" else "Ready", "True", "Ready")
    assert health(kind, done, seen=False) == ("Progressing", "the operator has not reconciled it yet")
