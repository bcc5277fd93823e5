"""The chart of the fine-tuning API by the real helm: what it installs, what it mounts, what it may, what it refuses."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning import __version__
from llm_tuning.agent.contract import AGENT_PORT, API_KEY_VARIABLE
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.keys import SECRET_NAME
from llm_tuning.openai_api.names import MODELS, UPLOADS
from llm_tuning.openai_api.server import DRAIN_SECONDS
from tests.command.charts.test_values import _nothing
from tests.support.chart import API_CHART, NAMESPACE, NEEDED, Chart, with_value
from tuning_operator.core.constants import LABEL_SERVICE

NAME = "llm-tuning-api"
TEST = f"{NAME}-test"
TOLERATION = {"key": "dedicated", "operator": "Equal", "value": "ops", "effect": "NoSchedule"}
BASE = {
    "uri": "hf://Qwen/Qwen3-8B",
    "credentialsSecret": {"name": "llm-tuning-hub"},
    "resources": {"gpus": 2, "cpu": 4, "memory": "64Gi", "nodeSelector": {"gpu": "h100"}},
    "training": {"epochs": 2, "learningRate": 5e-5, "maxSteps": 1_000_000},
    "lora": {"rank": 32},
    "queueName": "team",
    "tracking": {"uri": "http://mlflow:5000"},
    "serving": {"always": True, "replicas": 2, "resources": {"gpus": 1}},
}
EVERYTHING: dict[str, Any] = {
    "image": {"name": "registry.example/operator:1", "pullPolicy": "Always", "pullSecrets": ["registry"]},
    "replicas": 2,
    "claimName": "tuning",
    "organization": "acme",
    "bases": {"gpt-4.1-mini": BASE, "tiny": {"path": "base/tiny"}},
    "keys": {"secrets": ["one", "two"]},
    "limits": {"fileSize": "1Gi", "requestsPerMinute": 0, "uploadsPerDay": "50Gi"},
    "waitSeconds": 0,
    "deleteAdapters": True,
    "apiKeySecret": {"name": "llm-tuning-services", "key": "token"},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]},
    "ingress": {"enabled": True, "className": "nginx", "host": "tune.example", "tlsSecret": "tls"},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["tune.example"]},
    "monitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podAnnotations": {"example.com/team": "Ops & others"},
    "podLabels": {"team": "ops"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [TOLERATION],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "high",
}
ALWAYS = {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Service", "Deployment", "Secret", "Pod"}


@pytest.fixture(scope="session")
def api(helm: Path) -> Chart:
    return Chart(helm, API_CHART)


def one(api: Chart, kind: str, name: str = NAME, **values: Any) -> dict[str, Any]:
    [found] = [each for each in api.objects(kind, **values) if each["metadata"]["name"] == name]
    return found


def pod_of(api: Chart, **values: Any) -> dict[str, Any]:
    pod: dict[str, Any] = one(api, "Deployment", **values)["spec"]["template"]["spec"]
    return pod


def mounts_of(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def options_of(container: dict[str, Any]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=") for word in container["command"] if word.startswith("--"))


# --- what is installed -----------------------------------------------------------------------------------------------


def test_helm_finds_nothing_wrong(helm: Path, tmp_path: Path) -> None:
    for number, values in enumerate((NEEDED[API_CHART], EVERYTHING)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(values))
        command = [helm, "lint", "--strict", API_CHART, "--values", file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_asked_for_that_is_not_on_every_cluster(api: Chart) -> None:
    assert {each["kind"] for each in api.objects()} == ALWAYS | {"NetworkPolicy"}


SWITCHES = {
    "networkPolicy": "NetworkPolicy",
    "ingress": "Ingress",
    "httpRoute": "HTTPRoute",
    "monitor": "ServiceMonitor",
}


@pytest.mark.parametrize("on", list(itertools.product((False, True), repeat=4)), ids=str)
def test_every_combination_gives_whole_objects(api: Chart, on: tuple[bool, ...]) -> None:
    chosen = dict(zip(SWITCHES, on, strict=True))
    given = {name: {**EVERYTHING[name], "enabled": enabled} for name, enabled in chosen.items()}
    objects = api.objects(**(EVERYTHING | given))
    kinds = {SWITCHES[name] for name, enabled in chosen.items() if enabled}
    assert {each["kind"] for each in objects} == ALWAYS | {"PodDisruptionBudget"} | kinds
    identities = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(identities)) == len(identities)
    for each in objects:
        assert list(_nothing(each)) == [], f"{each['kind']} {each['metadata']['name']}"
        assert each["metadata"].get("namespace", NAMESPACE) == NAMESPACE
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def test_every_pod_is_restricted_and_cannot_write_to_its_image(api: Chart) -> None:
    for assigned in (False, True):
        test = one(api, "Pod", TEST, clusterAssignsUser=assigned)["spec"]
        served = pod_of(api, clusterAssignsUser=assigned)
        user = {} if assigned else {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
        for pod in (test, served):
            assert pod["securityContext"] == {
                "runAsNonRoot": True,
                **user,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert container["resources"]["limits"]["memory"]


def test_the_server_sees_uploads_and_models_of_the_claim_and_nothing_else_of_it(api: Chart) -> None:
    for deletes in (False, True):
        pod = pod_of(api, deleteAdapters=deletes)
        [container], [folders] = pod["containers"], pod["initContainers"]
        root = options_of(container)["root"]
        claimed = {path: mount for path, mount in mounts_of(container).items() if mount["name"] == "claim"}
        assert {path: mount["subPath"] for path, mount in claimed.items()} == {
            f"{root}/{UPLOADS}": str(UPLOADS),
            f"{root}/{MODELS}": str(MODELS),
        }
        assert "readOnly" not in claimed[f"{root}/{UPLOADS}"]
        assert claimed[f"{root}/{MODELS}"].get("readOnly", False) is not deletes
        assert folders["command"] == ["mkdir", "-p", *claimed]
        assert mounts_of(folders) == {root: {"name": "claim", "mountPath": root}}
    [claim] = [volume for volume in pod["volumes"] if volume["name"] == "claim"]
    assert claim["persistentVolumeClaim"] == {"claimName": "tuning"}


def test_keys_are_mounted_from_secrets_that_need_not_be_there(api: Chart) -> None:
    for values, secrets in (({}, [SECRET_NAME, TEST]), ({"keys": {"secrets": ["one", "two"]}}, ["one", "two", TEST])):
        pod = pod_of(api, **values)
        [container] = pod["containers"]
        volumes = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
        assert [volume["secretName"] for volume in volumes.values()] == secrets
        assert all(volume["optional"] is True for volume in volumes.values())
        folder = options_of(container)["keys"]
        for path, mount in mounts_of(container).items():
            if mount["name"] in volumes:
                assert path == f"{folder}/{volumes[mount['name']]['secretName']}"
                assert mount["readOnly"] is True
                assert "subPath" not in mount, "the kubelet does not bring changes into one"


def test_the_settings_are_what_the_server_reads(api: Chart, tmp_path: Path) -> None:
    def settings(**values: Any) -> Settings:
        pod = pod_of(api, **values)
        options = options_of(pod["containers"][0])
        [text] = one(api, "ConfigMap", **values)["data"].values()
        file = tmp_path / Path(options["settings"]).name
        file.write_text(text)
        mount = mounts_of(pod["containers"][0])[str(Path(options["settings"]).parent)]
        assert {"name": mount["name"], "configMap": {"name": NAME}} in pod["volumes"]
        return Settings.load(file)

    plain = NEEDED[API_CHART]
    assert settings() == Settings.parse({"organization": NAMESPACE, "claimName": "tuning", "bases": plain["bases"]}), (
        "the chart sets no default of its own"
    )
    given = ("organization", "claimName", "bases", "limits", "waitSeconds", "deleteAdapters", "apiKeySecret")
    assert settings(**EVERYTHING) == Settings.parse({name: EVERYTHING[name] for name in given})
    assert set(Settings.model_fields) == {re.sub("([A-Z])", r"_\1", name).lower() for name in given}
    long = Chart(api.helm, API_CHART).template("--namespace", "a-namespace-with-a-name-of-its-own", **plain)
    assert '"organization": "a-namespace-with-a-name"' in long.stdout, "24 characters, none a - at the end"


def test_a_change_of_settings_replaces_the_pods_one_by_one(api: Chart) -> None:
    def marked(**values: Any) -> str:
        return str(one(api, "Deployment", **values)["spec"]["template"]["metadata"]["annotations"])

    assert marked() == marked()
    assert marked() == marked(replicas=3)
    assert marked() != marked(waitSeconds=31)
    strategy = one(api, "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_streams_under_way_may_end(api: Chart) -> None:
    pod = pod_of(api)
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + DRAIN_SECONDS


def test_probes_ports_and_the_program_are_those_of_the_server(api: Chart) -> None:
    [container] = pod_of(api)["containers"]
    assert container["command"][:3] == ["python", "-m", "llm_tuning.openai_api"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    [port] = container["ports"]
    assert options_of(container)["port"] == str(port["containerPort"])
    service = one(api, "Service")["spec"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": port["name"]}]
    template = one(api, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= template.items()
    assert not service["selector"].items() <= one(api, "Pod", TEST)["metadata"]["labels"].items()


def test_the_key_of_services_reaches_the_server_by_its_secret(api: Chart) -> None:
    [container] = pod_of(api)["containers"]
    assert "env" not in container
    for secret, key in (({"name": "llm-tuning-s"}, "apiKey"), ({"name": "llm-tuning-s", "key": "token"}, "token")):
        [container] = pod_of(api, apiKeySecret=secret)["containers"]
        reference = {"secretKeyRef": {"name": "llm-tuning-s", "key": key}}
        assert container["env"] == [{"name": API_KEY_VARIABLE, "valueFrom": reference}]


# --- who may what ----------------------------------------------------------------------------------------------------


def test_only_the_apis_account_has_its_role(api: Chart) -> None:
    for name in (NAME, TEST):
        binding = one(api, "RoleBinding", name)
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}]
        assert one(api, "ServiceAccount", name)["automountServiceAccountToken"] is False
    assert pod_of(api)["serviceAccountName"] == NAME
    assert not {each["kind"] for each in api.objects(**EVERYTHING)} & {"ClusterRole", "ClusterRoleBinding"}


def test_the_account_of_helm_test_may_write_its_own_secret_and_all_of_it_goes(api: Chart) -> None:
    rules = one(api, "Role", TEST)["rules"]
    assert rules == [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [TEST], "verbs": ["patch"]}]
    hooks = [each for each in api.objects() if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    assert {each["kind"] for each in hooks} == {"Secret", "ServiceAccount", "Role", "RoleBinding", "Pod"}
    for each in hooks:
        annotations = each["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "test"
        policies = set(annotations["helm.sh/hook-delete-policy"].split(","))
        kept = set() if each["kind"] != "Pod" else {"hook-failed"}
        assert policies == {"before-hook-creation", "hook-succeeded", "hook-failed"} - kept
        assert (annotations.get("helm.sh/hook-weight") == "-1") is (each["kind"] != "Pod"), "the pod comes last"
        assert "data" not in each, "no key is in the release"


def test_the_pod_of_helm_test_runs_what_is_there_against_the_service(api: Chart) -> None:
    pod = one(api, "Pod", TEST)["spec"]
    [container] = pod["containers"]
    assert find_spec(container["command"][2]) is not None
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment == {"OPENAI_BASE_URL": f"http://{NAME}.{NAMESPACE}.svc/v1", "KEY_SECRET": TEST}
    assert pod["serviceAccountName"] == TEST
    assert pod["containers"][0]["image"] == pod_of(api)["containers"][0]["image"]


def test_the_policy_lets_in_clients_and_out_to_names_the_api_server_and_services(api: Chart) -> None:
    policy = one(api, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == one(api, "Deployment")["spec"]["selector"]["matchLabels"]
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    dns, server, services = policy["egress"]
    assert {(each["port"], each["protocol"]) for each in dns["ports"]} == {
        (port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")
    }
    assert [each["port"] for each in server["ports"]] == [443, 6443]
    selector = {"matchExpressions": [{"key": LABEL_SERVICE, "operator": "Exists"}]}
    assert services == {
        "to": [{"podSelector": selector}],
        "ports": [{"port": AGENT_PORT, "protocol": "TCP"}],
    }
    [rule] = one(api, "NetworkPolicy", **EVERYTHING)["spec"]["ingress"]
    labels = one(api, "Pod", TEST, **EVERYTHING)["metadata"]["labels"]
    gateway, test = rule["from"]
    assert gateway == EVERYTHING["networkPolicy"]["from"][0]
    assert test["podSelector"]["matchLabels"].items() <= labels.items()


def test_only_the_api_is_seen_from_outside(api: Chart) -> None:
    [rule] = one(api, "Ingress", **EVERYTHING)["spec"]["rules"]
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [("/v1", "Prefix")]
    [route] = one(api, "HTTPRoute", **EVERYTHING)["spec"]["rules"]
    assert route["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    backend = one(api, "Service")
    assert route["backendRefs"] == [{"name": NAME, "port": backend["spec"]["ports"][0]["port"]}]


# --- values ----------------------------------------------------------------------------------------------------------


wrong = partial(with_value, API_CHART)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (wrong("image/name", ""), "set image.name: the operator's image"),
        (wrong("claimName", ""), "set claimName: the PersistentVolumeClaim"),
        (wrong("bases", {}), "set bases: the base models by the names that scripts use"),
        (wrong("ingress/enabled", True), "set ingress.host"),
        (wrong("httpRoute/enabled", True), "set httpRoute.parentRefs"),
        (wrong("organization", "a" * 24) | {"bases": {"b" * 27: {"path": "b"}}}, "at most 50 characters together"),
        (wrong("image/name", "UPPER/x"), "image/name"),
        (wrong("imgae", {}), "imgae"),
        (wrong("replicas", "two"), "replicas"),
        (wrong("organization", "Acme Inc"), "organization"),
        (wrong("bases/gpt 4", {"path": "base/x"}), "gpt 4"),
        (wrong("bases/tiny", {}), "path"),
        (wrong("bases/tiny", {"path": "base/x", "uri": "hf://a/b"}), "bases/tiny"),
        (wrong("bases/tiny", {"path": "../x"}), "bases/tiny/path"),
        (wrong("bases/tiny", {"path": "b", "lora": {"rnk": 8}}), "rnk"),
        (wrong("bases/tiny", {"path": "b", "lora": {"rank": 0}}), "lora/rank"),
        (wrong("bases/tiny", {"path": "b", "training": {"epochs": 0}}), "training/epochs"),
        (wrong("bases/tiny", {"path": "b", "serving": {"replica": 2}}), "replica"),
        (wrong("keys/secrets", ["Mine"]), "keys/secrets/0"),
        (wrong("keys/names", []), "names"),
        (wrong("limits/fileSize", "4"), "limits/fileSize"),
        (wrong("limits/requestsPerMinute", -1), "requestsPerMinute"),
        (wrong("waitSeconds", 301), "waitSeconds"),
        (wrong("apiKeySecret", {"name": "database"}), "apiKeySecret"),
        (wrong("networkPolicy/apiServerPorts", []), "apiServerPorts"),
        (wrong("ingress/host", "https://tune.example"), "ingress/host"),
        (wrong("monitor/interval", "often"), "interval"),
        (wrong("podLabels", {"app.kubernetes.io/name": "mine"}), "podLabels"),
    ],
)
def test_wrong_values_are_refused_by_name(api: Chart, values: dict[str, Any], problem: str) -> None:
    done = api.template(**values)
    assert done.returncode != 0
    assert problem in done.stderr


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    schema = json.loads((API_CHART / "values.schema.json").read_text())
    values = yaml.safe_load((API_CHART / "values.yaml").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, inner in schema["properties"].items():
        if "properties" in inner and name not in ("resources", "affinity"):
            assert set(values[name]) == set(inner["properties"]), name
            assert inner["additionalProperties"] is False


def test_the_version_is_the_packages() -> None:
    described = yaml.safe_load((API_CHART / "Chart.yaml").read_text())
    assert described["appVersion"] == described["version"] == __version__


def test_the_notes_name_the_address_and_the_first_commands(helm: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(EVERYTHING))
    command = [helm, "install", "x", API_CHART, "--namespace", "team", "--dry-run=client", "--values", values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    notes = done.stdout.partition("NOTES:")[2]
    assert "http://llm-tuning-api.team.svc/v1 and https://tune.example/v1." in notes
    assert "Its bases: gpt-4.1-mini, tiny." in notes
    commands = [line.split()[:3] for line in notes.splitlines() if line.startswith("  ")]
    assert commands == [
        ["kubectl", "tuning", "api-key"],
        ["helm", "test", "x"],
        ["kubectl", "port-forward", f"service/{NAME}"],
    ]
