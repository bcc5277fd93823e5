"""The work of the one process that fetches a source: room, small files, checks, the rest, the rename."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.core.files import read_json
from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.sources import store
from llm_tuning.sources.claim import Claim
from llm_tuning.sources.listing import Listing, RemoteFile
from llm_tuning.sources.origin import Origin
from llm_tuning.sources.patience import Patience
from llm_tuning.sources.reasons import SourceRefused, Terminal
from llm_tuning.sources.selection import CONFIGURATIONS, check_configurations
from llm_tuning.sources.store import FileRecord, SourceRecord, Stored
from llm_tuning.sources.transfer import transfer
from llm_tuning.sources.uri import Kind, Source

SPARE_BYTES = 2**22
"""Kept free beside the files: source.json, claims, folders."""
_LOOK_SECONDS = 0.2


class ClaimLost(Exception):  # noqa: N818 - no fault
    """Another process has taken over, since nothing was heard of this one."""


@dataclass(frozen=True)
class Plan:
    """What is to be fetched, from where, to where."""

    origin: Origin
    source: Source
    root: Path
    listing: Listing
    chosen: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of the chosen files together."""
        return sum(file.size for file in self.chosen)

    @property
    def work(self) -> Path:
        return store.work_of(self.root, self.source, self.listing.commit)

    def find(self) -> Stored | None:
        """Return the source if it is whole."""
        return store.find(self.root, self.source, self.listing.commit)


@dataclass
class Filling:
    """A work folder that becomes the source."""

    plan: Plan
    patience: Patience
    claim: Claim

    @property
    def files(self) -> Path:
        """The folder that is renamed to its place; what lies in it has been verified."""
        return self.plan.work / "files"

    def run(self) -> None:
        """Fetch what is missing and publish; raises SourceRefused, SourceBusy, TryAgain, ClaimLost, OSError."""
        plan, source = self.plan, self.plan.source
        self._check_room()
        small = [file for file in plan.chosen if source.kind is Kind.MODEL and file.name in CONFIGURATIONS]
        try:
            records = self._transfer_all(small)
            check_configurations(source, {file.name: _object(self.files / file.name) for file in small})
        except SourceRefused:
            shutil.rmtree(self.files, ignore_errors=True)
            raise
        rest = sorted((file for file in plan.chosen if file not in small), key=lambda file: -file.size)
        records |= self._transfer_all(rest)
        record = SourceRecord.of(source, plan.listing.commit, {file.name: records[file.name] for file in plan.chosen})
        store.publish(self.files, store.folder_of(plan.root, source, plan.listing.commit), record)

    def _check_room(self) -> None:
        need = self.plan.size - store.bytes_in(self.plan.work) + SPARE_BYTES
        free = shutil.disk_usage(self.plan.work).free
        if need > free:
            raise too_small(self.plan.source, self.plan.root, need=need, free=free)

    def _transfer_all(self, files: Sequence[RemoteFile]) -> dict[str, FileRecord]:
        """Bring `files` here, several at once; the first fault ends all."""
        waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[str, FileRecord | BaseException]] = queue.SimpleQueue()
        for file in files:
            waiting.put(file)

        def work() -> None:
            with suppress(queue.Empty):
                while True:
                    file = waiting.get_nowait()
                    try:
                        ended.put((file.name, self._transfer(file)))
                    except BaseException as error:
                        ended.put((file.name, error))
                        return

        # Daemons: one that waits for a silent server must not keep a process that was asked to stop.
        for _ in range(min(self.patience.limits.connections, len(files))):
            threading.Thread(target=work, name="fetch", daemon=True).start()
        records: dict[str, FileRecord] = {}
        try:
            while len(records) < len(files):
                self.patience.show()
                raise_if_stopped("the fetch")
                if self.claim.lost:
                    raise ClaimLost
                with suppress(queue.Empty):
                    name, came = ended.get(timeout=_LOOK_SECONDS)
                    if isinstance(came, BaseException):
                        raise came
                    records[name] = came
        except BaseException:
            self.patience.end()
            raise
        self.patience.show()
        return records

    def _transfer(self, file: RemoteFile) -> FileRecord:
        plan, name = self.plan, file.name
        return transfer(
            plan.origin,
            plan.source,
            plan.listing.commit,
            file,
            part=plan.work / "parts" / name,
            whole=self.files / name,
            patience=self.patience,
        )


def too_small(source: Source, root: Path, *, need: int | None, free: int) -> SourceRefused:
    """Build the refusal of a volume without room; `need` is None where only the end of it was met."""
    needs = "needs more than that" if need is None else f"still needs {_size(need)}"
    rule = f"{needs}, and {root} has {_size(free)} free"
    fix = "make room, {command:sources list} shows what can go, or give a larger volume; what is there is kept"
    return SourceRefused(Terminal.ROOM, source, rule, fix)


def _size(count: int) -> str:
    return f"{count:,} bytes ({count / 2**30:.2f} GiB)"


def _object(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None  # the check of the base says what is wrong with it
