"""Uploads to a server process: cut connections, kills, and a volume without room."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from llm_tuning.openai_api.files import FileStore
from tests.support.openai_server import FileServer, file_server
from tests.support.small_disk import run_on_small_disk

ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
MIB = 2**20
HEAD = (
    b"POST /v1/files HTTP/1.1\r\nHost: api\r\nContent-Type: multipart/form-data; boundary=b0\r\n"
    b"Content-Length: 8388608\r\n\r\n"
    b'--b0\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
)


def client_of(server: FileServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="k", max_retries=0, _strict_response_validation=True)


def begin_upload(server: FileServer) -> socket.socket:
    """Send the first half of a file of 8 MiB, and wait until some of it lies on the volume."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(HEAD + ROW * (4 * MIB // len(ROW)))
    return connection


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def drafts(root: Path) -> list[Path]:
    return [path for path in root.glob("datasets/uploads/.work/*/data.jsonl") if path.stat().st_size >= MIB]


def test_an_upload_that_is_cut_in_the_middle_leaves_nothing_and_the_server_goes_on(tmp_path: Path) -> None:
    with file_server(tmp_path) as server, client_of(server) as client:
        connection = begin_upload(server)
        wait_for(lambda: drafts(tmp_path))
        assert client.files.list().data == [], "half a file is none"
        connection.close()
        wait_for(lambda: not list((tmp_path / "datasets/uploads/.work").iterdir()))
        made = client.files.create(file=("rows.jsonl", io.BytesIO(ROW)), purpose="fine-tune")
        assert [file.id for file in client.files.list().data] == [made.id]


def test_a_server_that_is_killed_in_an_upload_leaves_a_draft_that_is_no_file_and_goes(tmp_path: Path) -> None:
    with file_server(tmp_path) as server, client_of(server) as client:
        kept = client.files.create(file=("rows.jsonl", io.BytesIO(ROW)), purpose="fine-tune")
        connection = begin_upload(server)
        wait_for(lambda: drafts(tmp_path))
        server.kill()
        connection.close()
    assert drafts(tmp_path)
    with file_server(tmp_path) as server, client_of(server) as client:
        assert [file.id for file in client.files.list().data] == [kept.id]
        assert client.files.content(kept.id).content == ROW
    store = FileStore(tmp_path, file_bytes=MIB, total_bytes=MIB)
    store.sweep((), now=drafts(tmp_path)[0].stat().st_mtime + 3601)
    assert list(store.work.iterdir()) == []
    assert [record.id for record in store.records()] == [kept.id]


def test_a_file_that_is_too_large_is_refused_before_it_was_sent_and_the_sdk_reads_why(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROW * (64 * MIB // len(ROW)))
    with file_server(tmp_path, file_bytes=MIB) as server, client_of(server) as client:
        with pytest.raises(openai.APIStatusError, match="larger than 1,048,576 bytes") as refused:
            client.files.create(file=rows, purpose="fine-tune")
        assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
        made = client.files.create(file=("rows.jsonl", io.BytesIO(ROW)), purpose="fine-tune")
        assert [file.id for file in client.files.list().data] == [made.id]


FULL = """
import asyncio, io, openai
from llm_tuning.openai_api.app import create_app
from tests.support.openai_api import make_context
from tests.support.openai_sdk import sdk

ROW = b'{"prompt": "a", "output": "b"}\\n'
context = make_context(disk, file_bytes=10**9, total_bytes=10**9)

async def refusal(client, content, **headers):
    try:
        await client.files.create(file=("a.jsonl", io.BytesIO(content)), purpose="fine-tune", extra_headers=headers)
    except openai.APIStatusError as error:
        return error
    raise AssertionError("taken")

async def main():
    async with sdk(create_app(context), max_retries=3) as client:
        kept = await client.files.create(file=("a.jsonl", io.BytesIO(ROW)), purpose="fine-tune")
        announced = await refusal(client, ROW * 100_000)
        assert "the volume has" in announced.message, announced.message
        context.files.draft = lambda make=context.files.draft: quiet(make())
        written = await refusal(client, ROW * 100_000)
        assert "the volume is full (No space left on device)" in written.message, written.message
        for error in (announced, written):
            assert (error.status_code, error.code, error.param) == (507, "storage_full", "file")
            assert error.response.headers["x-should-retry"] == "false"
        filler = fill()
        assert (await refusal(client, ROW)).code == "storage_full"
        assert [file.id for file in (await client.files.list()).data] == [kept.id]
        assert (await client.files.content(kept.id)).content == ROW
        await client.files.delete(kept.id)
        filler.unlink()
        await client.files.create(file=("a.jsonl", io.BytesIO(ROW)), purpose="fine-tune")
        assert len(context.files.records()) == 1
        assert list(context.files.work.iterdir()) == []
        remount("ro")
        error = await refusal(client, ROW)
        assert (error.status_code, error.code) == (500, "storage_not_writable"), error
        assert "must mount that folder writable" in error.message

def quiet(draft):
    draft.expect = lambda size: None  # as where the size is not known before
    return draft

asyncio.run(main())
print("done")
"""


def test_a_full_volume_refuses_uploads_keeps_files_and_takes_more_once_there_is_room(tmp_path: Path) -> None:
    assert run_on_small_disk(tmp_path / "claim", FULL, kibibytes=1024).strip() == "done"
