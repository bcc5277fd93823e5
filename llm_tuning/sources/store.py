"""What lies on this disk: `sources/<scheme>/.../<commit>/` with a `source.json`, whole or not there.

`source.json` is written last into a folder that is then renamed to its place; so a folder that has one is whole. It
travels with a copy of the folder: wherever a base or a data set lies, its origin is read from beside it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_tuning.core.files import check_regular, file_hash, flush, flush_tree, read_json, write_json
from llm_tuning.errors import InputError, Problem
from llm_tuning.sources.uri import SCHEMES, Kind, Source, path_parts

FOLDER = "sources"
"""Beside `models` on a volume, and in the working folder of the command line."""
WORK = ".work"
RECORD = "source.json"
RECORD_BYTES = 2**26
"""100,000 files with their hashes take 20 MB."""
_DEEPEST = 6
"""Folders from `sources` down to a commit, at most."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a source: bytes, and sha256 (hex)."""

    size: int
    sha256: str


@dataclass(frozen=True)
class SourceRecord:
    """What `source.json` says: where a folder comes from, at which commit, and what its files hash to."""

    uri: str
    """The repository, prefix or file, without a revision."""
    commit: str
    kind: str
    name: str
    """What the source is called: the base's name for users and servers."""
    files: dict[str, FileRecord]
    selection: str = ""
    """The file or `split=NAME` that was taken of a data set repository; "" is all that is taken of it."""
    fetched_at: str = ""

    @property
    def size(self) -> int:
        """Bytes of its files together."""
        return sum(file.size for file in self.files.values())

    @classmethod
    def of(cls, source: Source, commit: str, files: dict[str, FileRecord]) -> SourceRecord:
        """Build the record of `source` as it is fetched now."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(source.repository, commit, source.kind.value, source.name, files, selection_of(source), now)

    def as_json(self) -> dict[str, Any]:
        """Return what `source.json` holds."""
        return asdict(self)


@dataclass(frozen=True)
class Stored:
    """A whole source on this disk."""

    folder: Path
    record: SourceRecord

    @property
    def path(self) -> Path:
        """What a run takes: the folder, or the file where a data set is one file."""
        if self.record.kind == Kind.DATASET and len(self.record.files) == 1:
            return self.folder / next(iter(self.record.files))
        return self.folder

    @property
    def uri(self) -> str:
        """The URI that gives exactly this again, commit included where the scheme has one."""
        split = f"?{self.record.selection}" if self.record.selection.startswith("split=") else ""
        file = f"/{self.record.selection}" if self.record.selection and not split else ""
        at = f"@{self.record.commit}" if self.record.uri.startswith("hf:") else ""
        return f"{self.record.uri}{at}{file}{split}"


def selection_of(source: Source) -> str:
    """Return what is taken of a repository, "" for all of it."""
    return source.file or (f"split={source.split}" if source.split else "")


def folder_of(root: Path, source: Source, commit: str) -> Path:
    """Return where `source` lies at `commit`; a part of a repository lies beside the whole of it."""
    part = selection_of(source)
    suffix = f"-{hashlib.sha256(part.encode()).hexdigest()[:8]}" if part else ""
    return root.joinpath(*path_parts(source), commit + suffix)


def work_of(root: Path, source: Source, commit: str) -> Path:
    """Return where it lies while it is fetched: one flat name, the same for all who fetch it."""
    return root / WORK / "--".join(folder_of(Path(), source, commit).parts)


def find(root: Path, source: Source, commit: str) -> Stored | None:
    """Return the source if it lies whole below `root`, else None.

    The folder is listed, not only looked up: a network file system may remember for a minute that a name is not there.
    """
    folder = folder_of(root, source, commit)
    try:
        if RECORD not in os.listdir(folder):
            return None
    except OSError:
        return None
    record = read_record(folder)
    return None if record is None else Stored(folder, record)


def read_record(folder: Path) -> SourceRecord | None:
    """Read the `source.json` of a folder; None where there is none that can be read."""
    try:
        value = read_json(folder / RECORD, most=RECORD_BYTES)
    except (OSError, ValueError):
        return None
    try:
        files = {str(name): FileRecord(int(f["size"]), str(f["sha256"])) for name, f in value["files"].items()}
        texts = {
            name: str(value.get(name, "")) for name in ("uri", "commit", "kind", "name", "selection", "fetched_at")
        }
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    return SourceRecord(files=files, **texts) if texts["uri"] and texts["commit"] and texts["name"] else None


def source_at(path: str | Path) -> Stored | None:
    """Return the source that the folder or file `path` belongs to, None where it was not fetched."""
    resolved = Path(path).resolve()
    for folder in (resolved, *list(resolved.parents)[:_DEEPEST]):
        if (folder / RECORD).is_file() and (record := read_record(folder)) is not None:
            belongs = folder == resolved or resolved.relative_to(folder).as_posix() in record.files
            return Stored(folder, record) if belongs else None
    return None


def stored(root: Path) -> Iterator[Stored]:
    """Yield every whole source below `root`, by path."""
    for scheme in sorted(SCHEMES):
        yield from _below(root / scheme, _DEEPEST)


def _below(folder: Path, depth: int) -> Iterator[Stored]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    if RECORD in names:
        if (record := read_record(folder)) is not None:
            yield Stored(folder, record)
    elif depth:
        for name in names:
            yield from _below(folder / name, depth - 1)


def unfinished(root: Path) -> list[tuple[Path, int]]:
    """List the work folders, with the bytes that lie in each."""
    try:
        folders = sorted(path for path in (root / WORK).iterdir() if path.is_dir())
    except OSError:
        return []
    return [(folder, bytes_in(folder)) for folder in folders]


def bytes_in(folder: Path) -> int:
    """Count the bytes of the files below `folder`; others may move while they are counted."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(at, name)).st_size
            except OSError:
                continue
    return total


def publish(files: Path, target: Path, record: SourceRecord) -> None:
    """Make the folder `files` the source at `target` in one step. One that is whole there already stays."""
    write_json(files / RECORD, record.as_json())
    flush_tree(files)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.rename(target)
    except OSError:
        if read_record(target) is None:
            raise
        return  # another process was quicker, with the same bytes
    flush(target.parent)


def verify(found: Stored) -> list[Problem]:
    """Return what differs from `source.json`; reads every byte."""
    fix = "remove it with {command:sources remove} and fetch it again"
    problems = []
    for name, file in sorted(found.record.files.items()):
        path = found.folder / name
        try:
            size = check_regular(path)
            if size != file.size:
                problems.append(
                    Problem(str(path), f"has {size:,} bytes, and had {file.size:,} when it was fetched", fix)
                )
            elif file_hash(path) != file.sha256:
                problems.append(Problem(str(path), "is not what was fetched: its sha256 differs", fix))
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be read ({error.strerror})", fix))
    return problems


def remove(root: Path, folder: Path) -> None:
    """Remove a source or a work folder, and folders above it that are left empty. Raises InputError.

    It is renamed first: nobody ever sees half of it.
    """
    gone = root / WORK / f".gone-{secrets.token_hex(8)}"
    try:
        gone.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(gone)
    except OSError as error:
        raise InputError(Problem(str(folder), f"cannot be removed ({error.strerror})", "look at its rights")) from None
    shutil.rmtree(gone, ignore_errors=True)
    for parent in folder.parents:
        if parent in (root, root / WORK) or root not in parent.parents:
            break
        try:
            parent.rmdir()
        except OSError:
            break
