"""Jobs of the fine-tuning API with the real trainer in pods, driven by OpenAI's SDKs for Python and Node."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from tests.support.api_site import JOB_SECONDS, TRAINER, ApiSite, api_site, wait_for, wait_for_end
from tests.support.node_sdk import node_sdk, run_node
from tests.support.openai_local import rows_of
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, wait_until

OPERATOR = "deployment/llm-tuning-operator"
STEPS = 4
LIMITS = {"batchSize": 4, "maxLength": 64}
BASES: dict[str, Any] = {
    name: {"path": "base/tiny", "resources": TRAINER, "training": LIMITS | training, "serving": {"replicas": 0}}
    for name, training in (
        ("gpt-4.1-mini", {"maxSteps": STEPS, "saveSteps": 1}),
        ("long", {"maxSteps": 100_000, "saveSteps": 5}),
    )
}
"""One that trains for a moment, and one that would train for hours; no vLLM is asked for."""
NODE = """
const OpenAI = require("openai");
const client = new OpenAI();
const jobs = client.fineTuning.jobs;
const found = { events: [], steps: [], models: [] };

(async () => {
  const rows = process.argv[2];
  const upload = await OpenAI.toFile(Buffer.from(rows), "rows.jsonl");
  const file = await client.files.create({ file: upload, purpose: "fine-tune" });
  found.same = (await (await client.files.content(file.id)).text()) === rows;
  let job = await jobs.create({ model: "gpt-4.1-mini", training_file: file.id, suffix: "node" });
  while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
    await new Promise(resolve => setTimeout(resolve, 500));
    job = await jobs.retrieve(job.id);
  }
  Object.assign(found, { id: job.id, status: job.status, error: job.error, model: job.fine_tuned_model });
  for await (const each of jobs.listEvents(job.id, { limit: 2 })) found.events.push(each.message);
  for await (const each of jobs.checkpoints.list(job.id)) found.steps.push(each.step_number);
  found.csv = await (await client.files.content(job.result_files[0])).text();
  for await (const each of client.models.list()) found.models.push(each.id);
  found.owner = (await client.models.retrieve(job.fine_tuned_model)).owned_by;
  found.bytes = (await client.files.retrieve(file.id)).bytes;
  found.files = [];
  for await (const each of client.files.list({ limit: 1, purpose: "fine-tune" })) found.files.push(each.id);
  found.file = file.id;

  const long = await jobs.create({ model: "long", training_file: file.id, metadata: { team: "node" } });
  found.states = [
    (await jobs.pause(long.id)).status, (await jobs.resume(long.id)).status, (await jobs.cancel(long.id)).status];
  found.jobs = [];
  for await (const each of jobs.list({ limit: 1 })) found.jobs.push(each.id);
  found.chosen = [];
  for await (const each of jobs.list({ metadata: { team: "node" } })) found.chosen.push(each.id);
  found.long = long.id;
  found.removed = await client.models.delete(job.fine_tuned_model);
  try { await client.models.retrieve(job.fine_tuned_model); } catch (error) { found.gone = error.status; }
  found.deleted = (await client.files.delete(file.id)).deleted;
  console.log(JSON.stringify(found));
})();
"""


@pytest.fixture(scope="module")
def installed(cluster: Any) -> Iterator[tuple[ApiSite, str]]:
    with api_site(cluster, BASES, trainer=TRAINER_IMAGE) as made:
        yield made


@pytest.fixture(scope="module")
def space(installed: tuple[ApiSite, str]) -> TuningNamespace:
    return installed[0].space


@pytest.fixture(scope="module")
def client(installed: tuple[ApiSite, str]) -> Iterator[openai.OpenAI]:
    site, key = installed
    with site.client(key) as made:
        yield made


def upload(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def steps_of(client: openai.OpenAI, job_id: str) -> list[FineTuningJobEvent]:
    """The events that have the figures of a step, oldest first."""
    found = client.fine_tuning.jobs.list_events(job_id, limit=100, extra_query={"order": "asc"})
    return [event for event in found if event.type == "metrics"]


def step_of(event: FineTuningJobEvent) -> int:
    assert isinstance(event.data, dict)
    return int(event.data["step"])


def test_a_job_has_its_events_its_checkpoint_and_its_result_file(client: openai.OpenAI, space: TuningNamespace) -> None:
    """Beside it run one whose rows are wrong, and one that kubectl has made: both are listed as it is."""
    jobs, rows = client.fine_tuning.jobs, rows_of()
    file = upload(client, rows)
    job = jobs.create(model="gpt-4.1-mini", training_file=file, suffix="faq", seed=7, metadata={"team": "a"})
    bad_file = upload(client, rows_of(messages=[{"role": "user", "content": 7}]))
    bad = jobs.create(model="gpt-4.1-mini", training_file=bad_file)
    space.apply(tuning_job("by-hand", resources=TRAINER, training=LIMITS | {"maxSteps": STEPS}))

    done = wait_for_end(client, job.id)
    assert (done.status, done.error, done.seed, done.metadata) == ("succeeded", None, 7, {"team": "a"})
    assert str(done.fine_tuned_model).startswith(f"ft:gpt-4.1-mini:{space.name}:faq:")
    assert done.trained_tokens
    assert done.finished_at
    assert done.created_at <= done.finished_at
    wait_until(lambda: "route of InferenceService" in jobs.list_events(job.id).data[0].message, 30, "its route")
    events = list(jobs.list_events(job.id, limit=100))
    assert [event.id for event in jobs.list_events(job.id, limit=2)] == [event.id for event in events]
    assert events[-1].message == f"job {job.id} is created"
    assert [step_of(event) for event in steps_of(client, job.id)] == list(range(1, STEPS + 1))
    (checkpoint,) = jobs.checkpoints.list(job.id)
    assert (checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint) == (STEPS, done.fine_tuned_model)
    (result,) = done.result_files
    figures = client.files.content(result).read()
    assert [int(row["step"]) for row in csv.DictReader(io.StringIO(figures.decode()))] == list(range(1, STEPS + 1))
    described = client.files.retrieve(result)
    assert (described.bytes, described.purpose) == (len(figures), "fine-tune-results")
    assert client.files.content(file).read() == rows

    failed = wait_for_end(client, bad.id)
    assert (failed.status, failed.fine_tuned_model) == ("failed", None)
    assert failed.error is not None
    assert (failed.error.param, failed.error.code) == ("training_file", "dataset_invalid")
    assert "row 3" in failed.error.message
    assert "content" in failed.error.message

    by_hand = wait_for_end(client, "by-hand")
    assert (by_hand.status, by_hand.model, by_hand.training_file) == (
        "succeeded",
        "gpt-4.1-mini",
        "datasets/good.jsonl",
    )
    assert len(client.files.content(by_hand.result_files[0]).text.splitlines()) == STEPS + 1
    assert {each.id for each in jobs.list(limit=1)} == {job.id, bad.id, "by-hand"}


def test_a_running_job_is_paused_goes_on_from_its_checkpoint_and_is_cancelled(
    installed: tuple[ApiSite, str], space: TuningNamespace
) -> None:
    """`paused` is a word that the SDK's types lack."""
    site, key = installed
    with site.client(key, strict=False) as client:
        _pause_and_resume(client, space)


def _pause_and_resume(client: openai.OpenAI, space: TuningNamespace) -> None:
    jobs = client.fine_tuning.jobs
    job = jobs.create(model="long", training_file=upload(client, rows_of()))
    pods = f"tuning.llmtuning.dev/job={job.id},tuning.llmtuning.dev/role=train"
    wait_until(lambda: len(steps_of(client, job.id)) > 2, JOB_SECONDS, "steps")
    running = jobs.retrieve(job.id)
    assert (running.status, running.finished_at, running.fine_tuned_model) == ("running", None, None)

    assert str(jobs.pause(job.id).status) == "paused"
    wait_until(lambda: space.list("pods", pods) == [], 90, "the trainer's end")
    before = steps_of(client, job.id)
    kept = max(checkpoint.step_number for checkpoint in jobs.checkpoints.list(job.id))
    assert kept == step_of(before[-1]), "it is saved where it was stopped"
    assert str(jobs.retrieve(job.id).status) == "paused"
    wait_until(lambda: "resume the job" in jobs.list_events(job.id).data[0].message, 30, "how it goes on")

    assert jobs.resume(job.id).status == "queued"
    wait_until(lambda: step_of(steps_of(client, job.id)[-1]) > kept, JOB_SECONDS, "further steps")
    after = steps_of(client, job.id)
    assert after[: len(before)] == before, "no step is taken again"
    assert [step_of(event) for event in after] == list(range(1, len(after) + 1))
    wait_for(client, job.id, lambda job: job.status == "running", 30)

    assert jobs.cancel(job.id).status == "cancelled"
    wait_until(lambda: space.list("pods", pods) == [], 90, "the trainer's end")
    ended = jobs.retrieve(job.id)
    assert (ended.status, ended.error, ended.fine_tuned_model) == ("cancelled", None, None)
    said = [event.message for event in jobs.list_events(job.id, limit=5)]  # steps that were taken meanwhile come later
    assert "job is cancelled" in said
    with pytest.raises(openai.BadRequestError, match="cannot be resumed"):
        jobs.resume(job.id)


def test_a_key_of_another_namespace_is_none_here(installed: tuple[ApiSite, str]) -> None:
    """It is in a Secret of the same name there."""
    site, _ = installed
    with site.space.cluster.namespace() as other:
        theirs = site.api_key("create", "theirs", "--namespace", other)
        assert "theirs" in site.api_key("list", "--namespace", other)
        with site.client(theirs) as stranger, pytest.raises(openai.AuthenticationError) as refused:
            stranger.files.list()
    assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")


def test_a_job_waits_for_an_operator_that_is_down_and_says_so(client: openai.OpenAI, space: TuningNamespace) -> None:
    jobs = client.fine_tuning.jobs
    space.kubectl("scale", OPERATOR, "--replicas=0")
    wait_until(lambda: "llm-tuning-operator" not in space.kubectl("get", "pods", "-o", "name"), 60, "no operator")
    try:
        job = jobs.create(model="gpt-4.1-mini", training_file=upload(client, rows_of()))

        def unseen() -> bool:
            return any(event.level == "warn" and "operator" in event.message for event in jobs.list_events(job.id))

        wait_until(unseen, 90, lambda: f"a warning among {[event.message for event in jobs.list_events(job.id)]}")
        waiting = jobs.retrieve(job.id)
        assert (waiting.status, waiting.error) == ("queued", None)
    finally:
        space.kubectl("scale", OPERATOR, "--replicas=1")
    assert wait_for_end(client, job.id).status == "succeeded"
    assert not unseen()


def test_the_sdk_for_node_trains_and_reads_all_of_it(installed: tuple[ApiSite, str]) -> None:
    site, key = installed
    node_sdk()
    with site.base_url() as base_url:
        found = run_node(NODE, rows_of().decode(), base_url=base_url, key=key, seconds=JOB_SECONDS + 60)
    assert (found["same"], found["status"], found["error"], found["deleted"]) == (True, "succeeded", None, True)
    assert found["model"].startswith(f"ft:gpt-4.1-mini:{site.space.name}:node:")
    assert found["events"][-1] == f"job {found['id']} is created"
    assert len({*found["events"]}) == len(found["events"])
    assert found["steps"] == [STEPS]
    assert len(found["csv"].splitlines()) == STEPS + 1
    assert {"gpt-4.1-mini", "long", found["model"]} <= {*found["models"]}
    assert found["owner"].startswith("llm-tuning: adapter ft_sft_tiny_")
    assert found["bytes"] == len(rows_of())
    assert found["file"] in found["files"]
    assert found["states"] == ["paused", "queued", "cancelled"]
    assert {found["id"], found["long"]} <= {*found["jobs"]}
    assert found["chosen"] == [found["long"]]
    assert found["removed"] == {"id": found["model"], "object": "model", "deleted": True}
    assert found["gone"] == 404
