"""The CRDs on a real API server: its verdict on every spec of the corpus is pydantic's, and refusals name the field."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster.cluster import Clients, KubectlError
from llm_tuning.api import Condition, Evaluation, Progress, TuningJobStatus, inference_service, tuning_job
from llm_tuning.api.inference_service import AdapterStatus, InferenceServiceStatus
from llm_tuning.api.kube import API_VERSION
from llm_tuning.core.model import ApiModel
from tests.support.api_proxy import client_context, server_of
from tests.support.spec_corpus import CORPORA, INFERENCE_SERVICE, TUNING_JOB, Case, Change, Corpus

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AT_ONCE = 8
KINDS = pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.kind.name)


@pytest.fixture
def namespace(cluster: Clients) -> Any:
    with cluster.namespace() as name:
        yield name


@pytest.fixture
async def api(cluster: Clients, namespace: str) -> AsyncIterator[httpx.AsyncClient]:
    """Requests below the namespace; what kubectl does is asked for by the tests that are about it."""
    url = f"{server_of(cluster.kubeconfig)}/apis/{API_VERSION}/namespaces/{namespace}"
    async with httpx.AsyncClient(base_url=url, verify=client_context(cluster.kubeconfig), timeout=60) as client:
        yield client


def body(corpus: Corpus, name: str, spec: dict[str, Any], version: str = "") -> dict[str, Any]:
    metadata = {"name": name, **({"resourceVersion": version} if version else {})}
    return {"apiVersion": API_VERSION, "kind": corpus.kind.name, "metadata": metadata, "spec": spec}


async def send(
    api: httpx.AsyncClient, method: str, path: str, content: dict[str, Any], *, dry: bool = False
) -> tuple[bool, dict[str, Any]]:
    """Whether it was taken, and the answer; anything but a verdict fails the test."""
    query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry else {})}
    answer = await api.request(
        method, path, content=json.dumps(content), params=query, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 201, 400, 422), answer.text
    return answer.is_success, answer.json()


@KINDS
async def test_the_api_server_agrees_with_pydantic_on_every_spec(api: httpx.AsyncClient, corpus: Corpus) -> None:
    """tests/unit/llm_tuning/api holds pydantic to the same table."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def disagreement(case: Case) -> str | None:
        async with gate:
            content = body(corpus, "corpus", case.spec)
            taken, answer = await send(api, "POST", f"/{corpus.kind.plural}", content, dry=True)
        if taken != case.good:
            return f"{case.name}: {'taken' if taken else answer['message']}"
        if not taken and f"spec.{case.field}" not in answer["message"]:
            return f"{case.name}: the refusal does not name spec.{case.field}: {answer['message']}"
        return None

    cases = corpus.cases()
    found = [text for text in await asyncio.gather(*map(disagreement, cases)) if text]
    good = sum(case.good for case in cases)
    print(
        f"{corpus.kind.name}: {len(cases)} specs, {good} good and {len(cases) - good} bad: {len(found)} disagreements"
    )
    assert not found, "\n".join(found)


@KINDS
async def test_a_change_is_taken_or_the_refusal_names_the_field(api: httpx.AsyncClient, corpus: Corpus) -> None:
    """Nothing is dry here: a refused step must leave the object as it was."""
    gate, at = asyncio.Semaphore(AT_ONCE), f"/{corpus.kind.plural}"

    async def disagreements(number: int, change: Change) -> list[str]:
        async with gate:
            name, found = f"change-{number}", []
            taken, answer = await send(api, "POST", at, body(corpus, name, change.applied))
            assert taken, f"{change.name}: {answer['message']}"
            version = answer["metadata"]["resourceVersion"]
            for number_of_step, (spec, good) in enumerate(change.steps):
                taken, answer = await send(api, "PUT", f"{at}/{name}", body(corpus, name, spec, version))
                if taken:
                    version = answer["metadata"]["resourceVersion"]
                if taken != good:
                    found.append(f"{change.name}, step {number_of_step}: {'taken' if taken else answer['message']}")
                elif not taken and f"spec.{change.field}: " not in answer["message"]:
                    found.append(f"{change.name}, step {number_of_step}: {answer['message']}")
            return found

    changes = corpus.changes()
    found = [
        text for texts in await asyncio.gather(*map(disagreements, range(len(changes)), changes)) for text in texts
    ]
    steps = sum(len(change.steps) for change in changes)
    print(f"{corpus.kind.name}: {len(changes)} changes in {steps} steps: {len(found)} disagreements")
    assert not found, "\n".join(found)


@KINDS
async def test_a_name_is_taken_or_the_refusal_names_it(api: httpx.AsyncClient, corpus: Corpus) -> None:
    for names, good in zip(corpus.names, (True, False), strict=True):
        for name in names:
            content = body(corpus, name, corpus.minimal)
            taken, answer = await send(api, "POST", f"/{corpus.kind.plural}", content, dry=True)
            assert taken == good, f"{name}: {answer}"
            assert taken or "metadata.name" in answer["message"]


async def test_defaults_show_in_the_stored_object(api: httpx.AsyncClient) -> None:
    _, stored = await send(api, "POST", "/tuningjobs", body(TUNING_JOB, "defaults", TUNING_JOB.minimal))
    spec = stored["spec"]
    assert (spec["mode"], spec["retries"], spec["suspend"]) == ("sft", 3, False)
    assert (spec["training"]["epochs"], spec["lora"]["rank"], spec["resources"]["memory"]) == (1, 16, "8Gi")
    assert "learningRate" not in spec["training"], "its default depends on the mode"
    assert "serve" not in spec, "nothing is served unasked"


async def test_defaults_of_a_service_show_in_the_stored_object(api: httpx.AsyncClient) -> None:
    routes = [{"name": "faq", "targets": [{"tuningJob": "faq"}]}]
    content = body(INFERENCE_SERVICE, "defaults", {**INFERENCE_SERVICE.minimal, "routes": routes})
    _, stored = await send(api, "POST", "/inferenceservices", content)
    spec = stored["spec"]
    assert (spec["replicas"], spec["rollout"]) == (1, {"maxSurge": 1, "maxUnavailable": 0})
    assert spec["resources"] == {"gpus": 1, "cpu": "2", "memory": "16Gi"}
    assert spec["routes"][0]["targets"] == [{"tuningJob": "faq", "weight": 1}]
    assert spec["vllm"] == {}, "vLLM has its own defaults"


CONDITION = Condition(type="Ready", status="Unknown", reason="Waiting", message="step 4", observed_generation=1)
JOB_STATUS = TuningJobStatus(
    observed_generation=1,
    phase="Training",
    model_id="ft_sft_tiny_1_abcdef",
    adapter_path="models/ft_sft_tiny_1_abcdef",
    mlflow_run_id="0123",
    job_name="status-train",
    start_time="2026-01-01T00:00:00Z",
    completion_time="2026-01-01T00:00:00Z",
    start_adapter_model_id="ft_sft_tiny_0_abcdef",
    progress=Progress(
        percent=40, step=4, total_steps=10, epoch=0.4, loss=1.5, tokens_per_second=9.5, remaining_seconds=6
    ),
    evaluation=Evaluation.model_validate(
        {name: 5 if name == "held_out_rows" else 1.5 for name in Evaluation.model_fields}
    ),
    conditions=[CONDITION],
)
SERVICE_STATUS = InferenceServiceStatus(
    observed_generation=1,
    url="http://status.team.svc:8000",
    replicas=2,
    ready_replicas=1,
    selector="tuning.llmtuning.dev/service=status",
    adapters=[
        AdapterStatus(
            model_id="ft_a",
            tuning_job="faq",
            loaded_replicas=1,
            effective="True",
            reason="Effective",
            message="proven",
        )
    ],
    conditions=[CONDITION],
)


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
    assert set(wanted) == {field.alias for field in type(status).model_fields.values()}, "every field is written"
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


def explain(cluster: Clients, path: str) -> str:
    """In one line; with the version, as KServe may have a kind of the same name."""
    shown = " ".join(cluster.kubectl("explain", path, f"--api-version={API_VERSION}").split())
    assert "<no description>" not in shown, f"{path}: {shown}"
    return shown


def test_explain_is_the_manual(cluster: Clients) -> None:
    training = explain(cluster, "tuningjob.spec.training")
    assert "How the optimizer goes through the rows. Immutable." in training
    assert "Passes over the training rows. Default 1, from 1 to 1000." in training
    assert "Peak learning rate; default 2e-4 for sft and 5e-5 for ppo. From 1e-10 to 0.1." in training
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
