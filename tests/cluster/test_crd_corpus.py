"""The CRDs on a real API server: its verdict on every spec of the corpus is pydantic's, and refusals name the field."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster.cluster import Clients
from llm_tuning.api.kube import API_VERSION
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
    for name, spec, good in corpus.named():
        taken, answer = await send(api, "POST", f"/{corpus.kind.plural}", body(corpus, name, spec), dry=True)
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


def explain(cluster: Clients, path: str) -> str:
    """In one line; with the version, as KServe may have a kind of the same name."""
    shown = " ".join(cluster.kubectl("explain", path, f"--api-version={API_VERSION}").split())
    assert "<no description>" not in shown, f"{path}: {shown}"
    return shown
