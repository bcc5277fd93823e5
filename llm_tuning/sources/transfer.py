"""One file from its origin to this disk: continued where it was left, hashed as it comes, whole at the end.

What is there of a file is hashed from the disk and the rest asked for from that position on. Bytes are written to their
own positions, so that a holder who has lost its claim and another who took it over write the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.sources.listing import RemoteFile
from llm_tuning.sources.origin import Origin
from llm_tuning.sources.pace import Meter
from llm_tuning.sources.patience import Ended, Patience
from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.store import FileRecord
from llm_tuning.sources.uri import Source

BUFFER_BYTES = 2**20


@dataclass
class _Part:
    """A file under way: how much of it is there, and the hashes of that."""

    file: RemoteFile
    descriptor: int
    meter: Meter
    ended: Callable[[], bool]
    have: int = 0
    resumed: bool = False

    def restart(self) -> None:
        """Forget what is there."""
        self.meter.add(-self.have, moved=0)
        os.ftruncate(self.descriptor, 0)
        self.have, self.resumed = 0, False
        self._digests()

    def read_back(self) -> None:
        """Hash what an earlier try has left; none of it comes again."""
        self._digests()
        size = os.fstat(self.descriptor).st_size
        if size > self.file.size:
            os.ftruncate(self.descriptor, 0)
            return
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while self.have < size and (count := os.preadv(self.descriptor, [buffer], self.have)):
            if self.ended():
                raise Ended
            self._hash(buffer[:count])
            self.have += count
            self.meter.add(count, moved=0)
        self.resumed = self.have > 0

    def take(self, data: memoryview) -> None:
        """Write and hash the next bytes."""
        left = data
        at = self.have
        while left:
            written = os.pwrite(self.descriptor, left, at)
            left, at = left[written:], at + written
        self._hash(data)
        self.have += len(data)
        self.meter.add(len(data), moved=len(data))

    def is_right(self) -> bool:
        """Compare with each hash that the origin has told."""
        file = self.file
        told = ((file.sha256, self.sha256), (file.git_sha1, self._git))
        return all(hashed.hexdigest() == want for want, hashed in told if want and hashed is not None)

    def _digests(self) -> None:
        self.sha256 = hashlib.sha256()
        git = self.file.git_sha1
        self._git = hashlib.new("sha256" if len(git) == 64 else "sha1", usedforsecurity=False) if git else None
        if self._git is not None:
            self._git.update(f"blob {self.file.size}\0".encode())

    def _hash(self, data: memoryview) -> None:
        self.sha256.update(data)
        if self._git is not None:
            self._git.update(data)


def transfer(
    origin: Origin,
    source: Source,
    commit: str,
    file: RemoteFile,
    *,
    part: Path,
    whole: Path,
    patience: Patience,
) -> FileRecord:
    """Bring `file` to `whole`, by way of `part`; returns what it hashes to.

    Raises SourceRefused (HashMismatch and what the
    origin says), SourceBusy, Ended, and OSError of the disk.
    """
    if whole.exists() and (record := _as_left(whole, file, patience)) is not None:
        return record
    part.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    try:
        state = _Part(file, descriptor, patience.meter, patience.ended)
        state.read_back()
        patience.run(lambda: _continue(origin, source, commit, state))
        if not state.is_right() and state.resumed:  # a disk that lost power may hold zeros: once more, from the start
            state.restart()
            patience.run(lambda: _continue(origin, source, commit, state))
        if not state.is_right():
            state.restart()
            part.unlink(missing_ok=True)
            rule = f"has sent a {file.name} that is not what it lists: the hashes differ"
            fix = "try again later; if it stays so, its file is damaged there or a proxy changes it"
            raise SourceRefused(Terminal.HASH, source, rule, fix)
        os.ftruncate(descriptor, file.size)
        os.fsync(descriptor)
        record = FileRecord(file.size, state.sha256.hexdigest())
    finally:
        os.close(descriptor)
    whole.parent.mkdir(parents=True, exist_ok=True)
    part.replace(whole)
    return record


def _as_left(whole: Path, file: RemoteFile, patience: Patience) -> FileRecord | None:
    """Return what a file hashes to that an earlier holder has finished; None, and it is gone, where it is damaged."""
    descriptor = os.open(whole, os.O_RDWR | os.O_CLOEXEC)
    try:
        state = _Part(file, descriptor, patience.meter, patience.ended)
        state.read_back()
        if state.have == file.size and state.is_right():
            return FileRecord(file.size, state.sha256.hexdigest())
        state.restart()
    finally:
        os.close(descriptor)
    whole.unlink()
    return None


def _continue(origin: Origin, source: Source, commit: str, state: _Part) -> None:
    """Make one try at what is missing of a file."""
    if state.have == state.file.size:
        return
    body = origin.open(source, commit, state.file, state.have)
    try:
        if body.start != state.have:  # a server that cannot start in the middle
            state.restart()
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while state.have < state.file.size:
            count = body.readinto(buffer[: min(BUFFER_BYTES, state.file.size - state.have)])
            if state.ended():
                raise Ended
            if count == 0:
                rule = (
                    f"the connection ended {state.file.size - state.have:,} bytes before the end of {state.file.name}"
                )
                raise SourceBusy(Passing.UNREACHABLE, source, rule)
            state.take(buffer[:count])
    finally:
        body.close()
