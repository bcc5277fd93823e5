"""The part of an API server that the operator's chain needs, in memory, with its refusals and its watch events.

It keeps resourceVersions, refuses a name that is taken and a write on an old version, changes nothing where a write
says nothing new, checks a status against its model, and gives numbers back as Go does (2.0 becomes 2).
"""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from llm_tuning.api.inference_service import InferenceServiceStatus
from llm_tuning.api.tuning_job import TuningJobStatus
from llm_tuning.core.model import ApiModel
from tests.support.operator_objects import START, Raw
from tuning_operator.core.cache import INFERENCE_SERVICES, JOBS, KINDS, PODS, TUNING_JOBS
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.constants import LABEL_UID, MANAGED_BY_LABEL
from tuning_operator.core.errors import AlreadyExists, Conflict, Invalid, NotFound

STATUSES: dict[str, type[ApiModel]] = {TUNING_JOBS: TuningJobStatus, INFERENCE_SERVICES: InferenceServiceStatus}
"""The custom resources, with what their status is checked against."""
Hook = Callable[[str, str], None]
"""Called `before` and `after` each write, with what is written; may raise what the caller then sees."""


class MemoryCluster:
    """Stands in for `tuning_operator.core.cluster.Cluster`."""

    def __init__(self) -> None:
        self.now: Callable[[], datetime] = lambda: START
        self.guard: Callable[[], None] = lambda: None
        self.hook: Hook = lambda moment, write: None
        self.objects: dict[str, dict[tuple[str, str], Raw]] = {kind: {} for kind in KINDS}
        self.watch: dict[str, deque[tuple[str, Raw]]] = {kind: deque() for kind in KINDS}
        """Events that no watch has delivered yet, by kind, in their order."""
        self.writes: list[str] = []
        self.events: list[Raw] = []
        self.warnings: list[Raw] = []
        self.reads: list[str] = []
        self.version = 100
        self._uids = 0

    # --- what Kubernetes itself and users do ------------------------------------------------------------------------

    def add(self, kind: str, raw: Raw) -> Raw:
        """A new object; gets what it lacks of uid, creation time and generation."""
        raw = copy.deepcopy(raw)
        metadata = raw["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if key in self.objects[kind]:
            raise AlreadyExists(f"{kind} {key} already exists")
        self._uids += 1
        metadata.setdefault("uid", f"uid-{self._uids}")
        metadata.setdefault("creationTimestamp", timestamp(self.now()))
        metadata.setdefault("generation", 1)
        raw.setdefault("status", {})
        if kind in STATUSES and not raw["status"]:
            del raw["status"]
        return self._store(kind, key, raw, "ADDED")

    def change(self, kind: str, raw: Raw) -> Raw:
        """Another state of an object; nothing happens where it is the same."""
        key = (raw["metadata"]["namespace"], raw["metadata"]["name"])
        if raw == self.objects[kind][key]:
            return raw
        return self._store(kind, key, copy.deepcopy(raw), "MODIFIED")

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """The object is gone."""
        raw = self.objects[kind].pop((namespace, name))
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.watch[kind].append(("DELETED", copy.deepcopy(raw)))

    def get(self, kind: str, name: str, namespace: str = "team") -> Raw | None:
        """As `kubectl get` has it."""
        found = self.objects[kind].get((namespace, name))
        return copy.deepcopy(found) if found is not None else None

    def _store(self, kind: str, key: tuple[str, str], raw: Raw, event: str) -> Raw:
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind][key] = raw
        self.watch[kind].append((event, copy.deepcopy(raw)))
        return copy.deepcopy(raw)

    # --- the operator's calls ---------------------------------------------------------------------------------------

    async def list_all(self, resource: str, namespace: str | None) -> tuple[list[Raw], str]:
        found = [raw for (where, _), raw in self.objects[resource].items() if namespace in (None, where)]
        if resource not in STATUSES:
            found = [raw for raw in found if MANAGED_BY_LABEL in raw["metadata"].get("labels", {})]
        return copy.deepcopy(found), str(self.version)

    async def list_pods_of(self, namespace: str, uid: str) -> list[Raw]:
        self.reads.append("pods")
        items, _ = await self.list_all(PODS, namespace)
        return [pod for pod in items if pod["metadata"]["labels"].get(LABEL_UID) == uid]

    async def apply_status(self, kind: str, raw: Mapping[str, Any], status: Raw) -> Raw:
        metadata = raw["metadata"]
        return self._write(f"status of {metadata['name']}", lambda: self._apply_status(kind, metadata, status))

    async def read(self, kind: str, namespace: str, name: str) -> Raw | None:
        return self.get(kind, name, namespace)

    async def create(self, kind: str, body: Raw) -> Raw:
        return self._write(f"create {body['metadata']['name']}", lambda: self.add(kind, body))

    async def apply(self, kind: str, body: Raw) -> Raw:
        key = (body["metadata"]["namespace"], body["metadata"]["name"])

        def merge() -> Raw:
            found = copy.deepcopy(self.objects[kind][key])
            found["metadata"] |= copy.deepcopy(body["metadata"])
            return self.change(kind, found | {part: body[part] for part in ("spec", "data") if part in body})

        return self._write(f"apply {body['metadata']['name']}", merge)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        def remove() -> None:
            found = self.objects[kind].get((namespace, name))
            if kind == JOBS:
                self._delete_job((namespace, name), uid)
            elif found is not None and found["metadata"]["uid"] == uid:
                self.remove(kind, namespace, name)

        self._write(f"delete {'tuningjob ' * (kind == TUNING_JOBS)}{name}", remove)

    async def list_warnings(self, namespace: str) -> list[Raw]:
        self.reads.append("events")
        return copy.deepcopy(self.warnings)

    async def write_event(self, namespace: str, name: str, first: Raw, again: Callable[[Raw], Raw]) -> None:
        def write() -> None:
            for event in self.events:
                if event["metadata"]["name"] == name:
                    event.update(again(first))
                    return
            self.events.append(copy.deepcopy(first))

        self._write(f"event {first['reason']}", write)

    def _write(self, what: str, do: Callable[[], Any]) -> Any:
        self.guard()
        self.hook("before", what)
        done = do()
        self.writes.append(what)
        self.hook("after", what)
        return done

    def _delete_job(self, key: tuple[str, str], uid: str) -> None:
        found = self.objects[JOBS].get(key)
        if found is None or found["metadata"]["uid"] != uid or "deletionTimestamp" in found["metadata"]:
            return
        found = copy.deepcopy(found)
        found["metadata"]["deletionTimestamp"] = timestamp(self.now())
        self._store(JOBS, key, found, "MODIFIED")

    def _apply_status(self, kind: str, metadata: Mapping[str, Any], status: Raw) -> Raw:
        key = (metadata["namespace"], metadata["name"])
        found = self.objects[kind].get(key)
        if found is None:
            raise NotFound(f"no such object among {kind}")
        for field in ("uid", "resourceVersion"):
            if found["metadata"][field] != metadata[field]:
                raise Conflict(f"{field} is another")
        try:
            STATUSES[kind].model_validate_json(json.dumps(status, allow_nan=False))
        except ValidationError as error:
            raise Invalid(str(error)) from error
        return self.change(kind, copy.deepcopy(found) | {"status": as_stored(status)})


def as_stored(value: Any) -> Any:
    """As the API server gives it back: by way of JSON, whole floats without their point."""
    if isinstance(value, dict):
        return {key: as_stored(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_stored(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
