from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_tuning.errors import InputError
from tuning_operator.core.defaults import Defaults
from tuning_operator.core.settings import Settings

VALUES = Path(__file__).parents[4] / "charts/llm-tuning/values.yaml"
REQUIRED = {
    "TUNING_OPERATOR_NAMESPACE": "llm-tuning",
    "TUNING_OPERATOR_OPERATOR_IMAGE": "operator:1",
    "TUNING_OPERATOR_TRAINER_IMAGE": "trainer:1",
}


def test_what_the_chart_must_give_is_enough() -> None:
    settings = Settings.from_environment(REQUIRED | {"PATH": "/bin"})
    assert settings == Settings(namespace="llm-tuning", operator_image="operator:1", trainer_image="trainer:1")


def test_everything_can_be_set() -> None:
    given = {
        "WATCH_NAMESPACES": "a, b,",
        "IMAGE_PULL_POLICY": "Always",
        "IMAGE_PULL_SECRETS": "registry",
        "PROGRESS_URL": "https://operator.ns.svc:8443",
        "ALLOW_CPU_FALLBACK": "true",
        "CLUSTER_ASSIGNS_USER": "true",
        "CHECK_CPU": "1",
        "CHECK_MEMORY": "2Gi",
        "POD_NAME": "operator-0",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "18080",
        "PROGRESS_PORT": "18443",
        "WORKERS": "3",
        "TLS_FOLDER": "/var/run/certificates",
        "GPU_RESOURCE": "nvidia.com/mig-1g.10gb",
        "DEFAULTS": '{"queueName": "everyone"}',
    }
    settings = Settings.from_environment(REQUIRED | {f"TUNING_OPERATOR_{name}": text for name, text in given.items()})
    assert settings.watch_namespaces == ("a", "b")
    assert settings.image_pull_secrets == ("registry",)
    assert (settings.image_pull_policy, settings.progress_url) == ("Always", "https://operator.ns.svc:8443")
    assert (settings.allow_cpu_fallback, settings.cluster_assigns_user) == (True, True)
    assert (settings.check_cpu, settings.check_memory, settings.pod_name) == ("1", "2Gi", "operator-0")
    assert (settings.http_host, settings.http_port, settings.progress_port) == ("127.0.0.1", 18080, 18443)
    assert settings.workers == 3
    assert settings.tls_folder == Path("/var/run/certificates")
    assert (settings.gpu_resource, settings.defaults.queue_name) == ("nvidia.com/mig-1g.10gb", "everyone")


@pytest.mark.parametrize("text", ["", "*", " * "])
def test_a_star_is_the_whole_cluster(text: str) -> None:
    assert Settings.from_environment(REQUIRED | {"TUNING_OPERATOR_WATCH_NAMESPACES": text}).watch_namespaces == ()


def test_every_wrong_default_is_named() -> None:
    wrong = REQUIRED | {"TUNING_OPERATOR_DEFAULTS": '{"queueName": 1, "gpu": {"nodeSelector": []}}'}
    with pytest.raises(InputError) as raised:
        Settings.from_environment(wrong)
    for field in ("queueName", "gpu.nodeSelector"):
        assert f"TUNING_OPERATOR_DEFAULTS.{field}" in str(raised.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {"TUNING_OPERATOR_HTTP_PORT": "eighty", "TUNING_OPERATOR_ALLOW_CPU_FALLBACK": "maybe"}
    with pytest.raises(InputError) as raised:
        Settings.from_environment({"TUNING_OPERATOR_NAMESPACE": "x"} | wrong)
    text = str(raised.value)
    for name in ("OPERATOR_IMAGE", "TRAINER_IMAGE", "HTTP_PORT", "ALLOW_CPU_FALLBACK"):
        assert f"TUNING_OPERATOR_{name}" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WORKERS", "0"),
        ("HTTP_PORT", "65536"),
        ("PROGRESS_PORT", "-1"),
        ("IMAGE_PULL_POLICY", "Sometimes"),
        ("CHECK_CPU", "one"),
        ("CHECK_MEMORY", "1 Gi"),
        ("GPU_RESOURCE", "gpu"),
        ("WATCH_NAMESPACES", "a,*"),
        ("DEFAULTS", "{"),
        ("DEFAULTS", "[]"),
    ],
)
def test_what_would_only_show_when_a_job_is_refused_is_said_at_the_start(name: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"TUNING_OPERATOR_{name}\b.*"):
        Settings.from_environment(REQUIRED | {f"TUNING_OPERATOR_{name}": text})


@pytest.mark.parametrize(("text", "value"), [("", False), ("false", False), ("0", False), ("True", True), ("1", True)])
def test_switches(text: str, value: bool) -> None:
    settings = Settings.from_environment(REQUIRED | {"TUNING_OPERATOR_ALLOW_CPU_FALLBACK": text})
    assert settings.allow_cpu_fallback is value


def test_the_ca_is_filled_in_later() -> None:
    assert Settings.from_environment(REQUIRED).with_ca("PEM").ca_pem == "PEM"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("WORKERS", "1001", "must be at most 1000, got '1001'"),
        ("WORKERS", " 8", "must be a whole number, got ' 8'"),
        ("ALLOW_CPU_FALLBACK", "yes", "must be true or false, got 'yes'"),
        ("CHECK_CPU", "one", "must be a CPU quantity such as 500m or 2, got 'one'"),
        ("IMAGE_PULL_POLICY", "Sometimes", "must be 'Always', 'IfNotPresent' or 'Never', got 'Sometimes'"),
        ("WATCH_NAMESPACES", "a,*", "must be * alone or names, got 'a,*'"),
        ("DEFAULTS", "{", "must be JSON, got '{'"),
    ],
)
def test_an_error_names_the_variable_the_rule_and_the_value(name: str, text: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        Settings.from_environment(REQUIRED | {f"TUNING_OPERATOR_{name}": text})
    (problem,) = raised.value.problems
    assert problem.where == f"TUNING_OPERATOR_{name}"
    assert said in str(problem)


IN_VALUES = {
    "vllm_image": ("images", "vllm"),
    "image_pull_policy": ("images", "pullPolicy"),
    "image_pull_secrets": ("images", "pullSecrets"),
    "watch_namespaces": ("watchNamespaces",),
    "allow_cpu_fallback": ("allowCPUFallback",),
    "cluster_assigns_user": ("clusterAssignsUser",),
    "gpu_resource": ("gpuResource",),
    "check_cpu": ("dataCheck", "cpu"),
    "check_memory": ("dataCheck", "memory"),
    "workers": ("workers",),
    "nodes_interface": ("nodes", "networkInterface"),
    "nodes_rdma_resource": ("nodes", "rdmaResource"),
    "sources_endpoint": ("sources", "endpoint"),
    "sources_ca_bundle": ("sources", "caBundle"),
    "sources_proxy": ("sources", "proxy"),
    "sources_no_proxy": ("sources", "noProxy"),
    "sources_credentials_secret": ("sources", "credentialsSecret"),
}
OF_THE_CHART = {"progress_url", "tls_folder", "pod_name", "http_host", "http_port", "progress_port", "ca_pem"}
"""What the chart's templates give, or nobody; `defaults` is empty on both sides, in forms of their own."""


def test_a_default_is_that_of_values_yaml() -> None:
    values = yaml.safe_load(VALUES.read_text())
    optional = {name for name, field in Settings.model_fields.items() if not field.is_required()}
    assert optional == set(IN_VALUES) | OF_THE_CHART | {"defaults"}
    for name, path in IN_VALUES.items():
        value = values
        for key in path:
            value = value[key]
        value = tuple(value) if isinstance(value, list) else value
        assert Settings.model_fields[name].default == value, name
    assert Settings.from_environment(REQUIRED).defaults == Defaults()
