"""What an InferenceService is made of: who can reach what in its pods, and what ends them."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.agent.contract import AGENT_PORT, API_KEY_VARIABLE, REPORT_URL_VARIABLE, ServeInput
from tests.support.operator_objects import SETTINGS
from tests.support.service_objects import REPORTING, container_of, pod_spec, serving_parts
from tuning_operator.core.cache import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, NETWORK_POLICIES, SERVICES
from tuning_operator.inference_service.scripts import WAIT_FOR_DRAIN_SECONDS
from tuning_operator.pods.network import DNS


def environment(made: dict[str, Any], name: str) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container_of(made, name)["env"]}


def test_the_claim_can_only_be_read() -> None:
    made = pod_spec()
    claims = [volume["persistentVolumeClaim"] for volume in made["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "tuning", "readOnly": True}]
    for name in ("plan", "agent", "vllm"):
        (mount,) = [m for m in container_of(made, name)["volumeMounts"] if m["name"] == "workspace"]
        assert mount["readOnly"] is True


def test_pods_fit_the_restricted_profile_and_reach_no_api_server() -> None:
    made = pod_spec()
    assert made["automountServiceAccountToken"] is False
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in [*made["initContainers"], *made["containers"]]:
        context = each["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_a_cluster_that_assigns_users_finds_none_in_the_pod() -> None:
    assigned = pod_spec(REPORTING.model_copy(update={"cluster_assigns_user": True}))["securityContext"]
    assert pod_spec()["securityContext"] == assigned | {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & assigned.keys()


def test_the_agents_port_is_the_only_one() -> None:
    made = serving_parts()
    containers = made[DEPLOYMENTS]["spec"]["template"]["spec"]["containers"]
    assert [port["containerPort"] for each in containers for port in each.get("ports", ())] == [AGENT_PORT]
    assert made[SERVICES]["spec"]["ports"][0]["targetPort"] == AGENT_PORT
    assert made[NETWORK_POLICIES]["spec"]["ingress"] == [{"ports": [{"port": AGENT_PORT, "protocol": "TCP"}]}]
    for each in containers:
        for probe in (each.get(kind) for kind in ("startupProbe", "readinessProbe", "livenessProbe")):
            assert probe is None or probe["httpGet"]["port"] == AGENT_PORT


def test_a_replica_reaches_names_and_the_operator_alone() -> None:
    names, operator = serving_parts()[NETWORK_POLICIES]["spec"]["egress"]
    assert names == DNS
    assert [peer["namespaceSelector"]["matchLabels"] for peer in operator["to"]] == [
        {"kubernetes.io/metadata.name": SETTINGS.namespace}
    ]
    assert operator["ports"] == [{"port": 8443, "protocol": "TCP"}]


def test_vllm_is_told_to_end_after_its_agent_has_drained() -> None:
    made = pod_spec()
    (command,) = [container_of(made, "vllm")["lifecycle"]["preStop"]["exec"]["command"]]
    assert "drained" in command[-1]
    assert made["terminationGracePeriodSeconds"] > WAIT_FOR_DRAIN_SECONDS


def test_the_key_of_clients_comes_from_the_secret_and_to_the_agent_alone() -> None:
    made = pod_spec(apiKeySecret={"name": "llm-tuning-faq"})
    reference = {"secretKeyRef": {"name": "llm-tuning-faq", "key": "apiKey"}}
    assert environment(made, "agent")[API_KEY_VARIABLE] == reference
    assert API_KEY_VARIABLE not in {**environment(made, "vllm"), **environment(made, "plan")}
    assert API_KEY_VARIABLE not in environment(pod_spec(), "agent")


def test_reports_go_to_the_operator_with_a_token_for_this_service_alone() -> None:
    made = pod_spec()
    url = environment(made, "agent")[REPORT_URL_VARIABLE]
    assert url == "https://op.llm-tuning.svc:8443/v1/namespaces/team/inferenceservices/faq/report"
    (token,) = [v["projected"]["sources"][0]["serviceAccountToken"] for v in made["volumes"] if "projected" in v]
    assert token["audience"].startswith("inferenceservice.tuning.llmtuning.dev/team/faq/")
    assert REPORT_URL_VARIABLE not in environment(pod_spec(SETTINGS), "agent")
    assert serving_parts()[CONFIG_MAPS]["data"]["ca.crt"] == "CERTIFICATE"


@pytest.mark.parametrize(
    ("gpus", "memory", "cache"), [(0, "16Gi", "4"), (0, "2Gi", "1"), (0, "200Gi", "16"), (2, "16Gi", None)]
)
def test_the_cpu_build_is_told_its_cache_and_gpus_are_asked_for(gpus: int, memory: str, cache: str | None) -> None:
    made = pod_spec(resources={"gpus": gpus, "memory": memory})
    assert environment(made, "vllm").get("VLLM_CPU_KVCACHE_SPACE") == cache
    limits = container_of(made, "vllm")["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (str(gpus) if gpus else None)


@pytest.mark.parametrize("gpus", [0, 1])
def test_only_a_replica_with_gpus_gets_the_runtime_class(gpus: int) -> None:
    made = pod_spec(resources={"gpus": gpus, "runtimeClassName": "nvidia"})
    assert made.get("runtimeClassName") == ("nvidia" if gpus else None)
    assert "runtimeClassName" not in pod_spec(resources={"gpus": gpus})


def test_what_vllm_is_started_with_is_what_the_spec_says() -> None:
    made = pod_spec(model={"path": "base/qwen", "name": "qwen-base"}, vllm={"maxLoraRank": 64})
    given = ServeInput.decode(str(environment(made, "plan")["LLM_TUNING_SERVE"]))
    assert (given.model_path, given.base_name, given.vllm.max_lora_rank) == ("base/qwen", "qwen-base", 64)
    assert given.memory_bytes == 16 * 2**30


def test_rollout_and_budget() -> None:
    assert serving_parts()[DEPLOYMENTS]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert BUDGETS not in serving_parts()
    assert serving_parts(replicas=3)[BUDGETS]["spec"]["maxUnavailable"] == 1
