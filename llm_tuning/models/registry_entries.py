"""Entries of registry.json: what they hold, and how they follow from manifests alone.

Whoever writes an entry writes the same one, so it does not matter which command heals the index.
- `path` and `config_file` of an adapter are relative to the folder that holds the models directory, as the layout of
  a volume is: they stay right when the whole tree is mounted or moved elsewhere.
- `version` is the first 12 digits of the weights' sha256. A counter would give two models one number when two
  processes publish at once; of two versions `created_at` says which is newer.
- A base has no manifest. Its entry is derived from any adapter's, under an id that holds its weight hash; a hand-made
  base entry of the same path is used instead where there is one.
- `description`, `tags` and `model_name` are people's to edit: neither `verify` nor `rebuild` touches them afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypedDict, TypeGuard

from llm_tuning.models.layout import MANIFEST
from llm_tuning.models.manifest import BaseRecord, Manifest

BASE, FINE_TUNED = "base", "fine_tuned"
VERSION_DIGITS = 12
PEOPLES_FIELDS = ("description", "tags", "model_name")
_DERIVED_BASE_ID = re.compile(r"base_.+_[0-9a-f]{8}")


class FineTuningParams(TypedDict):
    """How an adapter was trained, in short; `timestamp` is Unix seconds."""

    tuning_mode: str
    llm_path: str
    timestamp: int | None
    epochs: int | None
    batch_size: int | None


class Entry(TypedDict):
    """One model in registry.json; `size` is bytes. Hand-made entries may lack fields and have others."""

    model_id: str
    model_name: str
    model_type: str
    description: str
    path: str
    created_at: str
    config_file: str
    base_model_id: str | None
    fine_tuning_params: FineTuningParams | None
    version: str
    size: int | None
    tags: list[str]


def build_entry(manifest: Manifest, *, models_name: str, base_model_id: str) -> Entry:
    """Build the entry of an adapter in the models directory called `models_name`."""
    training = manifest.configuration.get("training") or {}
    return Entry(
        model_id=manifest.model_id,
        model_name=manifest.model_name or manifest.model_id,
        model_type=FINE_TUNED,
        description=manifest.description,
        path=f"{models_name}/{manifest.model_id}",
        created_at=manifest.created_at,
        config_file=f"{models_name}/{manifest.model_id}/{MANIFEST}",
        base_model_id=base_model_id,
        fine_tuning_params=FineTuningParams(
            tuning_mode=manifest.mode,
            llm_path=manifest.base.path,
            timestamp=_unix_seconds(manifest.created_at),
            epochs=training.get("epochs"),
            batch_size=training.get("batchSize"),
        ),
        version=manifest.weight_hash[:VERSION_DIGITS],
        size=manifest.size,
        tags=list(manifest.tags),
    )


def build_base_entry(manifest: Manifest) -> Entry:
    """Build the entry of the base that an adapter's manifest names; its time is that of the adapter."""
    base = manifest.base
    return Entry(
        model_id=base_entry_id(base),
        model_name=base.name,
        model_type=BASE,
        description="",
        path=base.path,
        created_at=manifest.created_at,
        config_file=os.path.join(base.path, "config.json"),
        base_model_id=None,
        fine_tuning_params=None,
        version=base.weight_hash[:VERSION_DIGITS],
        size=base.size,
        tags=[],
    )


def base_entry_id(base: BaseRecord) -> str:
    """Form `base_<name>_<8 hex of the weight hash>`: two bases of one name but other weights stay apart."""
    return f"base_{base.name}_{base.weight_hash[:8]}"


class Bases:
    """The base entries among `entries`, and in `new` those that had to be made."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        bases = [entry for entry in entries if entry.get("model_type") == BASE]
        self.new: list[Entry] = []
        self._ids = {entry["model_id"] for entry in bases}
        self._by_hand = {_path(entry): entry["model_id"] for entry in reversed(bases) if not is_derived(entry)}

    def of(self, manifest: Manifest) -> str:
        """Return the model_id of a manifest's base: the hand-made entry with its path, else the derived one."""
        by_hand: str | None = self._by_hand.get(os.path.normpath(manifest.base.path))
        if by_hand is not None:
            return by_hand
        entry = build_base_entry(manifest)
        if entry["model_id"] not in self._ids:
            self._ids.add(entry["model_id"])
            self.new.append(entry)
        return entry["model_id"]


def is_entry(model: object) -> TypeGuard[dict[str, Any]]:
    """Return whether an element of `models` names a model; a hand-made one may be anything."""
    return isinstance(model, dict) and isinstance(model.get("model_id"), str)


def keep_by_hand(earlier: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """Return `entry` with what people added to, or edited in, its earlier form."""
    return {**earlier, **entry, **{name: earlier[name] for name in PEOPLES_FIELDS if name in earlier}}


def is_derived(entry: dict[str, Any]) -> bool:
    """Return whether the entry came from a manifest, and not from a person's hand."""
    model_id: str = entry["model_id"]
    if entry.get("model_type") == BASE:
        return _DERIVED_BASE_ID.fullmatch(model_id) is not None
    return str(entry.get("config_file")).endswith(f"/{model_id}/{MANIFEST}")


def _path(entry: dict[str, Any]) -> str:
    return os.path.normpath(str(entry.get("path", "")))


def _unix_seconds(created_at: str) -> int | None:
    try:
        return int(datetime.fromisoformat(created_at).timestamp())
    except ValueError:
        return None
