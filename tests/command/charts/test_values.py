"""Values: the schema knows each one, refuses what is wrong by its name, and what it takes makes whole objects."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, IMAGES, NAMESPACE, Chart, with_value

DIGEST = "@sha256:" + "0123456789abcdef" * 4
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
TOLERATION = {"key": "dedicated", "operator": "Equal", "value": "ops", "effect": "NoSchedule"}
EVERYTHING: dict[str, Any] = {
    "images": IMAGES["images"] | {"vllm": f"registry.example/vllm:1{DIGEST}", "pullSecrets": ["registry"]},
    "gpuResource": "nvidia.com/mig-1g.10gb",
    "defaults": {
        "tracking": {"uri": "http://mlflow:5000", "credentialsSecret": "llm-tuning-mlflow"},
        "queueName": "everyone",
        "gpu": {"nodeSelector": {"gpu": "a100"}, "tolerations": [TOLERATION], "runtimeClassName": "nvidia"},
    },
    "tls": {"certManager": {"enabled": True}},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]},
    "metrics": {
        "monitors": {"enabled": True, "labels": {"release": "prometheus"}},
        "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "workers": 2,
    "dataCheck": {"cpu": "250m", "memory": "2Gi"},
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "podAnnotations": {"example.com/team": "Ops & others"},
    "podLabels": {"team": "ops"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "Exists"}]}]
            }
        }
    },
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [TOLERATION],
    "priorityClassName": "system-cluster-critical",
}
KINDS = {
    "": {"ServiceAccount", "Service", "Deployment", "Role", "RoleBinding", "CustomResourceDefinition", "Pod"},
    "tls": {"Issuer", "Certificate"},
    "networkPolicy": {"NetworkPolicy"},
    "metrics": {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"},
}
CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
SWITCHES = [
    dict(zip(("tls", "networkPolicy", "metrics"), on, strict=True)) for on in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("namespaces", [[], ["team-a", "team-b"], ["*"]], ids=str)
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_combination_gives_whole_objects(chart: Chart, switches: dict[str, int], namespaces: list[str]) -> None:
    plain = {name: value for name, value in EVERYTHING.items() if name not in switches}
    chosen = {name: EVERYTHING[name] for name, on in switches.items() if on}
    objects = chart.objects(watchNamespaces=namespaces, **plain, **chosen)
    wanted = KINDS[""].union(*(KINDS[name] for name in chosen))
    everywhere = {"ClusterRole", "ClusterRoleBinding"} if namespaces == ["*"] else set()
    assert {each["kind"] for each in objects} == wanted | everywhere
    identities = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(set(identities)) == len(identities)
    for each in objects:
        nothing = list(_nothing(each))
        assert nothing == [], f"{each['kind']} {each['metadata']['name']}"
        assert len(each["metadata"]["name"]) <= 63
        if each["kind"] not in CLUSTER_WIDE:
            assert each["metadata"].get("namespace", NAMESPACE) in (NAMESPACE, *namespaces)
            assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def _nothing(value: Any, path: str = "") -> Iterator[str]:
    """Where a template has left a hole: null, or text of Go."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _nothing(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _nothing(inner, f"{path}[{index}]")
    elif value is None or (isinstance(value, str) and re.search(r"<no value>|map\[|%!", value)):
        yield path


def test_the_chart_asks_for_nothing_that_is_not_on_every_cluster(chart: Chart) -> None:
    assert {each["kind"] for each in chart.objects()} == KINDS[""]


IMAGE_NAMES = [
    "operator",
    "localhost/llm-tuning/operator:dev",
    "registry.example:5000/team/operator",
    "registry:5000/operator",
    "Registry.Example/team/a__b/c-d.e:1",
    f"registry.example:5000/team/operator{DIGEST}",
    f"registry.example:5000/team/operator:1.2.3{DIGEST}",
]


WRONG_IMAGES = [
    "UPPER/x",
    "x/UPPER",
    "UPPER",
    "a//b",
    "a./b",
    "-a",
    "https://registry.example/x",
    "x:",
    "registry.example/",
]
WRONG_URIS = [
    "mlflow:5000",
    "mlflow",
    "/srv/mlflow",
    "file:///srv/mlflow",
    "sqlite:////srv/m.db",
    "http://",
    "http:///x",
    "a b",
]


@pytest.mark.parametrize(
    "uri", ["", "http://mlflow:5000", "https://u@h/x?y", "postgresql+psycopg2://h/db", "databricks"]
)
def test_addresses_of_a_tracking_server(chart: Chart, uri: str) -> None:
    assert chart.objects(images=IMAGES["images"], defaults={"tracking": {"uri": uri}})


@pytest.mark.parametrize("image", IMAGE_NAMES)
def test_images_by_tag_or_digest(chart: Chart, image: str) -> None:
    objects = chart.objects(images=IMAGES["images"] | {"operator": image})
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    [test] = [each for each in objects if each["kind"] == "Pod"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == test["spec"]["containers"][0]["image"] == image
    assert {"name": "TUNING_OPERATOR_OPERATOR_IMAGE", "value": image} in container["env"]


_with = partial(with_value, CHART)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"images": {"trainer": "t"}}, "set images.operator"),
        ({"images": {"operator": "o"}}, "set images.trainer"),
        (_with("watchNamespace", "team"), "watchNamespace"),
        (_with("watchNamespaces", ["Team A"]), "watchNamespaces"),
        (_with("watchNamespaces", ["*", "team"]), "watchNamespaces"),
        (_with("allowCPUFallback", "yes"), "allowCPUFallback"),
        (_with("environment", {"TUNING_OPERATOR_WORKERS": "2"}), "environment"),
        (_with("workres", 2), "workres"),
        (_with("workers", "eight"), "workers"),
        (_with("workers", 0), "workers"),
        (_with("workers", 1001), "workers"),
        (_with("dataCheck/cpus", 1), "cpus"),
        (_with("dataCheck/cpu", "1Gi"), "dataCheck/cpu"),
        (_with("dataCheck/memory", "1"), "dataCheck/memory"),
        (_with("dataCheck/memory", "1 Gi"), "dataCheck/memory"),
        (_with("extraEnv", {"HTTPS_PROXY": "http://proxy:3128"}), "extraEnv"),
        (_with("extraEnv", [{"name": "TUNING_OPERATOR_WORKERS", "value": "2"}]), "extraEnv/0/name"),
        (_with("extraEnv", [{"name": "A-B", "value": "x"}]), "extraEnv/0/name"),
        (_with("extraEnv", [{"name": "LIMIT", "value": 2}]), "extraEnv/0/value"),
        (_with("extraEnv", [{"name": "KEY", "valueFrom": {"secretRef": {"name": "a"}}}]), "extraEnv/0/valueFrom"),
        (_with("podLabels", {"app.kubernetes.io/name": "mine"}), "podLabels"),
        (_with("podAnnotations", {"helm.sh/hook": "pre-install"}), "podAnnotations"),
        (_with("affinity", {"nodeAfinity": {}}), "affinity"),
        (_with("images/pullPolicy", "Sometimes"), "pullPolicy"),
        (_with("images/operator", f"registry.example/operator{DIGEST[:-1]}"), "images/operator"),
        *((_with("images/operator", image), "images/operator") for image in WRONG_IMAGES),
        *((_with("defaults/tracking/uri", uri), "tracking/uri") for uri in WRONG_URIS),
        (_with("images/vllm", "Vllm OpenAI"), "images/vllm"),
        (_with("images/vllm", ""), "images/vllm"),
        (_with("images/digest", DIGEST), "digest"),
        (_with("gpuResource", "gpu"), "gpuResource"),
        (_with("defaults/tracking/credentialsSecret", "llm-tuning-mlflow"), "uri"),
        (_with("defaults/tracking", {"uri": "http://m", "credentialsSecret": "database"}), "credentialsSecret"),
        (
            _with("defaults/tracking", {"uri": "http://m", "credentialsSecret": "llm-tuning-operator-tls"}),
            "credentialsSecret",
        ),
        (_with("defaults/queueName", "Team A"), "queueName"),
        (_with("defaults/gpus", 1), "gpus"),
        (_with("defaults/gpu/runtimeClassName", "NVIDIA"), "runtimeClassName"),
        (_with("defaults/gpu/tolerations", [{"effect": "NoSchedule"}]), "tolerations"),
        (_with("tls/certManager/issuerRef", {"kind": "ClusterIssuer"}), "issuerRef"),
        (_with("networkPolicy/apiServerPorts", [0]), "apiServerPorts"),
        (_with("networkPolicy/metricsFrom", [{"namespace": "monitoring"}]), "metricsFrom"),
        (_with("metrics/serviceMonitor", {"enabled": True}), "serviceMonitor"),
        (_with("metrics/monitors/interval", "often"), "interval"),
        (_with("crds/install", True), "install"),
        (_with("resources/request", {"cpu": "1"}), "request"),
        (_with("resources/limits", {"memory": "1 Gi"}), "memory"),
        (_with("nodeSelector", {"gpu": True}), "nodeSelector"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: Chart, values: dict[str, Any], problem: str) -> None:
    done = chart.template(**values)
    assert done.returncode != 0
    assert problem in done.stderr


def _paths(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema with fields of its own."""
    if "properties" in schema and "additionalProperties" in schema:
        yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _paths(inner, f"{path}.{name}")


def test_no_object_takes_fields_that_it_does_not_know() -> None:
    found = dict(_paths(SCHEMA))
    assert {".images", ".defaults.tracking", ".defaults.gpu", ".tls.certManager", ".metrics.monitors"} <= found.keys()
    assert {path for path, schema in found.items() if schema["additionalProperties"] is not False} == set()


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    assert set(values) == set(SCHEMA["properties"]) - {"global"}
    for path, schema in _paths(SCHEMA):
        inner = values
        for part in path.split(".")[1:]:
            inner = inner[part] or {}
        # Kubernetes' own fields, and those of an issuer, have no default of ours.
        if path not in (".resources", ".affinity", ".tls.certManager.issuerRef"):
            assert set(inner) == set(schema["properties"]) - {"global"}, path
