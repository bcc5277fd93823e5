"""The CRDs as kubectl has them: examples, scale, merges, explain, short names."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from devcluster.cluster import Clients, KubectlError
from llm_tuning.api import inference_service, tuning_job
from llm_tuning.core.model import ApiModel
from tests.cluster.test_crd_corpus import EXAMPLES, api, body, explain, namespace, send
from tests.support.spec_corpus import INFERENCE_SERVICE, TUNING_JOB, Corpus
from tests.support.spec_corpus.statuses import JOB_STATUS, SERVICE_STATUS

__all__ = ["api", "namespace"]  # fixtures of the tests below


@pytest.mark.parametrize(
    ("corpus", "status", "read"),
    [
        pytest.param(TUNING_JOB, JOB_STATUS, tuning_job.read_status, id="TuningJob"),
        pytest.param(INFERENCE_SERVICE, SERVICE_STATUS, inference_service.read_status, id="InferenceService"),
    ],
)
async def test_a_status_is_stored_as_the_models_write_it(
    api: httpx.AsyncClient, corpus: Corpus, status: ApiModel, read: Callable[[object], ApiModel]
) -> None:
    """A field that the schema lacks would be pruned in silence."""
    at = f"/{corpus.kind.plural}"
    _, stored = await send(api, "POST", at, body(corpus, "status", corpus.minimal))
    wanted = status.model_dump(by_alias=True, exclude_none=True)
    taken, answer = await send(api, "PUT", f"{at}/status/status", {**stored, "status": wanted})
    assert taken, answer
    assert answer["status"] == wanted
    assert read(answer["status"]) == status


async def test_a_service_is_scaled_by_kubectl(api: httpx.AsyncClient, cluster: Clients, namespace: str) -> None:
    """What a HorizontalPodAutoscaler does, bounds included; the rest of the spec stays."""
    _, stored = await send(api, "POST", "/inferenceservices", body(INFERENCE_SERVICE, "scaled", INFERENCE_SERVICE.full))
    status = SERVICE_STATUS.model_dump(by_alias=True)
    await send(api, "PUT", "/inferenceservices/scaled/status", {**stored, "status": status})
    kubectl = partial(cluster.kubectl, "-n", namespace)
    kubectl("scale", "tisvc/scaled", "--replicas=5")
    after = json.loads(kubectl("get", "tisvc", "scaled", "-o", "json"))
    assert after["spec"] == {**stored["spec"], "replicas": 5}
    assert after["metadata"]["generation"] == 2
    scale = json.loads(kubectl("get", "tisvc", "scaled", "--subresource=scale", "-o", "json"))
    assert scale["spec"] == {"replicas": 5}
    assert scale["status"] == {"replicas": 2, "selector": "tuning.llmtuning.dev/service=status"}
    with pytest.raises(KubectlError, match=r"spec\.replicas: Invalid value"):
        kubectl("scale", "tisvc/scaled", "--replicas=65")
    kubectl("scale", "tisvc/scaled", "--replicas=0", "--current-replicas=5")
    assert kubectl("get", "tisvc", "scaled", "-o", "jsonpath={.spec.replicas}") == "0"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("tuningjob*.yaml")), ids=lambda path: path.name)
def test_an_example_is_applied_by_kubectl(cluster: Clients, namespace: str, example: Path) -> None:
    applied = cluster.kubectl("-n", namespace, "apply", "--validate=strict", "-f", str(example), "-o", "json")
    assert json.loads(applied)["spec"]["training"]["learningRate"] in (2e-4, 5e-5), "YAML 5e-5 is a number"
    again = cluster.kubectl("-n", namespace, "apply", "--validate=strict", "-f", str(example))
    assert "unchanged" in again


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("inferenceservice*.yaml")), ids=lambda path: path.name)
def test_an_example_of_a_service_is_applied_by_kubectl(cluster: Clients, namespace: str, example: Path) -> None:
    kubectl = partial(cluster.kubectl, "-n", namespace)
    kubectl("apply", "--validate=strict", "-f", str(example))
    assert "unchanged" in kubectl("apply", "--validate=strict", "-f", str(example))


def test_routes_of_two_managers_are_merged_by_name(cluster: Clients, namespace: str) -> None:
    """A list that is a map: who applies one route leaves the others."""
    kubectl = partial(cluster.kubectl, "-n", namespace)
    for name in ("faq", "support"):
        spec = {**INFERENCE_SERVICE.minimal, "routes": [{"name": name, "targets": [{"modelId": "ft_a"}]}]}
        text = json.dumps(body(INFERENCE_SERVICE, "shared", spec))
        kubectl("apply", "--server-side", f"--field-manager={name}", "-f", "-", input=text)
    assert kubectl("get", "tisvc", "shared", "-o", "jsonpath={.spec.routes[*].name}") == "faq support"


def test_the_weights_of_the_canary_are_patched_as_its_example_tells(cluster: Clients, namespace: str) -> None:
    kubectl = partial(cluster.kubectl, "-n", namespace)
    example = EXAMPLES / "inferenceservice-canary.yaml"
    (command,) = re.findall(r"kubectl (patch .*)", example.read_text())
    kubectl("apply", "-f", str(example))
    kubectl(*shlex.split(command))
    assert kubectl("get", "tisvc", "faq", "-o", "jsonpath={.spec.routes[0].targets[*].weight}") == "90 0"


def test_kubectl_names_a_misspelt_field(cluster: Clients, namespace: str) -> None:
    text = (EXAMPLES / "tuningjob.yaml").read_text().replace("learningRate", "learnRate")
    with pytest.raises(KubectlError, match=r"unknown field \"spec\.training\.learnRate\""):
        cluster.kubectl("-n", namespace, "apply", "-f", "-", input=text)


def test_explain_is_the_manual(cluster: Clients) -> None:
    training = explain(cluster, "tuningjob.spec.training")
    assert "How the optimizer goes through the rows. Immutable." in training
    assert "Passes over the training rows. Default 1, from 1 to 1000." in training
    assert (
        "Peak learning rate; default 2e-4 for sft, 5e-5 for ppo, 5e-5 for dpo and 5e-5 for kto. From 1e-10 to 0.1."
        in training
    )
    for path in ("", ".spec", ".spec.lora", ".spec.ppo", ".spec.resources.tolerations", ".spec.serve", ".status"):
        explain(cluster, f"tuningjob{path}")


def test_explain_is_the_manual_of_a_service_too(cluster: Clients) -> None:
    routes = explain(cluster, "inferenceservice.spec.routes")
    assert "Names that clients use, and the adapters behind them. Changing them restarts nothing." in routes
    assert "name <string> -required- What clients send as `model`; unique, and not the base's name." in routes
    assert "targets <[]Object> -required- Adapters that share the route's requests by weight." in routes
    weight = explain(cluster, "inferenceservice.spec.routes.targets.weight")
    assert "0 keeps the adapter loaded without requests. Default 1, from 0 to 1000." in weight
    vllm = explain(cluster, "inferenceservice.spec.vllm")
    assert "Engine flags of vLLM: an allow-list. Changing one is a rollout." in vllm
    assert "Share of the GPU's memory that vLLM takes; without it vLLM's own default. From 0.1 to 0.99." in vllm
    assert "Highest rank of an adapter: 8, 16, 32, 64, 128, 256, 320 or 512; without it" in vllm, (
        "kubectl cuts its enum"
    )
    for path in ("", ".spec", ".spec.model", ".spec.rollout", ".spec.apiKeySecret", ".spec.resources", ".status"):
        explain(cluster, f"inferenceservice{path}")


def test_it_is_found_by_its_short_name_and_its_category(cluster: Clients, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "apply", "-f", str(EXAMPLES / "tuningjob.yaml"))
    header, row = cluster.kubectl("-n", namespace, "get", "tj").splitlines()
    assert header.split() == ["NAME", "MODE", "PHASE", "PROGRESS", "LOSS", "ETA", "STALLED", "AGE"]
    assert row.split()[:2] == ["faq", "sft"]
    assert "MODEL" in cluster.kubectl("-n", namespace, "get", "tj", "-o", "wide").splitlines()[0].split()
    assert "faq" in cluster.kubectl("-n", namespace, "get", "tuning")


def test_a_service_is_found_by_its_short_name_and_the_category(cluster: Clients, namespace: str) -> None:
    kubectl = partial(cluster.kubectl, "-n", namespace)
    for name in ("tuningjob", "inferenceservice"):
        kubectl("apply", "-f", str(EXAMPLES / f"{name}.yaml"))
    header, row = kubectl("get", "tisvc").splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "REPLICAS", "URL", "AGE"]
    assert row.split()[0] == "faq"
    found = kubectl("get", "tuning", "-o", "name").split()
    assert found == ["inferenceservice.tuning.llmtuning.dev/faq", "tuningjob.tuning.llmtuning.dev/faq"]
