"""The store of uploaded files, on a folder of its own."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_tuning.openai_api import files
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.files import RECORD, Draft, FileRecord, FileStore
from llm_tuning.openai_api.names import DATA_FILE, file_id_of, new_file_id, upload_path

ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
HOUR = 3600


def make_store(root: Path, *, file_bytes: int = 1_000_000, total_bytes: int = 1_000_000) -> FileStore:
    return FileStore(root, file_bytes=file_bytes, total_bytes=total_bytes)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return make_store(tmp_path)


def upload(store: FileStore, content: bytes = ROW, **given: int) -> FileRecord:
    with store.draft() as draft:
        draft.write(content)
        return draft.publish(filename="rows.jsonl", **given)


def refused(store: FileStore, content: bytes) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        upload(store, content)
    assert store.records() == []
    assert list(store.work.iterdir()) == []
    return refusal.value


def test_a_file_has_its_bytes_its_hash_and_the_name_it_was_given(store: FileStore) -> None:
    record = upload(store)
    assert store.content(record).read_bytes() == ROW
    assert store.content(record) == store.folder / record.id / "data.jsonl"
    assert str(store.content(record)).endswith(upload_path(record.id))
    assert file_id_of(upload_path(record.id)) == record.id
    assert (record.bytes, record.sha256) == (len(ROW), hashlib.sha256(ROW).hexdigest())
    assert (record.filename, record.expires_at) == ("rows.jsonl", None)
    assert store.find(record.id) == record


def test_a_second_store_on_the_claim_finds_what_the_first_has_written_and_removed(
    store: FileStore, tmp_path: Path
) -> None:
    other = make_store(tmp_path)
    record = upload(store)
    assert other.records() == [record]
    assert other.delete(record.id)
    assert store.records() == []
    assert store.find(record.id) is None


def test_files_are_listed_by_the_time_of_their_upload(store: FileStore) -> None:
    first = upload(store)
    time.sleep(0.002)  # an id knows milliseconds
    second = upload(store)
    assert store.records() == [first, second]


def test_a_file_of_which_a_byte_is_missing_is_not_there(store: FileStore) -> None:
    """As after a kill at each moment of an upload: only a rename makes a file."""
    draft = store.draft()
    assert store.records() == []
    draft.write(ROW[:10])
    assert store.records() == []
    draft.__exit__()
    assert list(store.work.iterdir()) == []


def test_a_draft_is_removed_when_an_hour_went_by_without_a_write(store: FileStore) -> None:
    draft = store.draft()
    draft.write(ROW)
    written = max(path.stat().st_mtime for path in store.work.rglob("*"))
    store.sweep((), now=written + HOUR - 60)
    assert len(list(store.work.iterdir())) == 1
    store.sweep((), now=written + HOUR + 60)
    assert list(store.work.iterdir()) == []


def test_what_a_killed_deletion_has_left_is_removed_and_not_listed(store: FileStore) -> None:
    record = upload(store)
    (store.folder / record.id).rename(store.work / f"{record.id}.dead")
    assert store.records() == []
    store.sweep((), now=record.created_at + 2 * HOUR)
    assert list(store.work.iterdir()) == []


def test_an_expired_file_is_gone_for_everyone_and_its_bytes_stay_while_a_job_reads_them(store: FileStore) -> None:
    record = upload(store, expires_after=HOUR)
    assert record.expires_at == record.created_at + HOUR
    assert store.find(record.id, now=record.created_at + HOUR - 1) == record
    assert store.find(record.id, now=record.created_at + HOUR) is None
    assert store.records(now=record.created_at + HOUR) == []
    store.sweep({record.id}, now=record.created_at + HOUR)
    assert store.content(record).exists()
    store.sweep((), now=record.created_at + HOUR)
    assert not (store.folder / record.id).exists()


def test_a_file_beyond_the_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    store = make_store(tmp_path, file_bytes=3 * len(ROW))
    assert upload(store, 3 * ROW).bytes == 3 * len(ROW)
    with store.draft() as draft:
        draft.write(3 * ROW)
        with pytest.raises(ApiError, match="larger than 264 bytes") as refusal:
            draft.write(b" ")
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (413, "file_too_large", "file")
    with store.draft() as draft, pytest.raises(ApiError, match="larger than 264 bytes"):
        draft.expect(3 * len(ROW) + 1)


def test_the_quota_counts_files_and_uploads_under_way_and_is_free_again_after_a_deletion(tmp_path: Path) -> None:
    store = make_store(tmp_path, total_bytes=3 * len(ROW))
    first = upload(store)
    with store.draft() as under_way:
        under_way.write(ROW)
        assert store.used_bytes() == 2 * len(ROW)
        assert upload(store).bytes == len(ROW)
        with store.draft() as draft, pytest.raises(ApiError, match="0 are left") as refusal:
            draft.write(b" ")
    assert (refusal.value.status, refusal.value.code) == (400, "storage_quota_exceeded")
    store.delete(first.id)
    assert upload(store).bytes == len(ROW)


@pytest.mark.parametrize("is_another_replica", [False, True])
def test_of_two_uploads_that_fit_alone_one_is_refused_and_leaves_nothing(
    tmp_path: Path, is_another_replica: bool
) -> None:
    store = make_store(tmp_path, total_bytes=3 * len(ROW))
    other = make_store(tmp_path, total_bytes=3 * len(ROW)) if is_another_replica else store
    with store.draft() as first, other.draft() as second:
        first.write(2 * ROW)
        with pytest.raises(ApiError, match=r"more than the 264 bytes .*\(88 are left\)") as refusal:
            second.write(2 * ROW)
        assert (refusal.value.status, refusal.value.code) == (400, "storage_quota_exceeded")
        published = first.publish(filename="rows.jsonl")
    assert store.records() == other.records() == [published]
    assert list(store.work.iterdir()) == []


def test_an_upload_is_refused_for_what_was_published_since_its_last_write(tmp_path: Path) -> None:
    store, of_a_larger_quota = make_store(tmp_path, total_bytes=3 * len(ROW)), make_store(tmp_path)
    with store.draft() as draft:
        draft.write(2 * ROW)
        kept = upload(of_a_larger_quota, 2 * ROW)
        with pytest.raises(ApiError, match="88 are left"):
            draft.publish(filename="rows.jsonl")
        assert list(store.work.iterdir()) == []
    assert store.records() == [kept]


def _has_room(draft: Draft) -> bool:
    try:
        draft.write(ROW)
    except ApiError as refusal:
        return refusal.code != "storage_quota_exceeded"
    return True


def test_uploads_at_once_go_beyond_the_quota_by_no_more_than_each_writes_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, quota, uploads = 2 * len(ROW), 30 * len(ROW), 6
    monkeypatch.setattr(files, "LOOK_BYTES", look)
    stores = [make_store(tmp_path, total_bytes=quota) for _ in range(2)]
    drafts = [stores[number % 2].draft() for number in range(uploads)]
    most = 0
    for _ in range(10):
        for draft in list(drafts):
            if not _has_room(draft):
                drafts.remove(draft)
            most = max(most, stores[0].used_bytes())
    assert most <= quota + uploads * look
    assert len(drafts) == 3, "all that have room"
    for draft in drafts:
        draft.publish(filename="rows.jsonl")
    assert stores[0].used_bytes() == quota
    assert list(stores[0].work.iterdir()) == []


def test_of_many_uploads_that_are_whole_at_once_as_many_are_kept_as_have_room(tmp_path: Path) -> None:
    store = make_store(tmp_path, total_bytes=5 * len(ROW))
    drafts = [store.draft() for _ in range(8)]
    whole = threading.Barrier(len(drafts))

    def finish(draft: Draft) -> bool:
        with draft:
            draft._stream.write(ROW)  # none of them looks before all are written
            draft.size = len(ROW)
            whole.wait()
            try:
                draft.publish(filename="rows.jsonl")
            except ApiError:
                return False
            return True

    with ThreadPoolExecutor(len(drafts)) as pool:
        assert sum(pool.map(finish, drafts)) == 5
    assert (store.used_bytes(), list(store.work.iterdir())) == (5 * len(ROW), [])


def test_a_draft_that_is_published_while_it_is_counted_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = (make_store(tmp_path, total_bytes=3 * len(ROW)) for _ in range(2))
    listed, under_way = store._all, other.draft()
    under_way.write(ROW)

    def published_before() -> list[FileRecord]:
        if not other.records():
            under_way.publish(filename="rows.jsonl")
        return listed()

    monkeypatch.setattr(store, "_all", published_before)
    assert upload(store, 2 * ROW).bytes == 2 * len(ROW)
    assert len(store.records()) == 2


def test_an_upload_looks_at_the_others_now_and_then(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, used_bytes = 0, store.used_bytes

    def count(**how: str) -> int:
        nonlocal looks
        looks += 1
        return used_bytes(**how)

    monkeypatch.setattr(files, "LOOK_BYTES", 100 * len(ROW))
    monkeypatch.setattr(store, "used_bytes", count)
    with store.draft() as draft:
        draft.expect(1000 * len(ROW))
        for _ in range(1000):
            draft.write(ROW)
        draft.publish(filename="rows.jsonl")
    assert looks <= 12


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + bytes(60), "rows.jsonl: is a zip archive; unpack it"),
        (gzip.compress(ROW, mtime=0), "rows.jsonl: is compressed with gzip; unpack it"),
        (gzip.compress(ROW, mtime=0)[:20], "rows.jsonl: ends in the middle: the file is cut off"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "rows.jsonl: is HTML or XML, often an error page"),
        (
            b"prompt,output\na,b\n",
            "rows.jsonl: its format is CSV; write each row as one JSON object",
        ),
        ((b"[" + ROW + b"]"), "rows.jsonl: its format is JSON array; write each row as one JSON object on a line"),
        (ROW.decode().encode("utf-16"), "rows.jsonl: is UTF-16; save it as UTF-8"),
        (ROW.decode().encode("utf-16-le"), "rows.jsonl: is UTF-16 without its mark; save it as UTF-8"),
        (b"Dear all,\nthe rows follow.\n", "rows.jsonl, line 1, column 1: is not JSON"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "rows.jsonl, line 1, column 1: is no text, and no format that is known"),
        (b"", "rows.jsonl: is empty"),
        (b" \n\n", "rows.jsonl: is empty"),
    ],
)
def test_what_is_no_json_lines_is_refused_with_what_it_is(store: FileStore, content: bytes, said: str) -> None:
    error = refused(store, content)
    assert (error.status, error.code, error.param) == (400, "invalid_file_format", "file")
    assert error.message.startswith(f"The file is not JSON Lines. {said}")
    assert str(store.folder) not in error.message


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + ROW, b"\n\n" + ROW, ROW.rstrip(), b'{"a": 1,'])
def test_what_begins_as_json_lines_is_taken_and_its_rows_are_for_the_data_check(
    store: FileStore, content: bytes
) -> None:
    assert upload(store, content).bytes == len(content)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "file-../x", ".work", "", "file-1", "\0"])
def test_an_id_that_no_file_has_leads_nowhere(store: FileStore, name: str) -> None:
    upload(store)
    assert store.find(name) is None


def test_what_others_have_put_in_the_place_of_a_file_is_not_given_out(store: FileStore, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("secret")
    link, folder, pipe, half, whole = (upload(store) for _ in range(5))
    store.content(link).unlink()
    store.content(link).symlink_to(secret)
    (store.folder / folder.id).rename(tmp_path / "elsewhere")
    (store.folder / folder.id).symlink_to(tmp_path / "elsewhere")
    (store.folder / pipe.id / RECORD).unlink()
    os.mkfifo(store.folder / pipe.id / RECORD)
    (store.folder / half.id / RECORD).write_text('{"id": ')
    store._known.clear()
    assert store.records() == [whole]
    assert [store.find(record.id) for record in (link, folder, pipe, half)] == [None] * 4


def test_what_else_lies_in_the_folder_is_no_file(store: FileStore) -> None:
    (store.folder / "notes").mkdir(parents=True)
    (store.folder / new_file_id()).write_text("a file in the place of a folder")
    (store.folder / new_file_id()).mkdir()
    assert store.records() == []
    assert store.used_bytes() == 0


def test_the_files_of_a_draft_can_be_read_by_the_pods_that_train(store: FileStore) -> None:
    record = upload(store)
    umask = os.umask(0)
    os.umask(umask)
    for path in (store.folder / record.id, store.content(record), store.folder / record.id / RECORD):
        assert path.stat().st_mode & 0o444 & ~umask == 0o444 & ~umask
    assert sorted(path.name for path in (store.folder / record.id).iterdir()) == sorted([DATA_FILE, RECORD])


def test_uploads_at_once_are_in_nobodys_way(tmp_path: Path) -> None:
    def use(number: int) -> int:
        store = make_store(tmp_path)
        for _ in range(10):
            store.delete(upload(store).id)
            with store.draft() as draft:
                draft.write(ROW)
                store.sweep(())
                store.records()
        return upload(store).bytes

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [len(ROW)] * 4
    store = make_store(tmp_path)
    assert (len(store.records()), store.used_bytes(), list(store.work.iterdir())) == (4, 4 * len(ROW), [])


def test_a_deletion_of_what_is_not_there_says_so(store: FileStore) -> None:
    assert not store.delete(new_file_id())
