"""The operator by helm on a real node: ready under the restricted profile, with exactly its rights, its CA kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from devcluster.cluster import KubectlError
from tests.support.operator_rights import CHAIN, DENIED, OPERATOR, OWN, TLS, may
from tests.support.tuning_namespace import CHART, TuningNamespace, tuning_namespace, wait_until


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    with tuning_namespace(cluster) as namespace:
        yield namespace


def allowed(space: TuningNamespace, verb: str, resource: str, *, namespace: str = "") -> bool:
    return may(space.cluster, space.name, verb, resource, namespace=namespace or space.name)


def test_the_operator_is_ready_and_stays_up(space: TuningNamespace) -> None:
    deployment = space.get("deployment", OPERATOR)
    assert deployment is not None
    assert deployment["status"]["readyReplicas"] == 1
    [pod] = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    log = space.kubectl("logs", f"deployment/{OPERATOR}")
    assert "Traceback" not in log
    assert "Forbidden" not in log


@pytest.mark.parametrize(("verb", "resource"), CHAIN + OWN)
def test_what_it_needs_is_allowed_here_and_nowhere_else(space: TuningNamespace, verb: str, resource: str) -> None:
    assert allowed(space, verb, resource)
    assert not allowed(space, verb, resource, namespace="default")


@pytest.mark.parametrize(("verb", "resource"), DENIED)
def test_what_it_does_not_need_is_denied(space: TuningNamespace, verb: str, resource: str) -> None:
    assert not allowed(space, verb, resource)


def test_training_pods_get_no_right_by_the_install(space: TuningNamespace) -> None:
    listed = space.kubectl("auth", "can-i", "--list", "--as", f"system:serviceaccount:{space.name}:default")
    assert "tuningjobs" not in listed
    assert "secrets" not in listed


def test_an_upgrade_keeps_the_authority_and_takes_over_without_a_second_operator(space: TuningNamespace) -> None:
    before = space.get("secret", TLS)
    [old] = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
    assert before is not None
    space.cluster.helm(
        *(
            "upgrade",
            "llm-tuning",
            str(CHART),
            "-n",
            space.name,
            "--reset-then-reuse-values",
            "--wait",
            "--timeout",
            "90s",
        ),
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
        for pod in space.list("pods", f"app.kubernetes.io/name={OPERATOR}"):
            with suppress(KubectlError):  # the pod of before may go between the two looks
                if f"kubectl -n {space.name} delete secret {TLS}" in space.kubectl("logs", pod["metadata"]["name"]):
                    return True
        return False

    wait_until(says, 60, "the way out in the operator's log")
    space.kubectl("delete", "secret", TLS)
    space.kubectl("rollout", "restart", f"deployment/{OPERATOR}")
    space.kubectl("rollout", "status", f"deployment/{OPERATOR}", "--timeout=60s")
    assert space.get("secret", TLS) is not None
