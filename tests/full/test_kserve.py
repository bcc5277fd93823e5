"""Both InferenceServices in one cluster: KServe's users keep their words, and the operator leaves their objects alone.

KServe's CRD stands here by what decides between the two, its group, names and versions; its schema is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Cluster
from llm_tuning.api.kube import API_VERSION, GROUP
from tests.support.devcluster import own_cluster
from tests.support.operator_process import OperatorProcess
from tests.support.tuning_namespace import TuningNamespace, wait_until

KSERVE = "serving.kserve.io"
NAME = "faq"
THEIRS, OURS = f"inferenceservice.{KSERVE}/{NAME}", f"inferenceservice.{GROUP}/{NAME}"


def kserve_crd() -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"served": True, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"inferenceservices.{KSERVE}"},
        "spec": {
            "group": KSERVE,
            "scope": "Namespaced",
            "names": {
                "kind": "InferenceService",
                "listKind": "InferenceServiceList",
                "plural": "inferenceservices",
                "singular": "inferenceservice",
                "shortNames": ["isvc"],
            },
            "versions": [{**version, "name": "v1beta1", "storage": True}],
        },
    }


@pytest.fixture(scope="module")
def space() -> Iterator[TuningNamespace]:
    """A namespace with one of each, of the same name; a cluster of its own, since a CRD is there for all."""
    with own_cluster("kserve") as cluster, cluster.namespace() as name:
        _install_kserve(cluster)
        namespace = TuningNamespace(cluster, name)
        theirs = {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "pvc://models/iris"}}}
        ours = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}, "resources": {"gpus": 0}}
        namespace.apply(_service(f"{KSERVE}/v1beta1", theirs), _service(API_VERSION, ours))
        yield namespace


def _install_kserve(cluster: Cluster) -> None:
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump(kserve_crd()))
    cluster.kubectl("wait", "--for=condition=Established", f"crd/inferenceservices.{KSERVE}", "--timeout=30s")


def _service(api_version: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": "InferenceService", "metadata": {"name": NAME}, "spec": spec}


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("isvc", THEIRS),
        ("inferenceservice", THEIRS),
        ("inferenceservices", THEIRS),
        ("tisvc", OURS),
        (f"inferenceservices.{GROUP}", OURS),
        ("tuning", OURS),
    ],
)
def test_what_a_word_finds(space: TuningNamespace, word: str, found: str) -> None:
    assert space.kubectl("get", word, "-o", "name").split() == [found]


def test_the_operator_works_on_ours_and_leaves_theirs_alone(space: TuningNamespace, tmp_path: Path) -> None:
    before = space.get(f"inferenceservices.{KSERVE}", NAME)
    assert before is not None
    operator = OperatorProcess(space.cluster.kubeconfig, space.name, tmp_path / "operator.log")
    operator.start()
    try:
        operator.wait_ready()
        ours = f"inferenceservices.{GROUP}"
        wait_until(lambda: "status" in (space.get(ours, NAME) or {}), 60, "a status of ours")
        owners = [owner for part in space.list("deployments") for owner in part["metadata"]["ownerReferences"]]
        assert [owner["apiVersion"] for owner in owners] == [API_VERSION]
        after = space.get(f"inferenceservices.{KSERVE}", NAME)
        assert after is not None
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
        assert "status" not in after
    finally:
        operator.end()
