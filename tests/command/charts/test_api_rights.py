"""The API's Role allows exactly what its backend asks of the API server: nothing missing, nothing unused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api.kube import API_VERSION
from llm_tuning.openai_api.backend import Backend
from llm_tuning.openai_api.cluster import ClusterBackend
from tests.support.chart import API_CHART, Chart
from tests.support.fake_api_server import FakeApiServer

SPEC = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}}
JOB = {
    "apiVersion": API_VERSION,
    "kind": "TuningJob",
    "metadata": {"name": "faq"},
    "spec": {**SPEC, "dataset": {"path": "datasets/faq.jsonl"}},
}
SERVICE = {"apiVersion": API_VERSION, "kind": "InferenceService", "metadata": {"name": "faq"}, "spec": SPEC}
PATCH = {"metadata": {"annotations": {"a": "b"}}}

ASKS: dict[str, Callable[[ClusterBackend], Awaitable[Any]]] = {
    "create_job": lambda backend: backend.create_job(JOB),
    "jobs": lambda backend: backend.jobs({"a": "b"}),
    "job": lambda backend: backend.job("faq"),
    "change_job": lambda backend: backend.change_job("faq", PATCH),
    "create_service": lambda backend: backend.create_service(SERVICE),
    "services": lambda backend: backend.services(),
    "change_service": lambda backend: backend.change_service("faq", PATCH),
}
ASKS_NOTHING = {"root", "claim", "is_hopeless", "url", "run", "close"}
WRITES = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
PATH = re.compile(r"/apis/(?P<group>[^/]+)/[^/]+/namespaces/[^/]+/(?P<resource>[^/?]+)(/(?P<name>[^/?]+))?(\?.*)?")
Permission = tuple[str, str, str]
"""Verb, group and resource."""


def asked(method: str, path: str) -> Permission:
    found = PATH.fullmatch(path)
    assert found is not None, path
    reads = "get" if found["name"] else "watch" if "watch=true" in path else "list"
    return WRITES.get(method, reads), found["group"], found["resource"]


def test_every_call_of_the_backend_is_in_one_of_the_tables() -> None:
    public = {name for name, _ in inspect.getmembers(Backend) if not name.startswith("_")}
    assert ASKS.keys() | ASKS_NOTHING == public


@pytest.fixture
def api(helm: Path) -> Chart:
    return Chart(helm, API_CHART)


async def test_the_role_is_what_the_backend_asks_for(api: Chart, tmp_path: Path) -> None:
    server = FakeApiServer()
    await server.start()
    backend = ClusterBackend(server.connection, tmp_path, "tuning")
    try:
        for ask in ASKS.values():
            await ask(backend)
    finally:
        await backend.close()
        await server.stop()
    needed = {asked(method, path) for method, path, _, _ in server.requests}
    [role] = [each for each in api.objects("Role") if each["metadata"]["name"] == "llm-tuning-api"]
    assert all("resourceNames" not in rule for rule in role["rules"])
    granted = [
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    assert len(granted) == len(set(granted))
    assert set(granted) == needed
