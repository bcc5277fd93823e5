"""What the watches have delivered, and what the operator has written since: never older than its own last write.

Of two versions of an object the one with the higher resourceVersion counts, whichever comes first. What was deleted
stays known by its uid, so that a late event does not bring it back.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

from llm_tuning.api.kube import GROUP, VERSION
from llm_tuning.core.model import ApiModel
from tuning_operator.core.constants import (
    LABEL_FETCHES_FOR,
    LABEL_JOB,
    LABEL_SERVICE,
    LABEL_SERVICE_UID,
    LABEL_UID,
    MANAGED_BY,
    MANAGED_BY_LABEL,
)
from tuning_operator.core.resource import Spec, parse_spec

Raw = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a TuningJob or an InferenceService."""

TUNING_JOBS, INFERENCE_SERVICES = "tuningjobs", "inferenceservices"
RESOURCES = (TUNING_JOBS, INFERENCE_SERVICES)
"""The custom resources: watched whoever made them; of the other kinds only what has the operator's label."""
JOBS, PODS = "jobs", "pods"
DEPLOYMENTS, SERVICES, CONFIG_MAPS = "deployments", "services", "configmaps"
NETWORK_POLICIES, BUDGETS = "networkpolicies", "poddisruptionbudgets"
SERVING = (CONFIG_MAPS, SERVICES, NETWORK_POLICIES, BUDGETS, DEPLOYMENTS)
"""What an InferenceService is made of, in the order in which it is made."""
KINDS = (*RESOURCES, JOBS, PODS, *SERVING)
GROUPS: dict[str, tuple[str, str]] = {
    TUNING_JOBS: (GROUP, VERSION),
    INFERENCE_SERVICES: (GROUP, VERSION),
    JOBS: ("batch", "v1"),
    PODS: ("", "v1"),
    DEPLOYMENTS: ("apps", "v1"),
    SERVICES: ("", "v1"),
    CONFIG_MAPS: ("", "v1"),
    NETWORK_POLICIES: ("networking.k8s.io", "v1"),
    BUDGETS: ("policy", "v1"),
}
"""API group and version of each kind."""
METADATA = (
    "namespace",
    "name",
    "uid",
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "ownerReferences",
)
POD_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses")
_OWNERS = {LABEL_JOB: TUNING_JOBS, LABEL_SERVICE: INFERENCE_SERVICES, LABEL_FETCHES_FOR: INFERENCE_SERVICES}
"""Labels that name the custom resource which an object concerns."""
TOMBSTONES = 20_000
"""Deleted uids to remember: events come late by seconds, not by thousands of objects."""


Enqueue = Callable[[Key], None]


class Cache:
    """Objects by kind; `enqueue` has what is called, by kind, with each custom resource that a change concerns."""

    def __init__(self, enqueue: Mapping[str, Enqueue] = MappingProxyType({})) -> None:
        self._enqueue = {kind: enqueue.get(kind, _ignore) for kind in RESOURCES}
        self._objects: dict[str, dict[Key, Raw]] = {kind: {} for kind in KINDS}
        self._by_uid: dict[str, dict[str, set[Key]]] = {JOBS: {}, PODS: {}}
        self._waiting_for: dict[Key, set[Key]] = {}
        """TuningJobs by the one whose adapter they start from."""
        self._served_by: dict[Key, set[Key]] = {}
        """InferenceServices by the TuningJobs that their routes name."""
        self._specs: dict[str, tuple[int, ApiModel | None]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self.delivered: dict[str, float] = {}
        """When a watch last delivered anything, by kind; on the clock of time.monotonic()."""

    # --- writes ----------------------------------------------------------------------------------------------------

    def apply_event(self, kind: str, event: str | None, raw: Raw) -> None:
        """Apply one change of a watch: `event` is ADDED, MODIFIED, DELETED, or None for an entry of the first list."""
        self.delivered[kind] = time.monotonic()
        if event == "DELETED":
            self._remove(kind, raw)
        else:
            self.put(kind, raw)

    def put(self, kind: str, raw: Raw) -> None:
        """Put an object that came by a watch, a list or the answer to a write, if it is newer than what is there."""
        metadata = raw["metadata"]
        key = (metadata["namespace"], metadata["name"])
        old = self._objects[kind].get(key)
        if self._is_late(kind, raw) or (old is not None and _version(old) >= _version(raw)):
            return
        if old is not None and (kind != TUNING_JOBS or old["metadata"]["uid"] != metadata["uid"]):
            self._unindex(kind, key, old)  # labels and routes may have been changed
        raw = trimmed(kind, raw)
        self._objects[kind][key] = raw
        self._index(kind, key, raw)
        self._changed(kind, key, raw)

    def forget(self, kind: str, raw: Raw) -> None:
        """Remove an object that the API server no longer has."""
        self._remove(kind, raw)

    def apply_list(self, kind: str, items: Iterable[Raw], version: str, namespace: str | None) -> list[str]:
        """Apply a complete list: put what is newer, remove what is older than the list and not in it.

        Returns names of what no watch had delivered, for the log.
        """
        found, missed = set(), []
        for raw in items:
            key = (raw["metadata"]["namespace"], raw["metadata"]["name"])
            found.add(key)
            old = self._objects[kind].get(key)
            if old is None or _version(old) < _version(raw):
                missed.append("/".join(key))
                self.put(kind, raw)
        for key, raw in list(self._objects[kind].items()):
            if key not in found and namespace in (None, key[0]) and _version(raw) <= int(version):
                if _is_watched(kind, raw):
                    missed.append("/".join(key))
                    self._remove(kind, raw)
                else:  # another owner's, read when its name was found taken: it may still be there
                    self._drop(kind, key, raw)
        return missed

    # --- reads -----------------------------------------------------------------------------------------------------

    def get(self, kind: str, namespace: str, name: str) -> Raw | None:
        return self._objects[kind].get((namespace, name))

    def all(self, kind: str) -> Iterable[Raw]:
        return self._objects[kind].values()

    def pods_of(self, uid: str) -> list[Raw]:
        """Return the pods labelled with the uid of a TuningJob or an InferenceService."""
        return [self._objects[PODS][key] for key in self._by_uid[PODS].get(uid, ())]

    def jobs_of(self, uid: str) -> list[Raw]:
        """Return the Jobs labelled with the uid of a TuningJob or an InferenceService."""
        return [self._objects[JOBS][key] for key in self._by_uid[JOBS].get(uid, ())]

    def spec_of(self, raw: Raw, model: type[Spec]) -> Spec | None:
        """Parse the spec of a custom resource, once for each generation; None where it does not fit."""
        uid, generation = raw["metadata"]["uid"], int(raw["metadata"].get("generation", 1))
        known = self._specs.get(uid)
        if known is None or known[0] != generation:
            known = self._specs[uid] = (generation, parse_spec(model, raw)[0])
        return cast(Spec | None, known[1])

    def chain_from(self, namespace: str, name: str) -> tuple[str, ...]:
        """Return the name of the TuningJob, of the one whose adapter it waits for, and so on; each once."""
        chain: list[str] = []
        following: str | None = name
        while following is not None and following not in chain:
            chain.append(following)
            raw = self.get(TUNING_JOBS, namespace, following) or {}
            knows = (raw.get("status") or {}).get("startAdapterModelId")
            following = None if knows is not None else _start_job(raw)
        return tuple(chain)

    def sizes(self) -> dict[str, int]:
        return {kind: len(objects) for kind, objects in self._objects.items()}

    # --- inside ----------------------------------------------------------------------------------------------------

    def _remove(self, kind: str, raw: Raw) -> None:
        uid = raw["metadata"]["uid"]
        self._deleted[uid] = None
        if len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)
        key = (raw["metadata"]["namespace"], raw["metadata"]["name"])
        old = self._objects[kind].get(key)
        if old is not None and old["metadata"]["uid"] == uid:
            self._drop(kind, key, old)

    def _drop(self, kind: str, key: Key, old: Raw) -> None:
        del self._objects[kind][key]
        self._unindex(kind, key, old)
        self._changed(kind, key, old)

    def _is_late(self, kind: str, raw: Raw) -> bool:
        """Return whether a watch delivers the object after its deletion; one that no watch delivers was just read."""
        return raw["metadata"]["uid"] in self._deleted and _is_watched(kind, raw)

    def _index(self, kind: str, key: Key, raw: Raw) -> None:
        if kind == TUNING_JOBS:
            if (other := _start_job(raw)) is not None:
                self._waiting_for.setdefault((key[0], other), set()).add(key)
        elif kind == INFERENCE_SERVICES:
            for job in _routed_jobs(raw):
                self._served_by.setdefault((key[0], job), set()).add(key)
        elif kind in self._by_uid and (uid := _owner_label(raw)) is not None:
            self._by_uid[kind].setdefault(uid, set()).add(key)

    def _unindex(self, kind: str, key: Key, raw: Raw) -> None:
        if kind == TUNING_JOBS:
            self._specs.pop(raw["metadata"]["uid"], None)
            if (other := _start_job(raw)) is not None:
                _discard(self._waiting_for, (key[0], other), key)
        elif kind == INFERENCE_SERVICES:
            self._specs.pop(raw["metadata"]["uid"], None)
            for job in _routed_jobs(raw):
                _discard(self._served_by, (key[0], job), key)
        elif kind in self._by_uid and (uid := _owner_label(raw)) is not None:
            _discard(self._by_uid[kind], uid, key)

    def _changed(self, kind: str, key: Key, raw: Raw) -> None:
        if kind in RESOURCES:
            self._enqueue[kind](key)
            if kind == TUNING_JOBS:
                for waiting in self._waiting_for.get(key, ()):
                    self._enqueue[TUNING_JOBS](waiting)
                for service in self._served_by.get(key, ()):
                    self._enqueue[INFERENCE_SERVICES](service)
            return
        labels = raw["metadata"].get("labels", {})
        for label, owner in _OWNERS.items():
            if label in labels:
                self._enqueue[owner]((key[0], labels[label]))
                return


def trimmed(kind: str, raw: Raw) -> Raw:
    """Keep what reconciles read of an object: a thousand Jobs with their pod templates would take a hundred MB."""
    metadata = {name: raw["metadata"][name] for name in METADATA if name in raw["metadata"]}
    kept: Raw = {"metadata": metadata, "status": raw.get("status") or {}}
    spec = raw.get("spec") or {}
    if kind in (*SERVING, INFERENCE_SERVICES):
        metadata["annotations"] = raw["metadata"].get("annotations") or {}
    if kind in SERVING:  # few, and compared whole
        kept |= {name: raw[name] for name in ("spec", "data") if name in raw}
    elif kind in RESOURCES:
        kept["spec"] = spec
        if "status" not in raw:
            del kept["status"]
    elif kind == JOBS:
        kept["spec"] = {name: spec[name] for name in ("backoffLimit", "completions", "suspend") if name in spec}
    else:
        kept["spec"] = {"containers": [_named_image(container) for container in spec.get("containers", ())]}
        if "nodeName" in spec:
            kept["spec"]["nodeName"] = spec["nodeName"]
        kept["status"] = {name: kept["status"][name] for name in POD_STATUS if name in kept["status"]}
    return kept


def _ignore(key: Key) -> None:
    """Do nothing: no reconciler is there for that kind."""


def _named_image(container: Raw) -> Raw:
    return {name: container[name] for name in ("name", "image") if name in container}


def _discard(index: dict[Any, set[Key]], at: Any, key: Key) -> None:
    """Take `key` out of the set at `at`, and an empty set out of the index."""
    keys = index.get(at, set())
    keys.discard(key)
    if not keys:
        index.pop(at, None)


def _is_watched(kind: str, raw: Raw) -> bool:
    """Return whether the watches deliver the object: a custom resource, or labelled as managed by the operator."""
    return kind in RESOURCES or raw["metadata"].get("labels", {}).get(MANAGED_BY_LABEL) == MANAGED_BY


def _version(raw: Raw) -> int:
    """Return the resourceVersion, which grows within a kind: Kubernetes promises so since 1.35, and etcd always did."""
    return int(raw["metadata"].get("resourceVersion") or 0)


def _owner_label(raw: Raw) -> str | None:
    labels = raw["metadata"].get("labels", {})
    found = labels.get(LABEL_UID) or labels.get(LABEL_SERVICE_UID)
    return str(found) if found is not None else None


def _routed_jobs(raw: Raw) -> set[str]:
    """Return the names of the TuningJobs that the routes of an InferenceService name."""
    routes = (raw.get("spec") or {}).get("routes") or ()
    names = (target.get("tuningJob") for route in routes for target in route.get("targets") or ())
    return {name for name in names if isinstance(name, str)}


def _start_job(raw: Raw) -> str | None:
    """Return the name of the TuningJob whose adapter this TuningJob starts from, or None."""
    adapter = ((raw.get("spec") or {}).get("model") or {}).get("adapter") or {}
    name = adapter.get("tuningJob")
    return name if isinstance(name, str) else None
