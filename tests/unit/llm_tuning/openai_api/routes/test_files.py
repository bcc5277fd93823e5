"""`/v1/files` by OpenAI's own SDK, as strict as it can be."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, cast

import openai
import pytest

from llm_tuning.openai_api import file_uses
from llm_tuning.openai_api.app import create_app
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.file_uses import sweep, uses
from llm_tuning.openai_api.found import Found
from llm_tuning.openai_api.names import ANNOTATION_CANCELLED, result_id, upload_path
from tests.support.openai_api import FINISHED, ListedJobs, make_context, make_job, make_run
from tests.support.openai_sdk import sdk
from tests.support.openai_world import World

ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\xc3\xa9\\n"}]}\n'
LINES = [(1, {"train/loss": 2.5}), (2, {"train/loss": 2.25})]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return make_context(tmp_path, file_bytes=10_000, total_bytes=20_000)


@pytest.fixture
async def client(context: Context) -> AsyncIterator[openai.AsyncOpenAI]:
    async with sdk(create_app(context)) as client:
        yield client


async def upload(client: openai.AsyncOpenAI, content: bytes = ROW, name: str = "rows.jsonl") -> str:
    return (await client.files.create(file=(name, io.BytesIO(content)), purpose="fine-tune")).id


def hold(context: Context, *jobs: object) -> None:
    cast(ListedJobs, context.backend).held = list(jobs)  # type: ignore[arg-type]


async def test_a_file_goes_up_and_comes_back_byte_for_byte(client: openai.AsyncOpenAI, context: Context) -> None:
    content = ROW * 90
    made = await client.files.create(file=("rows.jsonl", io.BytesIO(content)), purpose="fine-tune")
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(content),
        "rows.jsonl",
        "fine-tune",
        "processed",
    )
    assert await client.files.retrieve(made.id) == made
    back = await client.files.content(made.id)
    assert back.content == content
    assert 'filename="rows.jsonl"' in back.response.headers["content-disposition"]
    (record,) = context.files.records()
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    deleted = await client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    assert (await client.files.list()).data == []


async def test_a_file_from_a_path_has_its_last_name(client: openai.AsyncOpenAI, tmp_path: Path) -> None:
    rows = tmp_path / "zeilen 训练.jsonl"
    rows.write_bytes(ROW)
    made = await client.files.create(file=rows, purpose="fine-tune")
    assert made.filename == rows.name
    assert "filename*=utf-8" in (await client.files.content(made.id)).response.headers["content-disposition"].lower()


@pytest.mark.parametrize(
    ("given", "kept"),
    [("../../etc/passwd", "passwd"), ("/etc/shadow", "shadow"), ("..", "file"), ('a"b.jsonl', 'a"b.jsonl')],
)
async def test_a_name_with_folders_leads_out_of_no_folder(
    client: openai.AsyncOpenAI, context: Context, given: str, kept: str
) -> None:
    file_id = await upload(client, name=given)
    assert (await client.files.retrieve(file_id)).filename == kept
    assert sorted(path.name for path in context.files.folder.iterdir()) == sorted([".work", file_id])


async def test_pages_go_on_behind_the_last_id_in_either_order(client: openai.AsyncOpenAI) -> None:
    ids = [await upload(client) for _ in range(5)]
    ids.sort()
    assert [file.id async for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == ids
    first = await client.files.list(limit=2, order="asc")
    assert (first.has_more, [file.id for file in first.data]) == (True, ids[:2])
    last = await client.files.list(limit=3, order="asc", after=ids[1])
    assert (last.has_more, [file.id for file in last.data]) == (False, ids[2:])


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_list_has_every_file_once_with_another_replica_at_each_page(
    client: openai.AsyncOpenAI, tmp_path: Path, order: Literal["asc", "desc"]
) -> None:
    async with sdk(create_app(make_context(tmp_path, file_bytes=10_000, total_bytes=20_000))) as other:
        made = [await upload(replica) for replica in (client, other, other, client, other)]
        found: list[str] = []
        for replica in itertools.cycle((other, client)):
            page = await replica.files.list(limit=2, order=order, after=found[-1] if found else openai.omit)
            found += [file.id for file in page.data]
            if not page.has_more:
                break
    assert found == sorted(made, reverse=order == "desc")


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_script_that_deletes_what_it_lists_comes_to_the_end(client: openai.AsyncOpenAI, order: str) -> None:
    for _ in range(5):
        await upload(client)
    seen = 0
    async for file in client.files.list(limit=1, order=order):  # type: ignore[arg-type]
        await client.files.delete(file.id)
        seen += 1
    assert seen == 5
    assert (await client.files.list()).data == []


async def test_a_file_may_expire(client: openai.AsyncOpenAI) -> None:
    made = await client.files.create(
        file=("a.jsonl", io.BytesIO(ROW)), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600


async def test_the_figures_of_each_job_that_has_succeeded_are_a_file(
    client: openai.AsyncOpenAI, context: Context, tmp_path: Path
) -> None:
    make_run(tmp_path, "faq_sft", LINES)
    uploaded = await upload(client)
    hold(
        context,
        make_job("ftjob-1", {"path": upload_path(uploaded)}, model_id="faq_sft"),
        make_job("gone", {"path": "datasets/a.jsonl"}, model_id="deleted_sft"),
        make_job("running", {"path": "datasets/a.jsonl"}),
    )
    (result,) = (await client.files.list(purpose="fine-tune-results")).data
    assert (result.id, result.purpose, result.filename) == (
        result_id("faq_sft"),
        "fine-tune-results",
        "step_metrics.csv",
    )
    assert result.created_at == 1796119200
    content = (await client.files.content(result.id)).content
    assert content.decode().splitlines()[0].startswith("step,train_loss,train_accuracy,valid_loss,")
    assert len(content) == result.bytes
    assert await client.files.retrieve(result.id) == result
    assert [file.id for file in (await client.files.list(purpose="fine-tune")).data] == [uploaded]
    assert {file.id for file in (await client.files.list()).data} == {uploaded, result.id}
    assert len([file async for file in client.files.list(limit=1)]) == 2


async def test_the_figures_of_a_job_are_deleted_as_any_file_and_its_model_stays(world: World) -> None:
    model = await world.tuned(model_id="faq_sft")
    make_run(world.root, "faq_sft", LINES)
    await world.tuned(model_id="other_sft")
    make_run(world.root, "other_sft", LINES)
    files, jobs = world.client.files, world.client.fine_tuning.jobs
    (job,) = [job for job in (await jobs.list()).data if job.fine_tuned_model == model]
    assert job.result_files == [result_id("faq_sft")]
    deleted = await files.delete(result_id("faq_sft"))
    assert (deleted.id, deleted.deleted) == (result_id("faq_sft"), True)
    assert [file.id for file in (await files.list(purpose="fine-tune-results")).data] == [result_id("other_sft")]
    for ask in (files.retrieve, files.content, files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File"):
            await ask(result_id("faq_sft"))
    assert (await world.client.models.retrieve(model)).id == model
    assert (await jobs.checkpoints.list(job.id)).data


@pytest.mark.parametrize(("order", "limit"), [("asc", 1), ("desc", 1), ("asc", 2), ("desc", 2)])
async def test_a_script_that_deletes_uploads_and_results_comes_to_the_end(
    world: World, order: Literal["asc", "desc"], limit: int
) -> None:
    for number in range(3):
        await world.tuned(model_id=f"ft_{number}")
        make_run(world.root, f"ft_{number}", [(1, {"train/loss": 2.5})])
    files = world.client.files
    there = {file.id async for file in files.list()}
    assert len(there) == 6
    seen = []
    async for file in files.list(limit=limit, order=order):
        seen.append(file.id)
        await files.delete(file.id)
    assert sorted(seen) == sorted(there)
    assert [file async for file in files.list()] == []


async def test_a_file_that_a_job_still_needs_is_not_deleted(client: openai.AsyncOpenAI, context: Context) -> None:
    rows, held_out = await upload(client), await upload(client)
    dataset = {"path": upload_path(rows), "evaluation": upload_path(held_out)}
    hold(context, make_job("ftjob-1", dataset))
    for file_id in (rows, held_out):
        with pytest.raises(openai.BadRequestError, match="in use by the job 'ftjob-1'") as refused:
            await client.files.delete(file_id)
        assert (refused.value.code, refused.value.param) == ("file_in_use", "id")
    hold(context, make_job("ftjob-1", dataset, model_id="faq_sft"))
    await client.files.delete(rows)
    hold(context, make_job("ftjob-1", dataset, annotations={ANNOTATION_CANCELLED: FINISHED}))
    await client.files.delete(held_out)


def test_other_data_sets_are_nobodys_upload() -> None:
    data_sets = ({"path": "datasets/a.jsonl"}, {"path": "datasets/uploads/a/data.jsonl"}, {"uri": "hf://datasets/a/b"})
    assert uses(Found([make_job(f"job-{number}", dataset) for number, dataset in enumerate(data_sets)])) == {}


@pytest.mark.parametrize("name", ["file-nothing", "..%2F..%2Fetc", "file-" + "0" * 24, "file-" + "0" * 32])
async def test_a_file_that_is_not_there_is_a_404(client: openai.AsyncOpenAI, name: str) -> None:
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            await ask(name)
        assert (refused.value.code, refused.value.param) == ("file_not_found", "id")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + bytes(60), "is a zip archive"),
        (b"<html>", "is HTML or XML"),
        (ROW.decode().encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"prompt,output\na,b\n", "its format is CSV"),
    ],
)
async def test_what_is_no_json_lines_is_refused(client: openai.AsyncOpenAI, content: bytes, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        await upload(client, content)
    assert (refused.value.code, refused.value.param, refused.value.type) == (
        "invalid_file_format",
        "file",
        "invalid_request_error",
    )


async def test_limits_are_refused_by_size_and_quota(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="larger than 10,000 bytes") as large:
        await upload(client, ROW * 400)
    assert (large.value.status_code, large.value.code) == (413, "file_too_large")
    kept = [await upload(client, ROW * 90) for _ in range(2)]
    with pytest.raises(openai.BadRequestError, match="more than the 20,000 bytes") as quota:
        await upload(client, ROW * 90)
    assert quota.value.code == "storage_quota_exceeded"
    await client.files.delete(kept[0])
    await upload(client, ROW * 90)


async def test_other_purposes_are_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="must be 'fine-tune', got 'batch'") as refused:
        await client.files.create(file=("a.jsonl", io.BytesIO(ROW)), purpose="batch")
    assert refused.value.param == "purpose"


@pytest.mark.parametrize(
    ("query", "param"), [({"limit": 0}, "limit"), ({"order": "up"}, "order"), ({"page": 2}, "page")]
)
async def test_a_wrong_query_is_refused_by_its_name(
    client: openai.AsyncOpenAI, query: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.files.list(extra_query=query)
    assert refused.value.param == param


async def test_a_cursor_that_is_no_id_of_a_file_is_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="must be an id of this list") as refused:
        await client.files.list(after="page-2")
    assert refused.value.param == "after"


async def test_the_openapi_page_has_the_form_of_an_upload(context: Context) -> None:
    form = create_app(context).openapi()["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file", "purpose"]


async def test_the_server_removes_what_has_expired_once_no_job_needs_it(context: Context) -> None:
    def expired() -> str:
        with context.files.draft() as draft:
            draft.write(ROW)
            return draft.publish(filename="rows.jsonl", expires_after=0).id

    needed, other = expired(), expired()
    hold(context, make_job("ftjob-1", {"path": upload_path(needed)}))
    sweeping = asyncio.create_task(sweep(context))
    while (context.files.folder / other).exists():
        await asyncio.sleep(0.01)
    sweeping.cancel()
    assert (context.files.folder / needed).exists()
    assert context.files.records() == [], "nobody is given either"


async def test_a_claim_that_can_only_be_read_for_a_while_does_not_end_the_removals(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with context.files.draft() as draft:
        draft.write(ROW)
        expired = draft.publish(filename="rows.jsonl", expires_after=0).id

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(file_uses, "SWEEP_SECONDS", 0.01)
    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "rename", refuse)
        sweeping = asyncio.create_task(sweep(context))
        while "could not be removed" not in caplog.text:
            assert not sweeping.done()
            await asyncio.sleep(0.01)
    while (context.files.folder / expired).exists():
        assert not sweeping.done()
        await asyncio.sleep(0.01)
    sweeping.cancel()
