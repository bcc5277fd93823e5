"""The registry of models: `models/registry.json`, an index over the manifests that every command heals.

The truth is one manifest per model. `heal` reads those that the index lacks, replaces the file and reads again until
nothing is missing. Why nothing published is lost, without a lock, which on a network volume could outlive its owner:

- A model is published (renamed to its place) before its process heals, and manifests never change. So whoever lists
  the directory after that sees it, whatever the index says.
- A writer may overwrite what another one just added. It reads again after its own rename, finds the directory that
  its index lacks and adds it. Of several writers the last to rename is also the last to look.
- A writer killed right after such a rename leaves an index that lacks a model; the next command of any kind adds it.
- Hand-made entries and unknown fields are in no manifest. But every index ever written holds those of an index that
  was read: so what was there when a command first read the file is in all that it writes, and in all that later
  commands read and write, killed or not. (What a person writes while a command runs is safe too, except in the
  microseconds between a writer's last comparison and its rename.)

Entries of models whose directory is gone stay, since a volume may be mounted half: `verify` reports them, `rebuild`
drops those that came from a manifest.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from llm_tuning.api.tuning import check_model_id
from llm_tuning.core.files import open_regular, read_file, temporary_beside
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import REGISTRY
from llm_tuning.models.manifest import Manifest, read_model
from llm_tuning.models.publish import storage_errors
from llm_tuning.models.registry_entries import FINE_TUNED, Bases, build_entry, is_derived, is_entry, keep_by_hand

log = logging.getLogger(__name__)

MOST_BYTES = 2**28
"""Of the file: half a million entries."""
ABANDONED_SECONDS = 3600
"""A temporary file that is older is of a killed writer: writing takes well under a second."""

_Look = Manifest | str | None


@dataclass(frozen=True)
class Index:
    """The file as read at one moment."""

    raw: bytes | None
    """Its bytes, None where there is no file."""
    document: dict[str, Any]
    """The whole JSON object; `models` is a list. Empty where the file is missing or corrupt."""
    corrupt: str = ""
    """Why the file is no registry, in words; empty if it is one."""

    @property
    def models(self) -> list[Any]:
        """The entries. A hand-made one may be anything that JSON has."""
        models: list[Any] = self.document["models"]
        return models

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Those of `models` that name a model."""
        return [model for model in self.models if is_entry(model)]

    @cached_property
    def ids(self) -> set[str]:
        """The model_ids in it."""
        return {entry["model_id"] for entry in self.entries}


@dataclass(frozen=True)
class HealResult:
    """The index once the directory was read. `messages` were logged as warnings as well."""

    index: Index
    added: tuple[str, ...] = ()
    """model_ids that the index lacked, bases included."""
    removed: tuple[str, ...] = ()
    """model_ids that a rebuild dropped."""
    unusable: tuple[str, ...] = ()
    """What a rebuild found wrong with manifests that it could not use."""
    messages: tuple[str, ...] = ()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All entries that name a model, in the order of the file."""
        return self.index.entries


class Registry:
    """The models in one directory. Every method reads the files again: other processes publish, too."""

    def __init__(self, models_dir: str | Path) -> None:
        self.models_dir = Path(models_dir)
        self.path = self.models_dir / REGISTRY
        self._name = os.path.basename(os.path.abspath(self.models_dir))

    # --- commands ----------------------------------------------------------------------------------------------------

    def heal(self, *, published: str | None = None) -> HealResult:
        """Add to the index every whole model it lacks, and log what a user must know.

        `published` is the model_id that the caller has just published: where it is the only one, a missing file is no
        news. Where the file cannot be written (a read-only volume, a full disk) the result is complete all the same.
        """
        looks: dict[str, _Look] = {}
        added: list[str] = []
        messages: list[str] = []
        seen = self._read()
        while self.models_dir.is_dir():
            document, new = self._healed(seen, looks)
            if document is seen.document and not seen.corrupt:
                break
            try:
                written = self._replace(seen, document)
            except OSError as error:
                state = f"corrupt ({seen.corrupt})" if seen.corrupt else "out of date"
                messages.append(f"{self.path} is {state} and cannot be written ({error.strerror})")
                seen = Index(seen.raw, document)
                break
            if written is not None:  # else another writer was quicker
                added += new
                messages += self._news(seen, written, published)
            seen = self._read(written or seen)
        return HealResult(seen, tuple(dict.fromkeys(added)), messages=_warn([*messages, *_faults(looks)]))

    def rebuild(self) -> HealResult:
        """Write the index again from the manifests.

        Hand-made entries, unknown fields and the fields that people edit stay; an entry that came from a manifest goes
        when the manifest is gone. Raises InputError where the file cannot be written.
        """
        looks: dict[str, _Look] = {}
        messages: list[str] = []
        seen = self._read()
        while self.models_dir.is_dir():
            looks.clear()
            document = self._rebuilt(seen, looks)
            if document == seen.document and not seen.corrupt:
                break
            with storage_errors(self.path):
                written = self._replace(seen, document)
            if written is not None:
                messages = self._news(seen, written, None)
                break
            seen = self._read(seen)
        unusable = _faults(looks)
        healed = self.heal()
        after = [entry["model_id"] for entry in healed.entries]
        return HealResult(
            healed.index,
            added=tuple(model_id for model_id in dict.fromkeys(after) if model_id not in seen.ids),
            removed=tuple(sorted(seen.ids - set(after))),
            unusable=unusable,
            messages=tuple(dict.fromkeys((*_warn([*messages, *unusable]), *healed.messages))),
        )

    def verify(self, model_id: str | None = None) -> list[Problem]:
        """Return what is wrong with the models, or with one: see `registry_verify`. Reads every file of them.

        Raises InputError for a model_id that is not here.
        """
        from llm_tuning.models.registry_verify import verify_models

        index = self.heal().index
        if model_id is not None and model_id not in index.ids and self.find(model_id) is None:
            raise self.unknown(model_id)
        return verify_models(self.models_dir, index, model_id)

    # --- questions ---------------------------------------------------------------------------------------------------

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries that name a model, after healing."""
        return self.heal().entries

    def get(self, model_id: str) -> dict[str, Any] | None:
        """Return the entry of `model_id`, or None, after healing."""
        return next((entry for entry in self.entries() if entry["model_id"] == model_id), None)

    def find(self, model_id: str) -> Manifest | None:
        """Read the manifest of a finished model, or None; raises InputError for what is no model_id or no manifest."""
        try:
            check_model_id(model_id)  # anything else may be a path to elsewhere
        except ValueError as error:
            raise InputError(Problem("model_id", str(error))) from None
        return read_model(self.models_dir / model_id)

    def require(self, model_id: str) -> Manifest:
        """Read the manifest of a finished model; raises InputError that names the folder and similar model_ids."""
        manifest = self.find(model_id)
        if manifest is None:
            raise self.unknown(model_id)
        return manifest

    def unknown(self, model_id: str) -> InputError:
        """Build the error for a model_id that is not here, with the folder and similar model_ids."""
        known = [entry["model_id"] for entry in self.entries()]
        similar = difflib.get_close_matches(model_id, known, n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(similar)}?" if similar else "{command:registry list} shows what is there"
        return InputError(Problem("model_id", f"{model_id!r} is not in {self.models_dir.resolve()}", fix))

    # --- what an index should hold -----------------------------------------------------------------------------------

    def _healed(self, seen: Index, looks: dict[str, _Look]) -> tuple[dict[str, Any], list[str]]:
        """Return the document with all that it lacks (itself if nothing), and the model_ids added.

        `looks` caches the directories already read: manifests never change.
        """
        new = self._manifests([name for name in os.listdir(self.models_dir) if name not in seen.ids], looks)
        orphans = _orphans(seen)
        if not new and not orphans:
            return seen.document, []
        bases = Bases(seen.entries)
        models = [
            self._with_base(m, bases, looks) if is_entry(m) and m["model_id"] in orphans else m for m in seen.models
        ]
        adapters = [build_entry(m, models_name=self._name, base_model_id=bases.of(m)) for m in new]
        added = [*bases.new, *adapters]
        models += added
        document = seen.document if models == seen.models else {**seen.document, "models": models}
        return document, [entry["model_id"] for entry in added]

    def _with_base(self, entry: dict[str, Any], bases: Bases, looks: dict[str, _Look]) -> dict[str, Any]:
        """Return `entry` with a base that has an entry; as it is where no manifest says which."""
        manifests = self._manifests([entry["model_id"]], looks)
        return {**entry, "base_model_id": bases.of(manifests[0])} if manifests else entry

    def _rebuilt(self, seen: Index, looks: dict[str, _Look]) -> dict[str, Any]:
        """Build the document of what is in no manifest, then bases and adapters, oldest first."""
        manifests = self._manifests(os.listdir(self.models_dir), looks)
        made = {manifest.model_id for manifest in manifests}
        unreadable = {name for name, look in looks.items() if isinstance(look, str)}
        needed = unreadable | {str(e.get("base_model_id")) for e in seen.entries if e["model_id"] in unreadable}
        by_hand = [m for m in seen.models if not is_entry(m) or not is_derived(m) or m["model_id"] in needed]
        models = [m for m in by_hand if not is_entry(m) or m["model_id"] not in made]
        bases = Bases([m for m in models if is_entry(m)])
        adapters = [build_entry(m, models_name=self._name, base_model_id=bases.of(m)) for m in manifests]
        earlier = {entry["model_id"]: entry for entry in seen.entries}
        models += [keep_by_hand(earlier.get(entry["model_id"], {}), entry) for entry in (*bases.new, *adapters)]
        return {**seen.document, "models": models}

    def _manifests(self, names: Iterable[str], looks: dict[str, _Look]) -> list[Manifest]:
        """Read the manifests of the whole models among `names`, oldest first."""
        found = []
        for name in names:
            if name not in looks:
                looks[name] = self._look(name)
            look = looks[name]
            if isinstance(look, Manifest):
                found.append(look)
        return sorted(found, key=lambda manifest: (manifest.created_at, manifest.model_id))

    def _look(self, name: str) -> _Look:
        """Read the manifest of directory `name`; None if it is no model, a sentence if its manifest cannot be used."""
        if name.startswith("."):
            return None
        try:
            return read_model(self.models_dir / name)
        except InputError as error:
            return str(error)

    def _news(self, seen: Index, written: Index, published: str | None) -> list[str]:
        """Return the message, in a list, when a missing or corrupt file was made again; else []."""
        made = [entry["model_id"] for entry in written.entries if entry.get("model_type") == FINE_TUNED]
        source = f"rebuilt from {len(made)} manifest{'' if len(made) == 1 else 's'}"
        if seen.corrupt:
            kept = f"the old file is kept as {self._corrupt_name(seen)}"
            return [f"{self.path} was corrupt ({seen.corrupt}); {source}, {kept}"]
        if seen.raw is None and made and made != [published]:
            return [f"{self.path} was missing; {source}"]
        return []

    # --- the file ----------------------------------------------------------------------------------------------------

    def _read(self, known: Index | None = None) -> Index:
        """Read the file as it is now; `known` is returned, and nothing parsed, when it still holds."""
        try:
            raw = read_file(self.path, most=MOST_BYTES)
        except FileNotFoundError:
            raw = None
        except OSError as error:
            fix = "move it away: it is made again"
            raise InputError(Problem(str(self.path), f"cannot be read ({error.strerror})", fix)) from None
        return known if known is not None and known.raw == raw else _parse(raw)

    def _replace(self, seen: Index, document: dict[str, Any]) -> Index | None:
        """Put `document` in the place of `seen`; None, with nothing changed, if the file is no longer `seen`.

        Flushed to the disk, for hand-made entries are nowhere else. Raises OSError.
        """
        data = to_json(document)
        temporary = temporary_beside(self.path)
        try:
            with temporary.open("xb") as stream:
                with contextlib.suppress(OSError):  # a person may have opened the file to a group
                    os.fchmod(stream.fileno(), stat.S_IMODE(self.path.stat().st_mode))
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if not self._is_still(seen):
                return None
            if seen.corrupt and seen.raw is not None:
                self.path.with_name(self._corrupt_name(seen)).write_bytes(seen.raw)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._remove_abandoned()
        return Index(data, document)

    def _is_still(self, seen: Index) -> bool:
        """Return whether the file has the bytes of `seen`: times are too coarse, and inode numbers are used again."""
        try:
            with open_regular(self.path) as stream:
                return stream.read() == seen.raw
        except FileNotFoundError:
            return seen.raw is None

    def _corrupt_name(self, seen: Index) -> str:
        """Name the copy of the corrupt file `seen` by its content: two writers who see it keep one copy."""
        return f"{REGISTRY}.corrupt-{hashlib.sha256(seen.raw or b'').hexdigest()[:12]}"

    def _remove_abandoned(self) -> None:
        """Remove temporary files that a killed writer left behind; both times are of the volume's clock."""
        for path in self.models_dir.glob(f".{REGISTRY}.*.tmp"):
            with contextlib.suppress(OSError):
                if self.path.stat().st_mtime - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


def _parse(raw: bytes | None) -> Index:
    empty: dict[str, Any] = {"models": []}
    if raw is None:
        return Index(None, empty)
    try:
        document = from_json(raw.removeprefix(b"\xef\xbb\xbf"), cache_strings="keys")
    except ValueError as error:
        return Index(raw, empty, f"not JSON: {error}")
    if not isinstance(document, dict):
        return Index(raw, empty, "not a JSON object")
    if not isinstance(document.get("models"), list):
        return Index(raw, empty, "it has no list `models`")
    return Index(raw, document)


def _orphans(index: Index) -> set[str]:
    """Return model_ids of entries from a manifest whose base has lost its entry, by a person's hand."""
    lost = [e for e in index.entries if isinstance(base := e.get("base_model_id"), str) and base not in index.ids]
    return {entry["model_id"] for entry in lost if entry.get("model_type") == FINE_TUNED and is_derived(entry)}


def _faults(looks: dict[str, _Look]) -> tuple[str, ...]:
    return tuple(look for look in looks.values() if isinstance(look, str))


def _warn(messages: Iterable[str]) -> tuple[str, ...]:
    for message in messages:
        log.warning("%s", message)
    return tuple(messages)
