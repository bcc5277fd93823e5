"""Bodies of multipart/form-data, in every cut of their chunks and with what is wrong in them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.files import FileRecord, FileStore
from llm_tuning.openai_api.upload import receive

ROW = b'{"prompt": "a", "output": "b"}\r\n'
BOUNDARY = b"--b0"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path, file_bytes=10_000, total_bytes=10_000)


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    given = "" if filename is None else f'; filename="{filename}"'
    head = f'Content-Disposition: form-data; name="{name}"{given}\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + content + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"
FILE = part("file", ROW, "rows.jsonl")
PURPOSE = part("purpose", b"fine-tune")


async def send(store: FileStore, body: bytes, *, chunk: int = 65536, **headers: str) -> FileRecord:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk):
            yield body[start : start + chunk]

    given = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}", **headers}
    return await receive(given, chunks(), store)


async def refusal(store: FileStore, body: bytes, **headers: str) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await send(store, body, **headers)
    assert store.records() == []
    assert not store.work.exists() or list(store.work.iterdir()) == []
    return refused.value


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64, 1000])
async def test_a_file_is_the_same_byte_for_byte_however_its_body_is_cut(store: FileStore, chunk: int) -> None:
    tricky = b'{"prompt": "\\r\\n--b0", "output": "' + b"\r\n--b" * 20 + b"\r\n--b\r\n" + b'"}\r\n\r\n'
    record = await send(store, PURPOSE + part("file", tricky, "rows.jsonl") + END, chunk=chunk)
    assert store.content(record).read_bytes() == tricky
    assert (record.bytes, record.filename, record.purpose) == (len(tricky), "rows.jsonl", "fine-tune")


async def test_the_order_of_the_parts_does_not_matter(store: FileStore) -> None:
    record = await send(store, FILE + PURPOSE + END)
    assert store.content(record).read_bytes() == ROW


async def test_what_an_upload_leaves_is_removed_beside_the_event_loop(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim may take its time, for which no other request is to wait."""
    threads, remove = list[threading.Thread](), shutil.rmtree

    def seen(*given: Any, **how: Any) -> None:
        threads.append(threading.current_thread())
        remove(*given, **how)

    monkeypatch.setattr(shutil, "rmtree", seen)
    await refusal(store, FILE + END)
    await send(store, PURPOSE + FILE + END)
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_file_may_expire(store: FileStore) -> None:
    expiry = part("expires_after[anchor]", b"created_at") + part("expires_after[seconds]", b"3600")
    record = await send(store, PURPOSE + expiry + FILE + END)
    assert record.expires_at == record.created_at + 3600


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/shadow", "shadow"),
        ("C:\\rows\\train.jsonl", "train.jsonl"),
        ("..", "file"),
        ("", "file"),
        ("   ", "file"),
        ("a/", "file"),
        (".hidden", ".hidden"),
        ("zeilen für 训练.jsonl", "zeilen für 训练.jsonl"),
        ("say %22hello%22.jsonl", 'say "hello".jsonl'),
        ("a%0D%0Ab.jsonl", "ab.jsonl"),
        ("a\x1b[31mred\x00.jsonl", "a[31mred.jsonl"),
        ("x" * 300, "x" * 255),
        ("file-0000000000000000000000000", "file-0000000000000000000000000"),
    ],
)
async def test_the_name_of_a_file_is_text_without_folders(store: FileStore, given: str, kept: str) -> None:
    record = await send(store, PURPOSE + part("file", ROW, given) + END)
    assert record.filename == kept
    assert store.content(record).parent.parent == store.folder
    assert store.content(record).read_bytes() == ROW


@pytest.mark.parametrize(
    ("body", "code", "param", "said"),
    [
        (PURPOSE + END, "missing_required_parameter", "file", "'file'"),
        (FILE + END, "missing_required_parameter", "purpose", "'purpose'"),
        (part("purpose", b"batch") + FILE + END, "invalid_value", "purpose", "must be 'fine-tune', got 'batch'"),
        (PURPOSE + FILE + FILE + END, "invalid_value", "file", "twice"),
        (PURPOSE + PURPOSE + FILE + END, "invalid_value", "purpose", "twice"),
        (PURPOSE + part("folder", b"x") + FILE + END, "unknown_parameter", "folder", "Unknown parameter: 'folder'"),
        (part("purpose", b"x" * 2000) + FILE + END, "invalid_value", "purpose", "more than 1024 bytes"),
        (PURPOSE + FILE, "invalid_form", None, "the body ends before the form does"),
        (PURPOSE + FILE[:-20], "invalid_form", None, "the body ends before the form does"),
        (b"", "invalid_form", None, "the body ends before the form does"),
        (ROW, "invalid_form", None, "cannot be read"),
        (PURPOSE.replace(b"form-data", b"attachment"), "invalid_form", None, "Content-Disposition"),
        (
            PURPOSE + part("expires_after[seconds]", b"3600") + FILE + END,
            "invalid_value",
            "expires_after.anchor",
            "must be 'created_at', got None",
        ),
        (
            PURPOSE + part("expires_after[anchor]", b"created_at") + part("expires_after[seconds]", b"60") + FILE + END,
            "invalid_value",
            "expires_after.seconds",
            "from 3600 (an hour) to 2592000 (30 days), got '60'",
        ),
        (PURPOSE + part("file", b"<html>", "a.jsonl") + END, "invalid_file_format", "file", "a.jsonl: is HTML or XML"),
        (PURPOSE + part("file", ROW * 400, "a.jsonl") + END, "file_too_large", "file", "larger than 10,000 bytes"),
    ],
)
async def test_what_is_wrong_with_a_form_is_said_and_nothing_is_left_of_it(
    store: FileStore, body: bytes, code: str, param: str | None, said: str
) -> None:
    error = await refusal(store, body)
    assert (error.code, error.param) == (code, param)
    assert said in error.message
    assert error.status == (413 if code == "file_too_large" else 400)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/mixed; boundary=--b0", ""])
async def test_another_content_type_is_refused_by_its_name(store: FileStore, kind: str) -> None:
    error = await refusal(store, PURPOSE + FILE + END, **{"content-type": kind})
    assert error.code == "invalid_form"
    assert f"got {kind!r}" in error.message


async def test_a_body_that_is_too_long_by_its_own_word_is_refused_before_it_is_read(store: FileStore) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}", "content-length": "100000000"}
    with pytest.raises(ApiError, match="larger than 10,000 bytes"):
        await receive(headers, never(), store)


async def test_an_upload_that_breaks_off_leaves_nothing(store: FileStore) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield PURPOSE + FILE[: len(FILE) // 2]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await receive({"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}, half(), store)
    assert list(store.work.iterdir()) == []
