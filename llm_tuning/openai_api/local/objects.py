"""TuningJobs and InferenceServices as files, for a server without a cluster: `api/<plural>/<name>.json`.

What an API server does for them is done here: names are unique, specs are checked, versions are counted. A file appears
and changes by a rename, so a kill leaves the one before. One server has the folder, which its lock shows.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_tuning.client.errors import Conflict, NotFound
from llm_tuning.client.specs import checked
from llm_tuning.core.files import read_json, temporary_beside, write_json
from llm_tuning.errors import InputError, Problem

Raw = dict[str, Any]
NAMESPACE = "local"


def timestamp() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_uid() -> str:
    """Return a uid that sorts by time: creationTimestamp has whole seconds alone."""
    return str(uuid.UUID(int=(time.time_ns() << 64) | secrets.randbits(64)))


class Objects:
    """The objects of one folder. Nothing is kept in memory, so that a restart loses nothing."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; raises InputError where another server has it."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "stop that one, or give this one another --folder"
            raise InputError(Problem(str(folder), "is in use by another `tune-llm api`", fix)) from None

    def close(self) -> None:
        """Leave the folder to another server."""
        self._lock.close()

    def list(self, plural: str, labels: Mapping[str, str] | None = None) -> list[Raw]:
        """Return all objects of a kind, those with all of `labels`."""
        found = (read_json(path) for path in sorted(self._of(plural).glob("[!.]*.json")))
        wanted = (labels or {}).items()
        return [raw for raw in found if raw is not None and wanted <= (raw["metadata"].get("labels") or {}).items()]

    def read(self, plural: str, name: str) -> Raw:
        """Return an object; raises NotFound."""
        found: Raw | None = read_json(self._path(plural, name))
        if found is None:
            raise NotFound(f"there is no {plural} {name!r}")
        return found

    def create(self, plural: str, body: Raw) -> Raw:
        """Add an object; raises InputError for a wrong one and Conflict where the name is taken."""
        name = body["metadata"]["name"]
        metadata = {"namespace": NAMESPACE, "uid": new_uid(), "creationTimestamp": timestamp()}
        raw = {**checked(body), "metadata": {**body["metadata"], **metadata, "generation": 1, "resourceVersion": "1"}}
        path = self._path(plural, name)
        temporary = temporary_beside(path)
        write_json(temporary, raw)
        try:
            os.link(temporary, path)  # a rename would take the place of what is there
        except FileExistsError:
            raise Conflict(f"{plural} {name!r} already exists") from None
        finally:
            temporary.unlink()
        return raw

    def change(self, plural: str, name: str, patch: Raw) -> Raw:
        """Merge `patch` into an object; raises as an API server refuses."""
        before = self.read(plural, name)
        version = before["metadata"]["resourceVersion"]
        if (patch.get("metadata") or {}).get("resourceVersion", version) != version:
            raise Conflict(f"{plural} {name!r} has changed meanwhile")
        after: Raw = merged(before, patch)
        if after == before:
            return before
        if after["spec"] != before["spec"]:
            checked({key: value for key, value in after.items() if key != "status"})
            after["metadata"]["generation"] += 1
        after["metadata"]["resourceVersion"] = str(int(version) + 1)
        write_json(self._path(plural, name), after)
        return after

    def set_status(self, plural: str, name: str, status: Raw) -> Raw:
        """Put a status in the place of the one before."""
        before = self.read(plural, name)
        if before.get("status") == status:
            return before
        version = str(int(before["metadata"]["resourceVersion"]) + 1)
        after = {**before, "metadata": {**before["metadata"], "resourceVersion": version}, "status": status}
        write_json(self._path(plural, name), after)
        return after

    def log(self, plural: str, name: str) -> Path:
        """Return where the log of an object's processes goes."""
        return self._of(plural) / f"{name}.log"

    def _of(self, plural: str) -> Path:
        return self.folder / plural

    def _path(self, plural: str, name: str) -> Path:
        return self._of(plural) / f"{name}.json"


def merged(target: Any, patch: Any) -> Any:
    """Merge as RFC 7386 says: null removes, mappings are merged, all else takes the place of what is there."""
    if not isinstance(patch, dict):
        return patch
    result = json.loads(json.dumps(target)) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
