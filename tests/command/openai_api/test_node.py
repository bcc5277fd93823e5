"""OpenAI's SDK for Node on the server as a process: files and jobs, pages, and refusals as it throws them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tests.support.api_process import Server
from tests.support.fake_api_server import FakeApiServer
from tests.support.node_sdk import node_sdk
from tests.support.openai_api import make_run
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


def _run(server: Server, key: str, script: str, *arguments: str) -> dict[str, Any]:
    folder = node_sdk()
    environment = os.environ | {
        "NODE_PATH": str(folder / "node_modules"),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{server.port}/v1",
        "OPENAI_API_KEY": key,
    }
    command = ["node", "-e", script, "script", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


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
