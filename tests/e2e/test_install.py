"""The operator by helm on a real node: ready under the restricted profile, with exactly its rights, its CA kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.tuning_namespace import CHART, TuningNamespace, tuning_namespace, wait_until

pytestmark = pytest.mark.e2e

OPERATOR = "llm-tuning-operator"
TLS = "llm-tuning-operator-tls"


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    with tuning_namespace(cluster) as namespace:
        yield namespace


def may(space: TuningNamespace, verb: str, resource: str, *, namespace: str = "") -> bool:
    """Whether the API server lets the operator do it; a resource is group/kind/name/subresource, each may be empty."""
    group, kind, name, subresource = f"{resource}///".split("/")[:4]
    attributes = {"namespace": namespace or space.name, "verb": verb, "group": group, "resource": kind}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{space.name}:{OPERATOR}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{space.name}", "system:authenticated"],
            "resourceAttributes": attributes | {"name": name, "subresource": subresource},
        },
    }
    answer = json.loads(space.cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review)))
    return bool(answer["status"]["allowed"])


def test_the_operator_is_ready_and_stays_up(space: TuningNamespace) -> None:
    deployment = space.get("deployment", OPERATOR)
    assert deployment is not None
    assert deployment["status"]["readyReplicas"] == 1
    [pod] = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    log = space.kubectl("logs", f"deployment/{OPERATOR}")
    assert "Traceback" not in log
    assert "Forbidden" not in log


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("watch", "tuning.llmtuning.dev/tuningjobs"),
        ("patch", "tuning.llmtuning.dev/tuningjobs//status"),
        ("create", "batch/jobs"),
        ("delete", "batch/jobs"),
        ("watch", "/pods"),
        ("create", "/events"),
        ("get", f"/secrets/{TLS}"),
        ("update", f"coordination.k8s.io/leases/{OPERATOR}"),
    ],
)
def test_what_it_needs_is_allowed_here_and_nowhere_else(space: TuningNamespace, verb: str, resource: str) -> None:
    assert may(space, verb, resource)
    assert not may(space, verb, resource, namespace="default")


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "/secrets"),
        ("get", "/secrets"),
        ("get", "/secrets/llm-tuning-credentials"),
        ("delete", f"/secrets/{TLS}"),
        ("delete", "/configmaps"),
        ("delete", "apps/deployments"),
        ("update", "tuning.llmtuning.dev/inferenceservices"),
        ("delete", "tuning.llmtuning.dev/inferenceservices"),
        ("get", "/persistentvolumeclaims"),
        ("create", "/pods"),
        ("delete", "/pods"),
        ("get", "/pods//log"),
        ("create", "/pods//exec"),
        ("update", "batch/jobs"),
        ("patch", "batch/jobs"),
        ("update", "tuning.llmtuning.dev/tuningjobs"),
        ("patch", "tuning.llmtuning.dev/tuningjobs"),
        ("create", "tuning.llmtuning.dev/tuningjobs"),
        ("update", "coordination.k8s.io/leases/another"),
        ("create", "/serviceaccounts//token"),
        ("create", "rbac.authorization.k8s.io/roles"),
        ("impersonate", "/serviceaccounts"),
        ("list", "/nodes"),
        ("list", "/namespaces"),
        ("get", "apiextensions.k8s.io/customresourcedefinitions"),
        ("create", "authentication.k8s.io/tokenreviews"),
    ],
)
def test_what_it_does_not_need_is_denied(space: TuningNamespace, verb: str, resource: str) -> None:
    assert not may(space, verb, resource)


def test_training_pods_get_no_right_by_the_install(space: TuningNamespace) -> None:
    listed = space.kubectl("auth", "can-i", "--list", "--as", f"system:serviceaccount:{space.name}:default")
    assert "tuningjobs" not in listed
    assert "secrets" not in listed


def test_an_upgrade_keeps_the_authority_and_takes_over_without_a_second_operator(space: TuningNamespace) -> None:
    before = space.get("secret", TLS)
    [old] = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
    assert before is not None
    space.cluster.helm(
        *("upgrade", "llm-tuning", str(CHART), "-n", space.name, "--reuse-values", "--wait", "--timeout", "90s"),
        *("--set", "resources.requests.cpu=101m"),
    )
    after = space.get("secret", TLS)
    assert after is not None
    assert after["data"] == before["data"]
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    wait_until(lambda: len(space.list("pods", f"app.kubernetes.io/name={OPERATOR}")) == 1, 30, "the old pod's end")
    [new] = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]


def test_a_damaged_authority_is_said_and_its_deletion_heals(space: TuningNamespace) -> None:
    space.kubectl("patch", "secret", TLS, "--type=merge", "-p", '{"data": {"ca.key": "bm9uc2Vuc2U="}}')
    space.kubectl("rollout", "restart", f"deployment/{OPERATOR}")

    def says() -> bool:
        pods = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
        logs = [space.kubectl("logs", pod["metadata"]["name"], "--ignore-errors") for pod in pods]
        return any(f"kubectl -n {space.name} delete secret {TLS}" in log for log in logs)

    wait_until(says, 60, "the way out in the operator's log")
    space.kubectl("delete", "secret", TLS)
    space.kubectl("rollout", "restart", f"deployment/{OPERATOR}")
    space.kubectl("rollout", "status", f"deployment/{OPERATOR}", "--timeout=60s")
    assert space.get("secret", TLS) is not None
