"""Uploaded files as they lie on the claim: `datasets/uploads/<file id>/` with `data.jsonl` and `file.json`.

A file is there whole or not at all. A draft lies in `.work`, is flushed to the disk and appears by one rename; a
deletion renames it back first. So a kill at any moment leaves nothing but drafts, which are removed when nobody has
written to them for an hour. The folder is the only truth: replicas share it and keep no state besides. The name that a
user gave a file is text in `file.json` and never part of a path.

Uploads of all replicas share the quota: each counts the others' drafts, every `LOOK_BYTES` and once more when it lies
there whole, so that no files beyond the quota are published, and drafts exceed it by `LOOK_BYTES` for each upload that
goes on. On a volume that shows late what other nodes write (NFS, some seconds), what came meanwhile comes on top.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llm_tuning.core.files import flush, read_file, write_json
from llm_tuning.data.files.content import FORMAT_NAMES, look_at
from llm_tuning.errors import InputError
from llm_tuning.openai_api.errors import NEVER_AGAIN, ApiError
from llm_tuning.openai_api.names import DATA_FILE, FILE_ID, UPLOADS, new_file_id, time_of
from llm_tuning.openai_api.wire import FileObject

log = logging.getLogger(__name__)

RECORD, WORK = "file.json", ".work"
RECORD_BYTES = 2**16
DRAFT_SECONDS = 3600
"""Without a write for this long a draft belongs to no upload that goes on."""

LOOK_BYTES = 16 * 2**20
"""An upload writes so much before it looks again what the others have taken: milliseconds, with hundreds of files."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class FileRecord(BaseModel):
    """`file.json`: all that is known of an uploaded file besides its bytes. It never changes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    bytes: int
    created_at: int
    """Seconds since 1970, as `expires_at`."""
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    sha256: str
    expires_at: int | None = None

    def as_object(self) -> FileObject:
        """Return what the API says of the file."""
        return FileObject.model_validate(self.model_dump(exclude={"sha256"}))

    def is_expired(self, now: float) -> bool:
        """Return whether the time that the user gave the file is over."""
        return self.expires_at is not None and self.expires_at <= now


class FileStore:
    """The files on a claim, each of at most `file_bytes`, all of `total_bytes`; methods may block on the disk."""

    def __init__(self, root: Path, *, file_bytes: int, total_bytes: int) -> None:
        self.folder = root / UPLOADS
        self.work = self.folder / WORK
        self.file_bytes, self.total_bytes = file_bytes, total_bytes
        self.measuring = threading.Lock()
        """Held by an upload from its look at the quota until it is gone, if refused: the next one has its room."""
        self._known: dict[str, FileRecord] = {}

    def records(self, now: float | None = None) -> list[FileRecord]:
        """Return every file that is not expired, oldest first."""
        now = time.time() if now is None else now
        return [record for record in self._all() if not record.is_expired(now)]

    def find(self, file_id: str, now: float | None = None) -> FileRecord | None:
        """Return the file of this id, None where there is none or its time is over."""
        record = self._read(file_id) if FILE_ID.fullmatch(file_id) else None
        return None if record is None or record.is_expired(time.time() if now is None else now) else record

    def content(self, record: FileRecord) -> Path:
        """Return where the bytes of a file lie."""
        return self.folder / record.id / DATA_FILE

    def draft(self) -> Draft:
        """Begin an upload; raises ApiError where the volume cannot be written."""
        with storage_errors():
            return Draft(self)

    def used_bytes(self, *, but: str = "") -> int:
        """Return what files and drafts take, expired ones included, without the draft of the name `but`.

        Drafts come first: one that is published meanwhile may count twice, but is never left out.
        """
        drafts = sum(_size(path) for path in self.work.glob(f"*/{DATA_FILE}") if path.parent.name != but)
        return drafts + sum(record.bytes for record in self._all())

    def delete(self, file_id: str) -> bool:
        """Remove a file; False where there was none. Its readers that have it open go on reading."""
        doomed = self.work / f"{file_id}.{secrets.token_hex(4)}"
        try:
            with storage_errors():
                self.work.mkdir(parents=True, exist_ok=True)
                (self.folder / file_id).rename(doomed)
        except FileNotFoundError:
            return False
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def sweep(self, in_use: Collection[str], now: float | None = None) -> None:
        """Remove expired files but those `in_use`, by their ids, and what killed uploads and deletions have left."""
        now = time.time() if now is None else now
        for record in self._all():
            if record.is_expired(now) and record.id not in in_use:
                self.delete(record.id)
        for left in list(self.work.iterdir()) if self.work.is_dir() else ():
            if now - _last_write(left) > DRAFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def _all(self) -> list[FileRecord]:
        names = (
            sorted(name for name in os.listdir(self.folder) if FILE_ID.fullmatch(name)) if self.folder.is_dir() else []
        )
        found = {name: self._known.get(name) or self._read(name) for name in names}
        known = {name: record for name, record in found.items() if record is not None}
        self._known = known  # another thread may put what it has listed earlier in its place at once
        return list(known.values())

    def _read(self, file_id: str) -> FileRecord | None:
        """Read a record, None where there is none; what others have put in its place is logged and no file of ours."""
        path = self.folder / file_id
        try:
            record = FileRecord.model_validate_json(read_file(path / RECORD, most=RECORD_BYTES))
            # A link would make this server read for others what they may not.
            regular = stat.S_ISDIR(path.lstat().st_mode) and stat.S_ISREG((path / DATA_FILE).lstat().st_mode)
            if record.id == file_id and regular:
                return record
            log.warning("%s is not as an upload leaves it: it is not listed", path)
        except (FileNotFoundError, NotADirectoryError):
            pass  # another replica deletes it at this moment
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read: %s", path / RECORD, str(error).splitlines()[0])
        return None


class Draft:
    """A file that is being uploaded; a context manager that leaves nothing behind unless it was published."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self.size = 0
        self._next_look = 0
        """The size from which on the others' uploads are to be counted again."""
        self._digest = hashlib.sha256()
        self._folder = store.work / secrets.token_hex(8)
        self._folder.mkdir(parents=True)
        self._stream = (self._folder / DATA_FILE).open("xb", buffering=0)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind but what was published."""
        self._stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def expect(self, size: int) -> None:
        """Raise ApiError where a file of this size has no room: better at once than after hours."""
        self._check_size(size)
        with storage_errors():
            free = shutil.disk_usage(self._folder).free
        if size > free:
            raise _full(f"the file has {size:,} bytes, and the volume has {free:,} left")

    def write(self, content: bytes) -> None:
        """Append `content`; raises ApiError where it goes beyond a limit or the volume.

        Beyond the quota the draft is closed already.
        """
        self._check_size(self.size + len(content))
        with storage_errors():
            view = memoryview(content)
            while view:
                view = view[self._stream.write(view) :]
        self._digest.update(content)
        self.size += len(content)

    def publish(self, *, filename: str, expires_after: int | None = None) -> FileRecord:
        """Make the draft a file; raises ApiError where it holds no rows of JSON Lines, or quota or volume are full."""
        check_json_lines(self._folder / DATA_FILE, filename)
        file_id = new_file_id()
        now = time_of(file_id)
        record = FileRecord(
            id=file_id,
            bytes=self.size,
            created_at=now,
            filename=filename,
            sha256=self._digest.hexdigest(),
            expires_at=None if expires_after is None else now + expires_after,
        )
        with storage_errors():
            os.fsync(self._stream.fileno())  # other nodes see its size from now on
            self._check_quota(self.size)
            write_json(self._folder / RECORD, record.model_dump())
            flush(self._folder)
            self._folder.rename(self._store.folder / record.id)
            flush(self._store.folder)
        return record

    def _check_size(self, size: int) -> None:
        if size > (most := self._store.file_bytes):
            raise ApiError(
                413,
                f"The file is larger than {most:,} bytes, the most that is taken. Split it, or leave rows out.",
                code="file_too_large",
                param="file",
            )
        if size > self._next_look:
            with storage_errors():
                self._check_quota(size)

    def _check_quota(self, size: int) -> None:
        """Count all other uploads; closes this one, of `size`, and raises ApiError where it has no room beside them."""
        store = self._store
        with store.measuring:
            for _ in range(2):  # what is published during one look counts twice in it
                left = store.total_bytes - store.used_bytes(but=self._folder.name)
                if size <= left:
                    self._next_look = min(left, self.size + LOOK_BYTES)
                    return
            self.close()
        raise ApiError(
            400,
            f"With this file the uploads would take more than the {store.total_bytes:,} bytes that they may have "
            f"({max(0, left):,} are left). Delete files that are no longer used: client.files.delete(id).",
            code="storage_quota_exceeded",
            param="file",
        )


def check_json_lines(path: Path, filename: str) -> None:
    """Raise ApiError where a file does not begin as JSON Lines do; the rows are for the data check of a job."""
    try:
        found = look_at(path)
    except InputError as error:
        raise _not_json_lines(str(error).replace(str(path), filename)) from None
    if found.stored.compression is not None:
        raise _not_json_lines(f"{filename}: is compressed with {found.stored.compression}; unpack it")
    if found.format != "jsonl":
        fix = "write each row as one JSON object on a line of its own"
        raise _not_json_lines(f"{filename}: its format is {FORMAT_NAMES[found.format]}; {fix}")


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the volume refuses into an ApiError that no client tries again by itself."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(f"the volume is full ({error.strerror})") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ApiError(
                500,
                f"The server cannot write to {UPLOADS} of its volume ({error.strerror}). "
                "Whoever runs it must mount that folder writable.",
                code="storage_not_writable",
                headers=NEVER_AGAIN,
            ) from error
        raise


def _full(what: str) -> ApiError:
    return ApiError(
        507,
        f"The file cannot be stored: {what}. Delete files that are no longer used, or have the volume enlarged.",
        code="storage_full",
        param="file",
        headers=NEVER_AGAIN,
    )


def _not_json_lines(message: str) -> ApiError:
    return ApiError(400, f"The file is not JSON Lines. {message}.", code="invalid_file_format", param="file")


def _size(path: Path) -> int:
    """Return the size of a draft; 0 where it is gone meanwhile."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _last_write(folder: Path) -> float:
    """Return when something in a folder of `.work` was written last."""
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
    except NotADirectoryError:
        return folder.lstat().st_mtime
    except FileNotFoundError:  # gone meanwhile
        return time.time()
