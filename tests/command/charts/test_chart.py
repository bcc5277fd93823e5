"""What the chart installs, by the real helm: restricted pods, the names that pods rely on, wrong values refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning import __version__
from tests.support.chart import CHART, IMAGES, NAMESPACE, Chart
from tuning_operator.core.defaults import Defaults
from tuning_operator.core.settings import Settings

CRDS = CHART.parents[1] / "crds"


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_helm_finds_nothing_wrong(helm: Path) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_operator_at_a_time(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_pod_is_restricted_and_cannot_write_to_its_image(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp"]
    assert container["resources"]["limits"]["memory"]


def test_a_cluster_that_assigns_users_finds_none_in_the_charts_pods(chart: Chart) -> None:
    objects = chart.objects(clusterAssignsUser=True)
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    [test] = [each for each in objects if each["kind"] == "Pod"]
    for pod in (deployment["spec"]["template"]["spec"], test["spec"]):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert settings(chart, clusterAssignsUser=True).cluster_assigns_user is True


def test_probes_ask_for_what_the_operator_answers(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    paths = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
    assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"http"}


def test_training_pods_find_the_progress_server_under_the_name_they_are_given(chart: Chart) -> None:
    objects = chart.objects()
    [service] = [each for each in objects if each["kind"] == "Service"]
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    ports = {port["name"]: port for port in service["spec"]["ports"]}
    name = service["metadata"]["name"]
    url = environment(deployment)["TUNING_OPERATOR_PROGRESS_URL"]
    assert url == f"https://{name}.{NAMESPACE}.svc:{ports['progress']['port']}"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert {port["targetPort"] for port in ports.values()} == {port["name"] for port in container["ports"]}


def test_values_reach_the_operator(chart: Chart) -> None:
    [deployment] = chart.objects(
        "Deployment",
        watchNamespaces=["team-a", "team-b"],
        allowCPUFallback=True,
        images=IMAGES["images"] | {"pullPolicy": "Never", "pullSecrets": ["one", "two"]},
        workers=2,
        dataCheck={"cpu": 2, "memory": "2Gi"},
        extraEnv=[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    )
    found = environment(deployment)
    assert found["TUNING_OPERATOR_WATCH_NAMESPACES"] == "team-a,team-b"
    assert found["TUNING_OPERATOR_ALLOW_CPU_FALLBACK"] == "true"
    assert found["TUNING_OPERATOR_IMAGE_PULL_POLICY"] == "Never"
    assert found["TUNING_OPERATOR_IMAGE_PULL_SECRETS"] == "one,two"
    assert found["TUNING_OPERATOR_WORKERS"] == "2"
    assert found["TUNING_OPERATOR_CHECK_CPU"] == "2"
    assert found["TUNING_OPERATOR_CHECK_MEMORY"] == "2Gi"
    assert found["HTTPS_PROXY"] == "http://proxy:3128"
    assert deployment["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]


def settings(chart: Chart, **values: Any) -> Settings:
    """What the operator makes of its environment."""
    [deployment] = chart.objects("Deployment", **values)
    fields_of_pod = {"metadata.namespace": NAMESPACE, "metadata.name": "the-pod"}
    found = {
        name: value if isinstance(value, str) else fields_of_pod[value["fieldRef"]["fieldPath"]]
        for name, value in environment(deployment).items()
    }
    return Settings.from_environment(found)


@pytest.mark.parametrize(
    "values",
    [
        {"workers": 1, "dataCheck": {"cpu": 0.5, "memory": "512Mi"}},
        {"workers": 1000, "dataCheck": {"cpu": "1.5", "memory": "1.5G"}},
    ],
)
def test_what_the_chart_takes_the_operator_takes(chart: Chart, values: dict[str, Any]) -> None:
    found = settings(chart, **values)
    assert found.workers == values["workers"]
    assert found.check_cpu == str(values["dataCheck"]["cpu"])
    assert found.check_memory == values["dataCheck"]["memory"]


def test_every_setting_of_the_operator_has_its_value(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment", tls={"certManager": {"enabled": True}})
    fixed_by_the_ports_of_the_chart = {"http_host", "http_port", "progress_port"}
    filled_in_by_the_operator = {"ca_pem"}
    fields = set(Settings.model_fields)
    given = {name.removeprefix("TUNING_OPERATOR_").lower() for name in environment(deployment)}
    assert given == fields - fixed_by_the_ports_of_the_chart - filled_in_by_the_operator


def test_the_operator_understands_its_environment(chart: Chart) -> None:
    assert settings(chart, allowCPUFallback=True) == Settings(
        namespace=NAMESPACE,
        operator_image=IMAGES["images"]["operator"],
        trainer_image=IMAGES["images"]["trainer"],
        watch_namespaces=(NAMESPACE,),
        progress_url=f"https://llm-tuning-operator.{NAMESPACE}.svc:8443",
        allow_cpu_fallback=True,
        pod_name="the-pod",
    )


def test_labels_of_the_chart_cannot_be_given_anew(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    for name in deployment["spec"]["template"]["metadata"]["labels"]:
        done = chart.template(**IMAGES, podLabels={name: "mine"})
        assert f"podLabels/{name.replace('/', '~1')}" in done.stderr, name


def test_ports_are_those_that_the_operator_listens_at(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    fields = Settings.model_fields
    assert ports == {"http": fields["http_port"].default, "progress": fields["progress_port"].default}


def test_both_pods_of_the_chart_get_labels_annotations_and_placement(chart: Chart) -> None:
    affinity = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    objects = chart.objects(
        podLabels={"team": "ops"}, podAnnotations={"sidecar.istio.io/inject": "false"}, affinity=affinity
    )
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    [test] = [each for each in objects if each["kind"] == "Pod"]
    for pod in (deployment["spec"]["template"], test):
        assert pod["metadata"]["labels"]["team"] == "ops"
        assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        assert pod["spec"]["affinity"] == affinity
    assert "helm.sh/hook" in test["metadata"]["annotations"]
    assert "team" not in deployment["spec"]["selector"]["matchLabels"]


def test_defaults_are_what_the_operator_reads(chart: Chart) -> None:
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    gpu = {"nodeSelector": {"gpu": "a100"}, "tolerations": [toleration], "runtimeClassName": "nvidia"}
    tracking = {"uri": "http://mlflow.mlops.svc:5000", "credentialsSecret": "llm-tuning-mlflow"}
    [deployment] = chart.objects(
        "Deployment",
        gpuResource="nvidia.com/mig-3g.40gb",
        defaults={"tracking": tracking, "queueName": "everyone", "gpu": gpu},
    )
    found = environment(deployment)
    assert found["TUNING_OPERATOR_GPU_RESOURCE"] == "nvidia.com/mig-3g.40gb"
    secret = {"name": "llm-tuning-mlflow"}
    assert Defaults.parse(json.loads(found["TUNING_OPERATOR_DEFAULTS"])) == Defaults.parse(
        {"tracking": tracking | {"credentialsSecret": secret}, "queueName": "everyone", "gpu": gpu}
    )


def test_the_chart_sets_no_default_of_its_own(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    assert Defaults.parse(json.loads(environment(deployment)["TUNING_OPERATOR_DEFAULTS"])) == Defaults()


def test_a_star_is_the_whole_cluster(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment", watchNamespaces=["*"])
    assert environment(deployment)["TUNING_OPERATOR_WATCH_NAMESPACES"] == "*"


def test_the_release_namespace_is_watched_where_nothing_else_is_said(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    assert environment(deployment)["TUNING_OPERATOR_WATCH_NAMESPACES"] == NAMESPACE


def test_the_version_is_the_packages() -> None:
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert described["appVersion"] == described["version"] == __version__


def test_the_crds_are_those_of_the_repository() -> None:
    ours = {file.name: file.read_bytes() for file in CRDS.glob("*.yaml")}
    copied = {file.name: file.read_bytes() for file in (CHART / "files" / "crds").iterdir()}
    assert ours
    assert copied == ours


def test_crds_stay_when_the_release_goes(chart: Chart) -> None:
    originals = {
        each["metadata"]["name"]: each for each in map(yaml.safe_load, map(Path.read_text, CRDS.glob("*.yaml")))
    }
    installed = chart.objects("CustomResourceDefinition")
    for crd in installed:
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert {each["metadata"]["name"]: each for each in installed} == originals


def test_crds_can_be_left_out_or_go_with_the_release(chart: Chart) -> None:
    assert chart.objects("CustomResourceDefinition", crds={"enabled": False}) == []
    for crd in chart.objects("CustomResourceDefinition", crds={"keep": False}):
        assert "annotations" not in crd["metadata"]


def test_the_notes_name_the_first_commands(helm: Path) -> None:
    images = [f"--set=images.{name}={image}" for name, image in IMAGES["images"].items()]
    command = [helm, "install", "llm-tuning", CHART, "--namespace", NAMESPACE, "--dry-run=client", *images]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    notes = done.stdout.partition("NOTES:")[2]
    commands = [line.split()[:2] for line in notes.splitlines() if line.startswith("  ")]
    assert commands == [["helm", "test"], ["kubectl", "explain"], ["kubectl", "get"]], done.stdout + done.stderr
