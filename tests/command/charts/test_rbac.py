"""The Roles allow exactly what `cluster.py` and the watches ask of the API server: nothing missing, nothing unused."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from tests.support.chart import NAMESPACE, Chart
from tuning_operator.core.cache import BUDGETS, GROUPS, INFERENCE_SERVICES, JOBS, KINDS, RESOURCES, SERVING, TUNING_JOBS
from tuning_operator.core.cluster import Cluster
from tuning_operator.core.constants import LEASE_NAME
from tuning_operator.reports.tls import SECRET_NAME

Permission = tuple[str, str, str]
"""Verb, resource as group/resource/subresource, and the one name it is good for or nothing."""

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)/namespaces/[^/]+/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)
RAW = {"metadata": {"namespace": NAMESPACE, "name": "faq", "uid": "u", "resourceVersion": "1"}}

CHAIN: dict[str, Callable[[Cluster], Awaitable[Any]]] = {
    "list_all": lambda c: _all(c.list_all(kind, NAMESPACE) for kind in KINDS),
    "apply_status": lambda c: _all(c.apply_status(kind, RAW, {}) for kind in (TUNING_JOBS, INFERENCE_SERVICES)),
    "read": lambda c: _all(c.read(kind, NAMESPACE, "faq") for kind in (*RESOURCES, JOBS, *SERVING)),
    "create": lambda c: _all(c.create(kind, RAW) for kind in (JOBS, *SERVING, INFERENCE_SERVICES)),
    "apply": lambda c: _all(c.apply(kind, RAW) for kind in SERVING),
    "delete": lambda c: _all(c.delete(kind, NAMESPACE, "faq", "u") for kind in (TUNING_JOBS, JOBS, BUDGETS)),
    "list_pods_of": lambda c: c.list_pods_of(NAMESPACE, "u"),
    "list_warnings": lambda c: c.list_warnings(NAMESPACE),
    "write_event": lambda c: c.write_event(NAMESPACE, "e", {}, lambda event: event),
}
TLS: dict[str, Callable[[Cluster], Awaitable[Any]]] = {
    "read_secret": lambda c: c.read_secret(NAMESPACE, SECRET_NAME),
    "create_secret": lambda c: c.create_secret(NAMESPACE, {}),
    "replace_secret": lambda c: c.replace_secret(NAMESPACE, SECRET_NAME, {}),
}
"""Where the operator makes its certificates itself."""
OWN: dict[str, Callable[[Cluster], Awaitable[Any]]] = {
    "read_lease": lambda c: c.read_lease(NAMESPACE, LEASE_NAME),
    "create_lease": lambda c: c.create_lease(NAMESPACE, {}),
    "replace_lease": lambda c: c.replace_lease(NAMESPACE, LEASE_NAME, {}),
}
NO_PERMISSION_NEEDED = {"connect", "close", "read_jwks"}
"""Every service account may read the cluster's keys."""


async def _all(calls: Any) -> None:
    for call in calls:
        await call


@pytest.fixture
async def asked() -> AsyncIterator[tuple[Cluster, list[Permission]]]:
    """A Cluster, and the permissions that its requests need by Kubernetes' own rules."""
    needed: list[Permission] = []

    async def answer(request: web.Request) -> web.Response:
        found = PATH.fullmatch(request.path)
        assert found, request.path
        group, resource, name, sub = (found[part] or "" for part in ("group", "resource", "name", "sub"))
        verb = VERBS.get(request.method) or ("get" if name else "list")
        limited = name if resource in ("secrets", "leases") else ""
        needed.append((verb, f"{group}/{resource}/{sub}", limited))
        if (request.method, resource) == ("POST", "events"):
            return web.json_response({"reason": "AlreadyExists"}, status=409)
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        cluster = Cluster(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{server.port}")))
        yield cluster, needed
        await cluster.close()


def granted(role: dict[str, Any]) -> set[Permission]:
    permissions = set()
    for rule in role["rules"]:
        assert "*" not in str(rule)
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    kind, _, sub = resource.partition("/")
                    permissions |= {(verb, f"{group}/{kind}/{sub}", name) for verb in rule["verbs"]}
    return permissions


def roles(chart: Chart, **values: Any) -> dict[tuple[str, str], dict[str, Any]]:
    found = chart.objects("Role", **values)
    return {(role["metadata"].get("namespace", NAMESPACE), role["metadata"]["name"]): role for role in found}


def test_every_call_of_the_operator_is_in_one_of_the_tables() -> None:
    public = {name for name, _ in inspect.getmembers(Cluster, inspect.isfunction) if not name.startswith("_")}
    assert CHAIN.keys() | OWN.keys() | TLS.keys() | NO_PERMISSION_NEEDED == public | {"connect"}


async def test_the_role_for_jobs_is_what_the_chain_uses(chart: Chart, asked: tuple[Cluster, list[Permission]]) -> None:
    cluster, needed = asked
    for call in CHAIN.values():
        await call(cluster)
    watched = {(verb, f"{group}/{kind}/", "") for kind, (group, _) in GROUPS.items() for verb in ("list", "watch")}
    assert granted(roles(chart)[NAMESPACE, "llm-tuning-operator-jobs"]) == set(needed) | watched


async def test_the_operators_own_role_is_what_it_keeps_for_itself(
    chart: Chart, asked: tuple[Cluster, list[Permission]]
) -> None:
    cluster, needed = asked
    for call in OWN.values():
        await call(cluster)
    with_cert_manager = roles(chart, tls={"certManager": {"enabled": True}})
    assert granted(with_cert_manager[NAMESPACE, "llm-tuning-operator"]) == set(needed)
    for call in TLS.values():
        await call(cluster)
    assert granted(roles(chart)[NAMESPACE, "llm-tuning-operator"]) == set(needed)


def test_each_watched_namespace_has_a_role_and_no_other(chart: Chart) -> None:
    found = roles(chart, watchNamespaces=["team-a", "team-b"])
    assert set(found) == {
        (NAMESPACE, "llm-tuning-operator"),
        ("team-a", "llm-tuning-operator-jobs"),
        ("team-b", "llm-tuning-operator-jobs"),
    }


@pytest.mark.parametrize("namespaces", [[], ["team-a", "team-b"]])
def test_only_the_operators_account_has_the_roles(chart: Chart, namespaces: list[str]) -> None:
    bindings = chart.objects("RoleBinding", watchNamespaces=namespaces)
    assert len(bindings) == 1 + len(namespaces or [NAMESPACE])
    for binding in bindings:
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]
        [subject] = binding["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": "llm-tuning-operator", "namespace": NAMESPACE}


def test_nothing_is_allowed_in_the_whole_cluster_unless_all_of_it_is_watched(chart: Chart) -> None:
    for namespaces in ([], ["team-a", "team-b"]):
        kinds = {each["kind"] for each in chart.objects(watchNamespaces=namespaces)}
        assert not kinds & {"ClusterRole", "ClusterRoleBinding"}


def test_the_whole_cluster_is_watched_by_the_same_rules_and_no_more(chart: Chart) -> None:
    objects = chart.objects(watchNamespaces=["*"])
    by_kind = {kind: [each for each in objects if each["kind"] == kind] for kind in ("Role", "ClusterRole")}
    [cluster_role], [own] = by_kind["ClusterRole"], by_kind["Role"]
    assert granted(cluster_role) == granted(roles(chart)[NAMESPACE, "llm-tuning-operator-jobs"])
    assert own["metadata"]["name"] == "llm-tuning-operator"
    assert "namespace" not in cluster_role["metadata"]
    [binding] = [each for each in objects if each["kind"] == "ClusterRoleBinding"]
    assert binding["roleRef"]["kind"] == "ClusterRole"
    assert binding["roleRef"]["name"] == cluster_role["metadata"]["name"]
    assert [(each["name"], each["namespace"]) for each in binding["subjects"]] == [("llm-tuning-operator", NAMESPACE)]
