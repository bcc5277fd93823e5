"""`tune-llm api` on this machine, whatever happens to it: jobs train one at a time, and a killed server goes on."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.support.openai_local import LocalServer, local_server, rows_of

ENDED = ("succeeded", "failed", "cancelled")
QUICK = {"training": {"maxSteps": 4, "batchSize": 4, "saveSteps": 1, "maxLength": 64}, "resources": {"gpus": 0}}
LONG = {"training": {"maxSteps": 4000, "batchSize": 4, "saveSteps": 5, "maxLength": 64}, "resources": {"gpus": 0}}


@pytest.fixture
def server(tmp_path: Path, tiny_base: Path) -> Iterator[LocalServer]:
    """With a base that trains for four steps, and one for very long."""
    shutil.copytree(tiny_base, tmp_path / "base" / "tiny")
    bases = {name: {"path": "base/tiny"} | how for name, how in (("gpt-4.1-mini", QUICK), ("long", LONG))}
    (tmp_path / "settings.yaml").write_text(json.dumps({"organization": "acme", "bases": bases}))
    with local_server(tmp_path, "--settings", "settings.yaml") as started:
        yield started


def _upload(server: LocalServer, content: bytes) -> str:
    return server.client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def _job(server: LocalServer, file: str, **given: Any) -> FineTuningJob:
    return server.client.fine_tuning.jobs.create(**{"model": "gpt-4.1-mini", "training_file": file, **given})


def _wait(server: LocalServer, job_id: str, *words: str) -> FineTuningJob:
    jobs = server.client.fine_tuning.jobs
    return server.until(lambda: jobs.retrieve(job_id), lambda job: job.status in (words or ENDED))


def _is_training(server: LocalServer, job_id: str) -> None:
    """Wait for its first step."""
    jobs = server.client.fine_tuning.jobs
    server.until(lambda: jobs.list_events(job_id).data, lambda found: any(event.type == "metrics" for event in found))


def test_a_job_has_all_that_openai_gives_and_its_model_can_be_gone_on_from(server: LocalServer) -> None:
    client, file = server.client, _upload(server, rows_of())
    job = _job(server, file, suffix="faq", seed=7, metadata={"team": "a"})
    with pytest.raises(openai.BadRequestError, match="in use"):
        client.files.delete(file)
    done = _wait(server, job.id)
    assert (done.status, done.error, done.hyperparameters.batch_size) == ("succeeded", None, 4)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoint.metrics.full_valid_loss is not None
    assert client.files.delete(file).deleted
    further = _job(server, _upload(server, rows_of()), model=str(done.fine_tuned_model))
    assert _wait(server, further.id).status == "succeeded"


def test_preferences_train_in_the_mode_dpo(server: LocalServer) -> None:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"What is {n}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"{n} is a number."}],
            "non_preferred_output": [{"role": "assistant", "content": "No."}],
        }
        for n in range(24)
    ]
    file = _upload(server, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    how: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    done = _wait(server, _job(server, file, method=how).id)
    assert (done.status, done.error) == ("succeeded", None)
    assert done.method is not None
    assert done.method.dpo is not None


def test_one_trains_and_the_others_wait_are_paused_and_cancelled(server: LocalServer) -> None:
    jobs, file = server.client.fine_tuning.jobs, _upload(server, rows_of())
    first, second = _job(server, file, model="long"), _job(server, file)
    _is_training(server, first.id)
    assert jobs.retrieve(second.id).status == "queued"
    assert jobs.pause(first.id).status == "paused"
    assert _wait(server, second.id).status == "succeeded"
    kept = jobs.checkpoints.list(first.id).data
    assert kept
    assert jobs.resume(first.id).status in ("queued", "running", "validating_files")
    _wait(server, first.id, "running")
    assert jobs.cancel(first.id).status == "cancelled"
    third = _job(server, file)
    assert _wait(server, third.id).status == "succeeded"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_in_the_middle_goes_on_when_it_is_started_again(server: LocalServer, number: int) -> None:
    file = _upload(server, rows_of())
    job, waiting = _job(server, file, model="long"), _job(server, file)
    _is_training(server, job.id)
    assert server.end(number) == (0 if number == signal.SIGTERM else -number)
    server.start()
    _wait(server, job.id, "running")
    jobs = server.client.fine_tuning.jobs
    before = _last_step(server, job.id)
    server.until(lambda: _last_step(server, job.id), lambda step: step > before)
    jobs.cancel(job.id)
    assert _wait(server, waiting.id).status == "succeeded"
    models = server.folder / "models"
    assert len([path for path in models.iterdir() if (path / "model.json").is_file()]) == 1


def _last_step(server: LocalServer, job_id: str) -> int:
    steps = [event.data for event in server.client.fine_tuning.jobs.list_events(job_id) if event.type == "metrics"]
    return max((data["step"] for data in steps if isinstance(data, dict)), default=0)
