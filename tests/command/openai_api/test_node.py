"""OpenAI's SDK for Node on the server as a process: files, jobs, models and chats, and refusals as it throws them."""

from __future__ import annotations

import json
from typing import Any

from tests.support.api_process import Server
from tests.support.fake_api_server import FakeApiServer
from tests.support.node_sdk import run_node
from tests.support.openai_api import make_run
from tests.support.openai_chats import CITY, USAGE, WEATHER, tune_and_serve, wait_for_routes
from tests.support.openai_world import SUCCEEDED

CREATES = """
const OpenAI = require("openai");
const client = new OpenAI();
const found = {};

async function refusal(doing) {
  try { await doing; } catch (error) {
    return { type: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

(async () => {
  const rows = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\\n';
  const upload = await OpenAI.toFile(Buffer.from(rows), "rows.jsonl");
  const file = await client.files.create({ file: upload, purpose: "fine-tune" });
  const same = (await (await client.files.content(file.id)).text()) === rows;
  found.file = { bytes: (await client.files.retrieve(file.id)).bytes, same };
  const ask = { model: "tiny", training_file: file.id };
  const job = await client.fineTuning.jobs.create({
    ...ask, suffix: "node", metadata: { team: "a" },
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2 } } },
  });
  found.job = job.id;
  found.epochs = job.method.supervised.hyperparameters.n_epochs;
  const once = { headers: { "Idempotency-Key": "once" } };
  const twice = [await client.fineTuning.jobs.create(ask, once), await client.fineTuning.jobs.create(ask, once)];
  found.once = twice[0].id === twice[1].id;
  found.inUse = await refusal(client.files.delete(file.id));
  found.noFile = await refusal(client.fineTuning.jobs.create({ model: "tiny", training_file: "file-none" }));
  found.noModel = await refusal(client.fineTuning.jobs.create({ ...ask, model: "gpt-4o" }));
  found.unknown = await refusal(client.fineTuning.jobs.create({ ...ask, priority: 1 }));
  found.noJob = await refusal(client.fineTuning.jobs.retrieve("ftjob-none"));
  found.states = [
    (await client.fineTuning.jobs.pause(twice[0].id)).status,
    (await client.fineTuning.jobs.resume(twice[0].id)).status,
    (await client.fineTuning.jobs.cancel(twice[0].id)).status,
  ];
  found.jobs = [];
  for await (const each of client.fineTuning.jobs.list({ limit: 1 })) found.jobs.push(each.id);
  found.chosen = [];
  for await (const each of client.fineTuning.jobs.list({ metadata: { team: "a" } })) found.chosen.push(each.id);
  console.log(JSON.stringify(found));
})();
"""
READS = """
const OpenAI = require("openai");
const client = new OpenAI();
(async () => {
  const job = await client.fineTuning.jobs.retrieve(process.argv[2]);
  const found = { status: job.status, tokens: job.trained_tokens, model: job.fine_tuned_model, events: [], steps: [] };
  for await (const each of client.fineTuning.jobs.listEvents(job.id, { limit: 2 })) found.events.push(each.message);
  for await (const each of client.fineTuning.jobs.checkpoints.list(job.id)) found.steps.push(each.step_number);
  found.csv = await (await client.files.content(job.result_files[0])).text();
  found.purposes = [];
  for await (const each of client.files.list({ limit: 1, order: "asc" })) found.purposes.push(each.purpose);
  found.deleted = (await client.files.delete(job.training_file)).deleted;
  console.log(JSON.stringify(found));
})();
"""

CHATS = """
const OpenAI = require("openai");
const client = new OpenAI();
const [model, weather] = [process.argv[2], JSON.parse(process.argv[3])];
const messages = [{ role: "user", content: "Hi" }];
const found = {};

const call = (choice) => {
  const [one] = choice.message.tool_calls;
  return [choice.finish_reason, one.function.name, JSON.parse(one.function.arguments)];
};

(async () => {
  const whole = await client.chat.completions.create({ model, messages });
  found.whole = whole.choices[0].message.content;
  found.pieces = [];
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ model, messages, ...options })) {
    found.pieces.push(...chunk.choices.map((choice) => choice.delta.content ?? ""));
    found.tokens = chunk.usage?.total_tokens;
  }
  const helper = client.chat.completions.stream({ model, messages });
  found.helper = (await helper.finalChatCompletion()).choices[0].message.content;

  const tools = [weather];
  found.call = call((await client.chat.completions.create({ model, messages, tools })).choices[0]);
  found.streamedCall = call(
    (await client.chat.completions.stream({ model, messages, tools }).finalChatCompletion()).choices[0]);
  const asked = [];
  const sun = ({ city }) => { asked.push(city); return "Sun"; };
  const runnable = { ...weather.function, parse: JSON.parse, function: sun };
  const runner = client.chat.completions.runTools({
    model, messages, stream: true, tools: [{ type: "function", function: runnable }] });
  found.afterTools = [await runner.finalContent(), asked];
  const plain = await client.completions.create({ model, prompt: "Grüße" });
  found.plain = plain.choices[0].text;
  found.plainPieces = [];
  for await (const each of await client.completions.create({ model, prompt: "Grüße", stream: true })) {
    found.plainPieces.push(each.choices[0].text);
  }
  await client.chat.completions.create({ model: "gpt-none", messages, ...options }).catch((error) => {
    found.unknown = { type: error.constructor.name, status: error.status, code: error.code, param: error.param };
  });
  console.log(JSON.stringify(found));
})();
"""
MODELS = """
const OpenAI = require("openai");
const client = new OpenAI();
const model = process.argv[2];
const found = { models: [] };
const failure = async (doing) => {
  try { await doing; } catch (error) { return [error.status, error.code, error.param]; }
};
(async () => {
  for await (const each of client.models.list()) found.models.push(each.id);
  found.read = await client.models.retrieve(model);
  found.base = await client.models.retrieve("tiny");
  found.refused = await failure(client.models.delete("tiny"));
  found.deleted = await client.models.delete(model);
  found.left = [];
  for await (const each of client.models.list()) found.left.push(each.id);
  found.gone = await failure(client.models.retrieve(model));
  found.chat = await failure(client.chat.completions.create({ model, messages: [{ role: "user", content: "Hi" }] }));
  console.log(JSON.stringify(found));
})();
"""


def _run(server: Server, key: str, script: str, *arguments: str) -> dict[str, Any]:
    return run_node(script, *arguments, base_url=f"http://127.0.0.1:{server.port}/v1", key=key)


def test_the_sdk_for_node_makes_and_reads_files_and_jobs(server: Server, api_server: FakeApiServer) -> None:
    key = server.add_key("node")
    server.start()
    found = _run(server, key, CREATES)
    assert found["file"] == {"bytes": 93, "same": True}
    assert (found["epochs"], found["once"]) == (2, True)
    assert found["states"] == ["paused", "queued", "cancelled"]
    assert len(found["jobs"]) == 2
    assert found["chosen"] == [found["job"]]
    bad = {"type": "BadRequestError", "status": 400}
    assert found["inUse"] == {**bad, "code": "file_in_use", "param": "id"}
    assert found["noFile"] == {**bad, "code": "invalid_training_file", "param": "training_file"}
    assert found["unknown"] == {**bad, "code": "unknown_parameter", "param": "priority"}
    missing = {"type": "NotFoundError", "status": 404}
    assert found["noModel"] == {**missing, "code": "model_not_found", "param": "model"}
    assert found["noJob"]["code"] == "fine_tuning_job_not_found"

    make_run(server.folder / "claim", SUCCEEDED["modelId"], [(1, {"train/loss": 2.5}), (2, {"train/loss": 2.0})])
    raw = api_server.cluster.get("tuningjobs", found["job"])
    assert raw is not None
    api_server.cluster.change("tuningjobs", raw | {"status": SUCCEEDED})
    read = _run(server, key, READS, found["job"])
    assert (read["status"], read["tokens"], read["steps"], read["deleted"]) == ("succeeded", 1234, [2], True)
    assert read["model"].startswith("ft:tiny:acme:node:")
    assert read["events"][-1] == f"job {found['job']} is created"
    assert read["csv"].splitlines()[1].startswith("1,2.5")
    assert sorted(read["purposes"]) == ["fine-tune", "fine-tune-results"]


def test_the_sdk_for_node_chats_and_streams_and_calls_tools(
    server: Server, api_server: FakeApiServer, service: str
) -> None:
    key = server.add_key("node")
    server.start()
    model = tune_and_serve(server, key, api_server, service)
    found = _run(server, key, CHATS, model, json.dumps(WEATHER))
    assert found["whole"] == found["helper"] == "".join(found["pieces"]) == f"I am {model}. Grüße"
    assert len(found["pieces"]) == 6, "as they were made: the role, four pieces and the end"
    assert found["tokens"] == USAGE["total_tokens"]
    assert found["plain"] == "".join(found["plainPieces"]) == f"Grüße, says {model}"
    assert len(found["plainPieces"]) == 4
    assert found["call"] == found["streamedCall"] == ["tool_calls", "weather", CITY]
    assert found["afterTools"] == ["The weather: Sun", [CITY["city"]]]
    assert found["unknown"] == {"type": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}


def test_the_sdk_for_node_lists_reads_and_deletes_models(
    server: Server, api_server: FakeApiServer, service: str
) -> None:
    key = server.add_key("node")
    server.start()
    model = tune_and_serve(server, key, api_server, service)
    found = _run(server, key, MODELS, model)
    assert (found["models"], found["left"]) == (["tiny", model], ["tiny"])
    assert (found["read"]["id"], found["read"]["object"]) == (model, "model")
    assert found["read"]["owned_by"].startswith("llm-tuning: adapter ft_sft_tiny_1_abcdef of base/tiny")
    assert found["base"]["owned_by"].startswith("llm-tuning: base/tiny")
    assert found["refused"][:2] == [400, "is_a_base"]
    assert found["deleted"] == {"id": model, "object": "model", "deleted": True}
    assert found["gone"] == found["chat"] == [404, "model_not_found", "model"]
    wait_for_routes(api_server, lambda routes: routes == [])
