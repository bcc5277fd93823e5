"""The file `models/registry.json`: read whole, replaced in one step, and only if nobody else replaced it meanwhile.

There is no lock, which on a network volume could outlive its owner. A writer compares the file's bytes with those it
started from and then renames a new file over it. Between the two another writer may still slip in: the registry
looks again after its own rename, and what counts is in the manifests.

pydantic's JSON is used because it reads and writes ten thousand entries in half the time of the standard library's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from llm_tuning.core.files import check_regular, open_regular, temporary_beside
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import REGISTRY

MOST_BYTES = 2**28
"""Half a million entries."""
ABANDONED_SECONDS = 3600
"""A temporary file that is older is of a killed writer: writing takes well under a second."""

_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Index:
    """The registry as read at one moment."""

    raw: bytes | None
    """The file's bytes, None where there is no file."""
    document: dict[str, Any]
    """The whole JSON object; `models` is a list. Empty where the file is missing or corrupt."""
    corrupt: str = ""
    """Why the file is no registry, in words; empty if it is one."""
    modified: float = 0.0
    """When a corrupt file was written, in Unix seconds."""

    @property
    def models(self) -> list[Any]:
        """The entries. A hand-made one may be anything that JSON has."""
        models: list[Any] = self.document["models"]
        return models

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Those of `models` that name a model."""
        return [m for m in self.models if isinstance(m, dict) and isinstance(m.get("model_id"), str)]

    @cached_property
    def ids(self) -> set[str]:
        """The model_ids in it."""
        return {entry["model_id"] for entry in self.entries}


class RegistryFile:
    """registry.json in one models directory."""

    def __init__(self, models_dir: Path) -> None:
        self.path = models_dir / REGISTRY

    def read(self, known: Index | None = None) -> Index:
        """The file as it is now; `known` is returned, and nothing parsed, when it still holds."""
        if known is not None and self._is_still(known):
            return known
        try:
            check_regular(self.path, most=MOST_BYTES)
            with open_regular(self.path) as stream:
                modified = os.fstat(stream.fileno()).st_mtime
                return _parse(stream.read(), modified)
        except FileNotFoundError:
            return _parse(None, 0.0)
        except OSError as error:
            raise InputError(
                Problem(str(self.path), f"cannot be read ({error.strerror})", "move it away: it is made again")
            ) from None

    def replace(self, seen: Index, document: dict[str, Any]) -> Index | None:
        """Put `document` in the place of `seen`; None, with nothing changed, if the file is no longer `seen`.

        Flushed to the disk, for hand-made entries are nowhere else. Raises OSError.
        """
        data = _encode(document, seen)
        temporary = temporary_beside(self.path)
        try:
            with open(temporary, "xb") as stream:
                self._keep_mode(stream.fileno())
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if not self._is_still(seen):
                return None
            if seen.corrupt and seen.raw is not None:
                self.path.with_name(self.corrupt_name(seen)).write_bytes(seen.raw)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return Index(data, document)

    def corrupt_name(self, seen: Index) -> str:
        """Where the corrupt file `seen` is kept, by its own time, so that two writers who see it keep one copy."""
        changed = datetime.fromtimestamp(seen.modified, UTC)
        return f"{REGISTRY}.corrupt-{changed:%Y%m%dT%H%M%S.%fZ}"

    def remove_abandoned(self, names: Iterable[str]) -> None:
        """Remove, of the models directory's `names`, temporary files that a killed writer left behind."""
        abandoned = [name for name in names if name.startswith(f".{REGISTRY}.") and name.endswith(".tmp")]
        for path in map(self.path.with_name, abandoned):
            with contextlib.suppress(OSError):
                # Both times are of the volume's clock, which may not be this machine's.
                if self.path.stat().st_mtime - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()

    def _is_still(self, index: Index) -> bool:
        """Whether the file holds the very bytes of `index`.

        Bytes, since times are too coarse and inode numbers are used again; in pieces, since megabytes of new memory
        for each look cost more than the comparison.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                if index.raw is None or os.fstat(stream.fileno()).st_size != len(index.raw):
                    return False
                at, piece = 0, bytearray(_PIECE_BYTES)
                while count := stream.readinto(piece):
                    if index.raw[at : at + count] != piece[:count]:
                        return False
                    at += count
                return at == len(index.raw)
        except FileNotFoundError:
            return index.raw is None

    def _keep_mode(self, descriptor: int) -> None:
        """Give the new file the old one's permissions: somebody may have opened it to a group."""
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(self.path.stat().st_mode))


def _encode(document: dict[str, Any], seen: Index) -> bytes:
    """Compact JSON. Where entries were only added to `seen`, its own text goes on: half the work is saved.

    That is so only with `models` as the one key, for then the last two characters close just it.
    """
    models, before = document["models"], seen.models
    raw = seen.raw or b""
    if len(document) == 1 and before and raw.endswith(b"]}") and models[: len(before)] == before:
        return b"".join((memoryview(raw)[:-2], b",", to_json(models[len(before) :])[1:], b"}"))
    return to_json(document)


def _parse(raw: bytes | None, modified: float) -> Index:
    empty: dict[str, Any] = {"models": []}
    if raw is None:
        return Index(None, empty)
    try:
        document = from_json(raw.removeprefix(b"\xef\xbb\xbf"), cache_strings="keys")
    except ValueError as error:
        return Index(raw, empty, f"not JSON: {error}", modified)
    if not isinstance(document, dict):
        return Index(raw, empty, "not a JSON object", modified)
    if not isinstance(document.get("models"), list):
        return Index(raw, empty, "it has no list `models`", modified)
    return Index(raw, document)
