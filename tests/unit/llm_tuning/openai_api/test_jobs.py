"""Jobs by OpenAI's SDK in strict mode: an answer that its types do not allow is an error."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from llm_tuning.client.objects import TuningJobView
from llm_tuning.openai_api import wire
from llm_tuning.openai_api.job_view import view
from llm_tuning.openai_api.publishing import converge
from tests.support.fake_api_server import status_object
from tests.support.openai_api import make_run, make_work
from tests.support.openai_sdk import sdk
from tests.support.openai_world import (
    READY,
    SETTINGS,
    SUCCEEDED,
    TRAINING,
    World,
    condition,
    create_job,
    failed,
    open_world,
    progress,
)

JOBS = "tuningjobs"
KUBECTL = {
    "model": {"path": "base/tiny"},
    "dataset": {"path": "datasets/faq.json"},
    "volume": {"claimName": "tuning"},
}


def _it_is_now(world: World) -> None:
    """Objects are made now, where the age of one counts."""
    world.server.time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refused(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, str | None, str | None]:
    return caught.value.status_code, caught.value.code, caught.value.param


# --- one life ---------------------------------------------------------------------------------------------------------


async def test_a_job_is_a_tuning_job_and_every_answer_of_its_life_is_one_of_openais(world: World) -> None:
    training, validation = world.upload(), world.upload()
    jobs = world.client.fine_tuning.jobs
    job = await jobs.create(
        model="gpt-4.1-mini",
        training_file=training,
        validation_file=validation,
        suffix="faq",
        seed=7,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    assert (job.status, job.training_file, job.validation_file) == ("queued", training, validation)
    assert (job.seed, job.metadata, job.hyperparameters.n_epochs) == (7, {"team": "a"}, 2)
    assert world.job(job.id)["spec"]["dataset"]["path"] == f"datasets/uploads/{training}/data.jsonl"

    await progress(world, job.id, TRAINING)
    assert (await jobs.retrieve(job.id)).status == "running"
    await progress(world, job.id, SUCCEEDED)
    done = await jobs.retrieve(job.id)
    assert done.status == "succeeded"
    assert done.fine_tuned_model is not None
    assert len(done.result_files) == 1
    assert [each.id async for each in jobs.list()] == [job.id]
    said = [event.message async for event in jobs.list_events(job.id)]
    assert said[0].startswith("job has succeeded")
    assert said[-1] == f"job {job.id} is created"


async def test_a_failed_check_names_the_file_the_row_and_the_parameter(world: World) -> None:
    job = await create_job(world)
    message = f"spec.dataset.path: datasets/uploads/{job.training_file}/data.jsonl: row 3: messages is empty"
    await progress(world, job.id, failed("DatasetInvalid", message))
    error = (await world.client.fine_tuning.jobs.retrieve(job.id)).error
    assert error is not None
    assert (error.code, error.param) == ("dataset_invalid", "training_file")
    assert error.message == f"training_file: {job.training_file}: row 3: messages is empty"


async def test_dpo_trains_in_the_mode_dpo(world: World) -> None:
    job = await create_job(world, method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}})
    assert world.job(job.id)["spec"]["mode"] == "dpo"
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2


async def test_a_fine_tuned_model_can_be_gone_on_from(world: World) -> None:
    first = await create_job(world, suffix="faq")
    name = f"ft:gpt-4.1-mini:acme:faq:{_last(world, first.id)}"
    with pytest.raises(openai.BadRequestError, match="has not succeeded") as caught:
        await create_job(world, model=name)
    assert _refused(caught) == (400, "model_not_ready", "model")
    await progress(world, first.id, SUCCEEDED)
    second = await create_job(world, model=name)
    assert second.model == name
    spec = world.job(second.id)["spec"]
    assert spec["model"] == {"path": "base/tiny", "adapter": {"modelId": "ft_sft_tiny_1_abcdef"}}
    await progress(world, second.id, SUCCEEDED)
    again = (await world.client.fine_tuning.jobs.retrieve(second.id)).fine_tuned_model
    assert again is not None
    assert again.startswith("ft:gpt-4.1-mini:acme::")


def _last(world: World, job_id: str) -> str:
    annotation: str = world.job(job_id)["metadata"]["annotations"]["openai.tuning.llmtuning.dev/request"]
    return annotation.partition("acme:faq:")[2][:8]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"training_file": "file-none"}, "invalid_training_file", "training_file"),
        ({"training_file": "../../base"}, "invalid_training_file", "training_file"),
        ({"validation_file": "file-" + "0" * 24}, "invalid_validation_file", "validation_file"),
        ({"suffix": "a/b"}, "invalid_value", "suffix"),
        ({"seed": -1}, "invalid_value", "seed"),
        ({"metadata": {"a" * 65: "b"}}, "invalid_value", "metadata"),
        ({"extra_body": {"priority": "high"}}, "unknown_parameter", "priority"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "invalid_value", "integrations[0].type"),
    ],
)
async def test_a_wrong_request_makes_no_job(world: World, given: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await create_job(world, **given)
    assert caught.value.code == code
    assert str(caught.value.param).startswith(param)
    assert world.server.all(JOBS) == []


async def test_an_unknown_model_is_a_404_that_names_those_there_are(world: World) -> None:
    with pytest.raises(openai.NotFoundError, match=r"there are gpt-4\.1-mini, qwen3-8b") as caught:
        await create_job(world, model="gpt-4o")
    assert _refused(caught) == (404, "model_not_found", "model")


async def test_what_the_api_server_refuses_is_said_by_the_parameters_name(world: World) -> None:
    causes = {"causes": [{"field": "spec.training.epochs", "message": "must be at most 10"}]}
    world.server.next_answers.append(status_object(422, "Invalid", "TuningJob is invalid", **causes))
    with pytest.raises(openai.BadRequestError, match="must be at most 10") as caught:
        await create_job(world)
    assert caught.value.param == "hyperparameters.n_epochs"


@pytest.mark.parametrize(
    ("doing", "job_id"),
    [
        *(("retrieve", job_id) for job_id in ("a b", "A", "...", "x" * 60, "a?watch=true", "a/../b")),
        *((doing, "ftjob-none") for doing in ("retrieve", "cancel", "pause", "resume", "list_events")),
    ],
)
async def test_no_such_job_is_a_404_and_no_other_question_to_the_cluster(world: World, job_id: str, doing: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await getattr(world.client.fine_tuning.jobs, doing)(job_id)
    assert caught.value.code in ("fine_tuning_job_not_found", "unknown_url")
    assert all(path.endswith("/tuningjobs/ftjob-none") for path in world.server.paths("GET"))


async def test_a_cluster_that_is_away_is_a_503_and_the_sdks_retry_gets_through(world: World) -> None:
    world.server.next_answers.append(status_object(503, "ServiceUnavailable", "etcd is away", retryAfterSeconds=1))
    with pytest.raises(openai.InternalServerError, match="etcd is away") as caught:
        await world.client.fine_tuning.jobs.retrieve("ftjob-none")
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "1")


# --- once -------------------------------------------------------------------------------------------------------------


async def test_the_same_idempotency_key_gets_the_same_job(world: World) -> None:
    file = world.upload()
    first, again, other = [
        await create_job(world, training_file=file, extra_headers={"Idempotency-Key": key}) for key in ("a", "a", "b")
    ]
    assert first.id == again.id != other.id
    assert len(world.server.all(JOBS)) == 2
    with pytest.raises(openai.BadRequestError, match="another request") as caught:
        await create_job(world, training_file=file, seed=1, extra_headers={"Idempotency-Key": "a"})
    assert caught.value.code == "idempotency_key_reused"


async def test_an_idempotency_key_is_known_when_the_file_has_gone(world: World) -> None:
    file, header = world.upload(), {"Idempotency-Key": "a"}
    first = await create_job(world, training_file=file, extra_headers=header)
    await progress(world, first.id, SUCCEEDED)
    await world.client.files.delete(file)
    assert (await create_job(world, training_file=file, extra_headers=header)).id == first.id


async def test_the_sdks_retry_gets_the_job_that_its_first_try_made(world: World) -> None:
    _it_is_now(world)
    file = world.upload()
    first = await create_job(world, training_file=file)
    again = await create_job(world, training_file=file, extra_headers={"X-Stainless-Retry-Count": "1"})
    assert again.id == first.id
    on_purpose = await create_job(world, training_file=file)
    assert on_purpose.id != first.id


async def test_a_retry_does_not_get_a_job_that_was_cancelled_before(world: World) -> None:
    _it_is_now(world)
    file = world.upload()
    first = await create_job(world, training_file=file)
    await world.client.fine_tuning.jobs.cancel(first.id)
    again = await create_job(world, training_file=file, extra_headers={"X-Stainless-Retry-Count": "1"})
    assert again.id != first.id


async def test_a_retry_long_after_is_a_new_request(world: World) -> None:
    file = world.upload()
    first = await create_job(world, training_file=file)
    again = await create_job(world, training_file=file, extra_headers={"X-Stainless-Retry-Count": "1"})
    assert again.id != first.id


@pytest.mark.parametrize("header", [{}, {"Idempotency-Key": "once"}])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_server_that_dies_at_the_write_and_a_client_that_tries_again_make_one_job(
    world: World, moment: str, header: dict[str, str]
) -> None:
    """Creating is one write: the server's death is the connection to the cluster that is cut before it or after it."""
    _it_is_now(world)
    file, real = world.upload(), world.server.cluster.add
    died = []

    def dying(kind: str, raw: dict[str, Any]) -> dict[str, Any]:
        if died:
            return real(kind, raw)
        died.append(moment)
        if moment == "after":
            real(kind, raw)
        raise ConnectionResetError

    world.server.cluster.add = dying  # type: ignore[method-assign]
    async with sdk(world.app, max_retries=2) as client:
        job = await client.fine_tuning.jobs.create(model="gpt-4.1-mini", training_file=file, extra_headers=header)
    assert died == [moment]
    assert [made["metadata"]["name"] for made in world.server.all(JOBS)] == [job.id]


async def test_two_replicas_that_are_asked_at_once_make_one_job(world: World, tmp_path: Path) -> None:
    second = World(world.server, tmp_path)
    file = world.upload()
    header = {"Idempotency-Key": "once"}
    made = await asyncio.gather(
        *(create_job(each, training_file=file, extra_headers=header) for each in (world, second, world, second))
    )
    await second.client.close()
    await second.backend.close()
    assert len({job.id for job in made}) == 1
    assert len(world.server.all(JOBS)) == 1


# --- listed -----------------------------------------------------------------------------------------------------------


async def test_pages_have_every_job_once_newest_first(world: World) -> None:
    made = []
    for second in range(5):
        world.server.time = f"2026-11-29T08:00:0{second}Z"
        made.append((await create_job(world)).id)
    world.server.time = "2026-11-29T08:00:05Z"
    await world.server.put(JOBS, "faq", spec=KUBECTL)
    jobs = world.client.fine_tuning.jobs
    assert [job.id async for job in jobs.list(limit=2)] == ["faq", *reversed(made)]
    page = await jobs.list(limit=2, after=made[2])
    assert ([job.id for job in page.data], page.has_more) == ([made[1], made[0]], False)
    with pytest.raises(openai.BadRequestError) as caught:
        await jobs.list(after="ftjob-none")
    assert caught.value.param == "after"


async def test_metadata_chooses(world: World) -> None:
    jobs = world.client.fine_tuning.jobs
    both = (await create_job(world, metadata={"team": "a", "run": "1"})).id
    one = (await create_job(world, metadata={"team": "a", "run": ""})).id
    none = (await create_job(world)).id
    assert {job.id async for job in jobs.list(metadata={"team": "a"})} == {both, one}
    assert [job.id async for job in jobs.list(metadata={"team": "a", "run": ""})] == [one]
    assert [job.id async for job in jobs.list(extra_query={"metadata": "null"})] == [none]
    assert [job.id async for job in jobs.list(metadata={"team": "b"})] == []


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "asc"}, {"metadata": "x"}])
async def test_a_query_that_is_none_is_refused(world: World, query: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await world.client.fine_tuning.jobs.list(extra_query=query)
    assert caught.value.param == next(iter(query))


async def test_events_come_newest_first_in_pages_or_oldest_first_when_asked(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    await progress(world, job.id, SUCCEEDED)
    newest = [event.id async for event in jobs.list_events(job.id, limit=2)]
    oldest = [event.id async for event in jobs.list_events(job.id, limit=2, extra_query={"order": "asc"})]
    assert newest == oldest[::-1] == sorted(newest, reverse=True)
    assert len(newest) == 5


async def test_a_script_that_follows_events_goes_on_behind_one_that_is_gone(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    stall = condition("Stalled", "True", "Unschedulable", "no GPU", at="2026-11-29T08:03:00Z")
    await progress(world, job.id, {"conditions": [stall]})
    stalled = (await jobs.list_events(job.id)).data[0]
    await progress(world, job.id, SUCCEEDED)
    page = await jobs.list_events(job.id, after=stalled.id, extra_query={"order": "asc"})
    assert [event.message.partition(":")[0] for event in page.data] == [
        "trained",
        "evaluated",
        "job has succeeded, and its model is ft",
    ]


async def test_a_cluster_that_cannot_be_reached_is_a_503(world: World) -> None:
    file = world.upload()
    await world.server.stop()
    with pytest.raises(openai.InternalServerError, match="does not answer") as caught:
        await create_job(world, training_file=file)
    assert caught.value.status_code == 503
    await world.server.start()
    assert (await create_job(world, training_file=file)).status == "queued"


# --- what its run has left --------------------------------------------------------------------------------------------

FIGURES = [
    (1, {"train/loss": 2.5}),
    (2, {"train/loss": 2.0}),
    (2, {"eval/loss": 1.75, "eval/token_accuracy": 0.5}),
    (4, {"train/loss": 1.5}),
]


async def test_a_running_job_has_the_checkpoints_that_its_run_keeps(world: World) -> None:
    job, jobs = await create_job(world, suffix="faq"), world.client.fine_tuning.jobs
    assert [kept async for kept in jobs.checkpoints.list(job.id)] == []
    await progress(world, job.id, TRAINING)
    make_work(world.root, TRAINING["modelId"], FIGURES, [2, 4])
    found = [kept async for kept in jobs.checkpoints.list(job.id, limit=1)]
    assert [kept.step_number for kept in found] == [4, 2]
    assert [kept.metrics.train_loss for kept in found] == [1.5, 2.0]
    assert [kept.metrics.valid_loss for kept in found] == [None, 1.75]
    assert [kept.metrics.full_valid_loss for kept in found] == [None, None]
    assert found[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-4")
    assert {kept.fine_tuning_job_id for kept in found} == {job.id}


async def test_a_finished_job_has_its_model_as_checkpoint_and_its_figures_as_events_and_file(world: World) -> None:
    job, jobs = await create_job(world), world.client.fine_tuning.jobs
    make_run(world.root, SUCCEEDED["modelId"], FIGURES, metrics={"tuned": {"loss": 1.25, "token_accuracy": 0.75}})
    await progress(world, job.id, SUCCEEDED)
    done = await jobs.retrieve(job.id)
    assert done.trained_tokens == 1234
    (kept,) = (await jobs.checkpoints.list(job.id)).data
    assert kept.fine_tuned_model_checkpoint == done.fine_tuned_model
    assert (kept.metrics.full_valid_loss, kept.metrics.full_valid_mean_token_accuracy) == (1.25, 0.75)
    steps = [event.data async for event in jobs.list_events(job.id) if event.type == "metrics"]
    assert [(data["step"], data["train_loss"], data["valid_loss"]) for data in steps if isinstance(data, dict)] == [
        (4, 1.5, None),
        (2, 2.0, 1.75),
        (1, 2.5, None),
    ]
    text = (await world.client.files.content(done.result_files[0])).text
    assert text.splitlines()[0].startswith("step,train_loss")


async def test_a_page_of_many_jobs_is_one_question_to_the_cluster_and_builds_no_other_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long it takes is measured in tests/bench."""
    raw, built = world.job((await create_job(world)).id), []
    for number in range(149):
        raw["metadata"] |= {"name": f"faq-{number}", "uid": f"uid-{number}"}
        world.server.cluster.add(JOBS, raw | {"status": SUCCEEDED})

    def counted(job: TuningJobView, *given: Any, **more: Any) -> wire.FineTuningJob:
        built.append(job.name)
        return view(job, *given, **more)

    monkeypatch.setattr("llm_tuning.openai_api.jobs.view", counted)
    world.server.requests.clear()
    page = await world.client.fine_tuning.jobs.list(limit=100)
    assert (len(page.data), page.has_more) == (100, True)
    assert built == [job.id for job in page.data]
    assert world.server.paths("GET") == ["/apis/tuning.llmtuning.dev/v1alpha1/namespaces/team/tuningjobs"]


async def test_events_say_where_a_model_answers_and_why_it_does_not(tmp_path: Path) -> None:
    bases = {"a": {"path": "base/tiny"}, "b": {"path": "base/b", "serving": {"onDemand": False}}}
    async with open_world(tmp_path, SETTINGS | {"bases": bases}) as world:
        names = [await world.tuned("a", model_id="ft_a"), await world.tuned("b", model_id="ft_b")]
        jobs = {job.fine_tuned_model: job.id async for job in world.client.fine_tuning.jobs.list()}

        async def last(name: str) -> tuple[str, str]:
            await world.context.catalog.read()
            event = (await world.client.fine_tuning.jobs.list_events(jobs[name])).data[0]
            return event.level, event.message

        assert (await last(names[0]))[1].startswith("job has succeeded"), "it is about to be published"
        await converge(world.context)
        route = f"{names[0]} is a route of InferenceService api-a, which is"
        assert await last(names[0]) == ("info", f"{route} not ready: the operator has not seen it yet")
        await world.server.put("inferenceservices", "api-a", status=READY)
        assert await last(names[0]) == ("info", f"{route} ready")
        level, message = await last(names[1])
        assert (level, message.partition(": ")[2].partition(";")[0]) == (
            "warn",
            "there is no InferenceService of base/b on the claim tuning",
        )
        await world.client.models.delete(names[0])
        assert await last(names[0]) == ("info", "its model is deleted")
