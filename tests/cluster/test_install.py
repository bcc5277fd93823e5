"""The operator by helm on a real node: ready under the restricted profile, with exactly its rights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.operator_rights import CHAIN, DENIED, OPERATOR, OWN, Asked, may_each
from tests.support.tuning_namespace import TuningNamespace, tuning_namespace


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    with tuning_namespace(cluster) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def allowed(space: TuningNamespace) -> dict[Asked, bool]:
    """What it may in its namespace and in another."""
    asked = [(*one, namespace) for one in [*CHAIN, *OWN, *DENIED] for namespace in (space.name, "default")]
    return may_each(space.cluster, space.name, asked)


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
def test_what_it_needs_is_allowed_here_and_nowhere_else(
    space: TuningNamespace, allowed: dict[Asked, bool], verb: str, resource: str
) -> None:
    assert allowed[verb, resource, space.name]
    assert not allowed[verb, resource, "default"]


@pytest.mark.parametrize(("verb", "resource"), DENIED)
def test_what_it_does_not_need_is_denied(
    space: TuningNamespace, allowed: dict[Asked, bool], verb: str, resource: str
) -> None:
    assert not allowed[verb, resource, space.name]


def test_training_pods_get_no_right_by_the_install(space: TuningNamespace) -> None:
    listed = space.kubectl("auth", "can-i", "--list", "--as", f"system:serviceaccount:{space.name}:default")
    assert "tuningjobs" not in listed
    assert "secrets" not in listed
