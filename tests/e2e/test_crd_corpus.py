"""The CRD on a real API server: its verdict on every spec of the corpus is pydantic's, and refusals name the field."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster.cluster import Clients, KubectlError
from llm_tuning.api import Condition, Evaluation, Progress, TuningJobStatus
from llm_tuning.api.kube import API_VERSION
from llm_tuning.api.tuning_job import KIND, read_status
from tests.support import spec_corpus
from tests.support.api_proxy import client_context, server_of

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AT_ONCE = 8


@pytest.fixture
def namespace(cluster: Clients) -> Any:
    with cluster.namespace() as name:
        yield name


@pytest.fixture
async def jobs(cluster: Clients, namespace: str) -> AsyncIterator[httpx.AsyncClient]:
    """Requests below the namespace's TuningJobs; what kubectl does is asked for by the tests that are about it."""
    url = f"{server_of(cluster.kubeconfig)}/apis/{API_VERSION}/namespaces/{namespace}/tuningjobs"
    async with httpx.AsyncClient(base_url=url, verify=client_context(cluster.kubeconfig), timeout=60) as client:
        yield client


def body(name: str, spec: dict[str, Any], version: str = "") -> str:
    metadata = {"name": name, **({"resourceVersion": version} if version else {})}
    return json.dumps({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec})


async def send(
    jobs: httpx.AsyncClient, method: str, path: str, content: str, *, dry: bool = False
) -> tuple[bool, dict[str, Any]]:
    """Whether it was taken, and the answer; anything but a verdict fails the test."""
    query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry else {})}
    answer = await jobs.request(
        method, path, content=content, params=query, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 201, 400, 422), answer.text
    return answer.is_success, answer.json()


async def test_the_api_server_agrees_with_pydantic_on_every_spec(jobs: httpx.AsyncClient) -> None:
    """tests/llm_tuning/api holds pydantic to the same table."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def disagreement(case: spec_corpus.Case) -> str | None:
        async with gate:
            taken, answer = await send(jobs, "POST", "", body("corpus", case.spec), dry=True)
        if taken != case.good:
            return f"{case.name}: {'taken' if taken else answer['message']}"
        if not taken and f"spec.{case.field}" not in answer["message"]:
            return f"{case.name}: the refusal does not name spec.{case.field}: {answer['message']}"
        return None

    cases = spec_corpus.cases()
    found = [text for text in await asyncio.gather(*map(disagreement, cases)) if text]
    good = sum(case.good for case in cases)
    print(f"{len(cases)} specs, {good} good and {len(cases) - good} bad: {len(found)} disagreements")
    assert not found, "\n".join(found)


async def test_only_suspend_and_ttl_can_be_changed(jobs: httpx.AsyncClient) -> None:
    """Nothing is dry here: a refused step must leave the object as it was."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def disagreements(number: int, change: spec_corpus.Change) -> list[str]:
        async with gate:
            name, found = f"change-{number}", []
            taken, answer = await send(jobs, "POST", "", body(name, change.applied))
            assert taken, f"{change.name}: {answer['message']}"
            version = answer["metadata"]["resourceVersion"]
            for number_of_step, (spec, good) in enumerate(change.steps):
                taken, answer = await send(jobs, "PUT", f"/{name}", body(name, spec, version))
                if taken:
                    version = answer["metadata"]["resourceVersion"]
                if taken != good:
                    found.append(f"{change.name}, step {number_of_step}: {'taken' if taken else answer['message']}")
                elif not taken and f"spec.{change.field}: " not in answer["message"]:
                    found.append(f"{change.name}, step {number_of_step}: {answer['message']}")
            return found

    changes = spec_corpus.changes()
    found = [
        text for texts in await asyncio.gather(*map(disagreements, range(len(changes)), changes)) for text in texts
    ]
    print(f"{len(changes)} changes in {sum(len(change.steps) for change in changes)} steps: {len(found)} disagreements")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "good"), [("x" * 50, True), ("x" * 51, False), ("a.b", True), ("A", False), ("a_b", False)]
)
async def test_names_have_at_most_50_characters(jobs: httpx.AsyncClient, name: str, good: bool) -> None:
    taken, answer = await send(jobs, "POST", "", body(name, spec_corpus.MINIMAL), dry=True)
    assert taken == good
    assert taken or "metadata.name" in answer["message"]


async def test_defaults_show_in_the_stored_object(jobs: httpx.AsyncClient) -> None:
    _, stored = await send(jobs, "POST", "", body("defaults", spec_corpus.MINIMAL))
    spec = stored["spec"]
    assert (spec["mode"], spec["retries"], spec["suspend"]) == ("sft", 3, False)
    assert (spec["training"]["epochs"], spec["lora"]["rank"], spec["resources"]["memory"]) == (1, 16, "8Gi")
    assert "learningRate" not in spec["training"], "its default depends on the mode"


async def test_a_status_is_stored_as_the_models_write_it(jobs: httpx.AsyncClient) -> None:
    """A field that the schema lacks would be pruned in silence."""
    progress = Progress(
        percent=40, step=4, total_steps=10, epoch=0.4, loss=1.5, tokens_per_second=9.5, remaining_seconds=6
    )
    numbers = {name: 5 if name == "held_out_rows" else 1.5 for name in Evaluation.model_fields}
    condition = Condition(type="Trained", status="Unknown", reason="Training", message="step 4", observed_generation=1)
    status = TuningJobStatus(
        observed_generation=1,
        phase="Training",
        model_id="ft_sft_tiny_1_abcdef",
        adapter_path="models/ft_sft_tiny_1_abcdef",
        mlflow_run_id="0123",
        job_name="status-train",
        start_time="2026-01-01T00:00:00Z",
        completion_time="2026-01-01T00:00:00Z",
        start_adapter_model_id="ft_sft_tiny_0_abcdef",
        progress=progress,
        evaluation=Evaluation.model_validate(numbers),
        conditions=[condition],
    )
    _, stored = await send(jobs, "POST", "", body("status", spec_corpus.MINIMAL))
    wanted = status.model_dump(by_alias=True, exclude_none=True)
    assert set(wanted) == {field.alias for field in TuningJobStatus.model_fields.values()}, "every field is written"
    taken, answer = await send(jobs, "PUT", "/status/status", json.dumps({**stored, "status": wanted}))
    assert taken, answer
    assert answer["status"] == wanted
    assert read_status(answer["status"]) == status


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("tuningjob*.yaml")), ids=lambda path: path.name)
def test_an_example_is_applied_by_kubectl(cluster: Clients, namespace: str, example: Path) -> None:
    applied = cluster.kubectl("-n", namespace, "apply", "--validate=strict", "-f", str(example), "-o", "json")
    assert json.loads(applied)["spec"]["training"]["learningRate"] in (2e-4, 5e-5), "YAML 5e-5 is a number"
    again = cluster.kubectl("-n", namespace, "apply", "--validate=strict", "-f", str(example))
    assert "unchanged" in again


def test_kubectl_names_a_misspelt_field(cluster: Clients, namespace: str) -> None:
    text = (EXAMPLES / "tuningjob.yaml").read_text().replace("learningRate", "learnRate")
    with pytest.raises(KubectlError, match=r"unknown field \"spec\.training\.learnRate\""):
        cluster.kubectl("-n", namespace, "apply", "-f", "-", input=text)


def test_explain_is_the_manual(cluster: Clients) -> None:
    training = cluster.kubectl("explain", "tuningjob.spec.training")
    assert "How the optimizer goes through the rows. Immutable." in " ".join(training.split())
    assert "Passes over the training rows. Default 1, from 1 to 1000." in " ".join(training.split())
    assert "Peak learning rate; default 2e-4 for sft and 5e-5 for ppo. From 1e-10 to 0.1." in " ".join(training.split())
    for path in ("", ".spec", ".spec.training", ".spec.lora", ".spec.ppo", ".spec.resources.tolerations", ".status"):
        shown = cluster.kubectl("explain", f"tuningjob{path}")
        assert "<no description>" not in shown, f"{path}: {shown}"


def test_it_is_found_by_its_short_name_and_its_category(cluster: Clients, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "apply", "-f", str(EXAMPLES / "tuningjob.yaml"))
    header, row = cluster.kubectl("-n", namespace, "get", "tj").splitlines()
    assert header.split() == ["NAME", "MODE", "PHASE", "PROGRESS", "LOSS", "ETA", "AGE"]
    assert row.split()[:2] == ["faq", "sft"]
    assert "MODEL" in cluster.kubectl("-n", namespace, "get", "tj", "-o", "wide").splitlines()[0].split()
    assert "faq" in cluster.kubectl("-n", namespace, "get", "tuning")
