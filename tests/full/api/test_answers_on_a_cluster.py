"""What a job of the fine-tuning API has trained answers at the same base_url, by a real vLLM in a pod."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.api_site import NAME, TRAINER, ApiSite, wait_for_end
from tests.support.node_sdk import node_sdk, run_node
from tests.support.openai_local import rows_of
from tests.support.serving import (
    ANSWER_TOKENS,
    BASE,
    PROMPT,
    VLLM_IMAGE,
    ServedFiles,
    condition_of,
    greedy_answer,
    make_files,
    put,
    status_of,
    wait_for,
)
from tests.support.tuning_namespace import TRAINER_IMAGE, tuning_namespace, wait_until

SERVICE = f"api-{BASE}"
SERVICES = "inferenceservices.tuning.llmtuning.dev"
SECRET = "llm-tuning-api-serving"
LEARNING = {"maxSteps": 20, "batchSize": 8, "maxLength": 64, "learningRate": 0.02}
SERVING = {"resources": {"gpus": 0, "cpu": "200m", "memory": "4Gi"}, "vllm": {"maxModelLen": 512}}
BASES: dict[str, Any] = {BASE: {"path": f"base/{BASE}", "resources": TRAINER, "training": LEARNING, "serving": SERVING}}
HOW: dict[str, Any] = {"messages": PROMPT, "max_tokens": ANSWER_TOKENS, "temperature": 0}
ASKED = "Once upon a time"
RETRIES = 20
"""Of the SDK, which waits the 30 s of each Retry-After."""
NODE = """
const OpenAI = require("openai");
const client = new OpenAI();

(async () => {
  const given = JSON.parse(process.argv[2]);
  const ask = { ...given, stream: true, stream_options: { include_usage: true } };
  const found = { text: "", pieces: 0, tokens: 0 };
  found.whole = (await client.chat.completions.create(given)).choices[0].message.content;
  const { model, max_tokens } = given;
  const plain = { model, max_tokens, temperature: 0, prompt: process.argv[3] };
  found.plain = (await client.completions.create(plain)).choices[0].text;
  for await (const chunk of await client.chat.completions.create(ask)) {
    found.text += chunk.choices[0]?.delta?.content ?? "";
    found.pieces += 1;
    found.tokens = chunk.usage?.completion_tokens ?? found.tokens;
  }
  console.log(JSON.stringify(found));
})();
"""


@dataclass
class Answering:
    """The API, what its models should say, and the jobs that have made them."""

    site: ApiSite
    key: str
    client: openai.OpenAI
    files: ServedFiles
    models: list[str]

    def say(self, model: str, *, retries: int = 0) -> str:
        """Ask as a script does; `retries` is how often the SDK tries again by itself."""
        chat = self.client.with_options(max_retries=retries).chat.completions
        return chat.create(model=model, **HOW).choices[0].message.content or ""

    def trained(self, model_id: str, folder: Path) -> str:
        """What transformers and PEFT say with the adapter that a job has left on the claim."""
        pack = f"tar c -C /workspace/models {model_id} | base64"
        packed = self.site.space.kubectl("exec", f"deployment/{NAME}", "-c", "api", "--", "sh", "-c", pack)
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as archive:
            archive.extractall(folder, filter="data")
        return greedy_answer(self.files.base, folder / model_id)

    def routes(self) -> list[str]:
        service = self.site.space.get(SERVICES, SERVICE) or {"spec": {"routes": []}}
        return [route["name"] for route in service["spec"]["routes"]]


@pytest.fixture(scope="module")
def answering(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    files = make_files(tmp_path_factory.mktemp("claim"), {})
    vllm = {"values": {"images.vllm": VLLM_IMAGE}, "images": (VLLM_IMAGE,)}
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE, **vllm) as space:  # type: ignore[arg-type]
        put(space, files.folder)
        space.kubectl("create", "secret", "generic", SECRET, "--from-literal=apiKey=of-the-services-alone")
        site = ApiSite(space)
        key = site.api_key("create", "first")
        site.install(BASES, "--set", "waitSeconds=2", "--set", f"apiKeySecret.name={SECRET}")
        with site.client(key, strict=False) as client:  # vLLM's answers have fields of its own
            yield Answering(site, key, client, files, [])


def test_two_jobs_become_routes_of_one_service_that_is_not_there_yet(answering: Answering) -> None:
    client, space = answering.client, answering.site.space
    file = client.files.create(file=("rows.jsonl", rows_of()), purpose="fine-tune")
    jobs = [
        client.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix=name, seed=seed)
        for seed, name in enumerate(("faq", "other"))
    ]
    done = [wait_for_end(client, job.id, 400) for job in jobs]
    assert [(job.status, job.error) for job in done] == [("succeeded", None)] * 2
    answering.models += [str(job.fine_tuned_model) for job in done]
    wait_until(lambda: sorted(answering.routes()) == sorted(answering.models), 30, "both routes")
    made = space.get(SERVICES, SERVICE) or {}
    assert made["spec"]["model"]["path"] == f"base/{BASE}"
    assert made["spec"]["apiKeySecret"]["name"] == SECRET
    with pytest.raises(openai.InternalServerError, match=f"InferenceService {SERVICE} is not ready") as refused:
        answering.say(answering.models[0])
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (503, "model_not_ready", "model")
    assert refused.value.response.headers["retry-after"] == "30"


def test_each_answers_as_its_adapter_does(answering: Answering, tmp_path: Path) -> None:
    """The SDK waits by itself until the first answer."""
    said = [answering.say(model, retries=RETRIES) for model in answering.models]
    wait_for(answering.site.space, SERVICE, seconds=60)
    adapters = status_of(answering.site.space, SERVICE)["adapters"]
    assert {(each["effective"], each["reason"]) for each in adapters} == {("True", "Effective")}
    by_route = {route["name"]: route["targets"][0]["modelId"] for route in _service(answering)["spec"]["routes"]}
    assert said == [answering.trained(by_route[model], tmp_path) for model in answering.models]
    said.append(answering.say(BASE))
    assert said[-1] == answering.files.answers[BASE]
    assert len({*said}) == len(said), "each answers recognisably"


def _service(answering: Answering) -> dict[str, Any]:
    return answering.site.space.get(SERVICES, SERVICE) or {}


def test_an_answer_is_streamed_to_both_sdks(answering: Answering) -> None:
    model = answering.models[0]
    whole = answering.say(model)
    with answering.client.chat.completions.create(model=model, stream=True, **HOW) as chunks:
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 1
    node_sdk()
    with answering.site.base_url() as base_url:
        found = run_node(NODE, json.dumps({"model": model, **HOW}), ASKED, base_url=base_url, key=answering.key)
    assert found["whole"] == found["text"] == whole
    plain = answering.client.completions.create(model=model, prompt=ASKED, max_tokens=ANSWER_TOKENS, temperature=0)
    assert found["plain"] == plain.choices[0].text != ""
    assert found["pieces"] > 1
    assert 0 < found["tokens"] <= ANSWER_TOKENS


def test_a_deleted_model_is_gone_and_the_other_one_answers_on(answering: Answering) -> None:
    client, (first, second) = answering.client, answering.models
    before = [pod["metadata"]["uid"] for pod in _replicas(answering)]
    assert client.models.delete(first).deleted
    assert answering.routes() == [second]
    assert first not in {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        answering.say(first)
    assert answering.say(second, retries=3) != ""
    assert [pod["metadata"]["uid"] for pod in _replicas(answering)] == before, "no vLLM is started again"
    assert condition_of(answering.site.space, SERVICE)[0] == "True"


def _replicas(answering: Answering) -> list[dict[str, Any]]:
    return answering.site.space.list("pods", f"tuning.llmtuning.dev/inference-service={SERVICE}")
