"""The only module that knows the Kubernetes client: each call the operator makes, and what its faults mean.

Objects are plain dicts. A write is never repeated here: the reconciler decides again from what is there then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

from llm_tuning.api import inference_service, tuning_job
from llm_tuning.api.kube import API_VERSION
from tuning_operator.core.cache import GROUPS, INFERENCE_SERVICES, JOBS, RESOURCES, TUNING_JOBS, Raw, trimmed
from tuning_operator.core.constants import FIELD_MANAGER, LABEL_UID, MANAGED_BY, MANAGED_BY_LABEL
from tuning_operator.core.errors import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
)

REQUEST_SECONDS = 20.0
CONNECTIONS = 32
"""Open at once: some for each worker."""
KIND_NAMES = {TUNING_JOBS: tuning_job.KIND, INFERENCE_SERVICES: inference_service.KIND}
PAGE = 200
"""Objects in one answer to a list: what is parsed at once decides how much memory the process keeps."""
SELECTED = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
"""Jobs and pods are the operator's own only: the Role could not read less, but the network carries less."""

Count = Callable[[str, str, int], None]
"""Takes verb, resource and HTTP status of each request; 0 where there was no answer."""


class Cluster:
    """Calls to the API server. Each raises a ClusterError; reads of one object return None where there is none."""

    def __init__(self, api: client.ApiClient, *, count: Count = lambda verb, resource, status: None) -> None:
        self._api = api
        self._count = count
        self.guard: Callable[[], None] = lambda: None
        """Called right before each write of the chain; raises LeaseLost where this operator must not write."""

    @classmethod
    async def connect(cls, *, count: Count = lambda verb, resource, status: None) -> Cluster:
        """Connect as the pod's service account, or as the user of $KUBECONFIG outside of a pod."""
        configuration = client.Configuration()
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(client_configuration=configuration, persist_config=False)
        configuration.connection_pool_maxsize = CONNECTIONS
        configuration.retries = 0
        return cls(client.ApiClient(configuration), count=count)

    async def close(self) -> None:
        await self._api.close()

    # --- the chain -------------------------------------------------------------------------------------------------

    async def list_all(self, resource: str, namespace: str | None) -> tuple[list[Raw], str]:
        """List all objects of `resource` (one of the cache's KINDS); returns them and the list's resourceVersion."""
        query = {"limit": str(PAGE)} | ({} if resource in RESOURCES else {"labelSelector": SELECTED})
        path = _path(resource, namespace)
        items: list[Raw] = []
        while True:
            answer = await self._call("list", resource, "GET", path, query=query)
            items += (trimmed(resource, item) for item in answer["items"])
            query["continue"] = answer["metadata"].get("continue", "")
            if not query["continue"]:
                return items, answer["metadata"]["resourceVersion"]

    async def apply_status(self, kind: str, raw: Mapping[str, Any], status: Raw) -> Raw:
        """Make `status` that of the custom resource as it was read; raises Conflict if it was changed since."""
        self.guard()
        metadata = raw["metadata"]
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND_NAMES[kind],
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "status": status,
        }
        path = f"{_path(kind, metadata['namespace'])}/{metadata['name']}/status"
        return await self._apply(f"{kind}/status", path, body)

    async def list_pods_of(self, namespace: str, uid: str) -> list[Raw]:
        """List the pods labelled with a TuningJob's uid, from the API server and not from the cache."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        answer = await self._call("list", "pods", "GET", path, query={"labelSelector": f"{SELECTED},{LABEL_UID}={uid}"})
        return [trimmed("pods", item) for item in answer["items"]]

    async def list_warnings(self, namespace: str) -> list[Raw]:
        """List the namespace's Warning Events."""
        query = {"fieldSelector": "type=Warning"}
        path = f"/api/v1/namespaces/{namespace}/events"
        return list((await self._call("list", "events", "GET", path, query=query))["items"])

    async def write_event(self, namespace: str, name: str, first: Raw, again: Callable[[Raw], Raw]) -> None:
        """Create the Event `first`; where one of its name is there, change that by what `again` makes of it."""
        self.guard()
        path = f"/api/v1/namespaces/{namespace}/events"
        try:
            await self._call("create", "events", "POST", path, body=first)
        except AlreadyExists:
            await self._call("patch", "events", "PATCH", f"{path}/{name}", body=again(first), content=_MERGE)

    # --- any kind of the cache -------------------------------------------------------------------------------------

    async def read(self, kind: str, namespace: str, name: str) -> Raw | None:
        """Read an object; None where there is none."""
        return await self._read(kind, f"{_path(kind, namespace)}/{name}")

    async def create(self, kind: str, body: Raw) -> Raw:
        """Create an object. Raises AlreadyExists where the name is taken: by the same one, or another's."""
        self.guard()
        return await self._call(
            "create", kind, "POST", _path(kind, body["metadata"]["namespace"]), body=body, owned=True
        )

    async def apply(self, kind: str, body: Raw) -> Raw:
        """Write an existing object of the operator's by server-side apply; returns it as the API server has it."""
        self.guard()
        metadata = body["metadata"]
        return await self._apply(kind, f"{_path(kind, metadata['namespace'])}/{metadata['name']}", body)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete exactly this object, and what it owns; a Job stays until its pods have ended."""
        self.guard()
        propagation = "Foreground" if kind == JOBS else "Background"
        options = {"preconditions": {"uid": uid}, "propagationPolicy": propagation}
        try:
            await self._call("delete", kind, "DELETE", f"{_path(kind, namespace)}/{name}", body=options)
        except (NotFound, Conflict):  # gone, or another object of the name: either is what was wanted
            return

    # --- the operator's own ----------------------------------------------------------------------------------------

    async def read_secret(self, namespace: str, name: str) -> Raw | None:
        return await self._read("secrets", f"/api/v1/namespaces/{namespace}/secrets/{name}")

    async def create_secret(self, namespace: str, body: Raw) -> Raw:
        return await self._call("create", "secrets", "POST", f"/api/v1/namespaces/{namespace}/secrets", body=body)

    async def replace_secret(self, namespace: str, name: str, body: Raw) -> Raw:
        path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        return await self._call("update", "secrets", "PUT", path, body=body)

    async def read_lease(self, namespace: str, name: str) -> Raw | None:
        return await self._read("leases", f"{_leases(namespace)}/{name}")

    async def create_lease(self, namespace: str, body: Raw) -> Raw:
        return await self._call("create", "leases", "POST", _leases(namespace), body=body)

    async def replace_lease(self, namespace: str, name: str, body: Raw) -> Raw:
        return await self._call("update", "leases", "PUT", f"{_leases(namespace)}/{name}", body=body)

    async def read_jwks(self) -> Raw:
        """Read the keys that sign service account tokens, as a JWK Set; every service account may read them."""
        return await self._call("get", "jwks", "GET", "/openid/v1/jwks", accept="application/jwk-set+json")

    # --- requests --------------------------------------------------------------------------------------------------

    async def _read(self, resource: str, path: str) -> Raw | None:
        try:
            return await self._call("get", resource, "GET", path)
        except NotFound:
            return None

    async def _apply(self, resource: str, path: str, body: Raw) -> Raw:
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._call("patch", resource, "PATCH", path, query=query, body=body, content=_APPLY)

    async def _call(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Raw | None = None,
        content: str = "application/json",
        accept: str = "application/json",
        owned: bool = False,
    ) -> Raw:
        query = {**(query or {}), **({"fieldManager": FIELD_MANAGER} if owned else {})}
        url = f"{self._api.configuration.host}{path}{'?' + urlencode(query) if query else ''}"
        headers = {"Accept": accept, "Content-Type": content, "User-Agent": FIELD_MANAGER}
        status = 0
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            reply = await self._api.call_api(method, url, headers, body, _request_timeout=REQUEST_SECONDS)
            status, data = reply.status, await reply.read()
        except client.ApiException as error:
            status, data = int(error.status or 0), error.body or b""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"{verb} {resource}: no answer from the API server ({type(error).__name__}: {error})"
            ) from error
        finally:
            self._count(verb, resource, status)
        if 200 <= status < 300:
            return dict(json.loads(data))
        raise _fault(verb, resource, status, data)


_APPLY, _MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


def _fault(verb: str, resource: str, status: int, data: bytes | str) -> ClusterError:
    """Return the error that an HTTP status stands for, with the API server's own message."""
    try:
        answer = json.loads(data)
        message, reason = str(answer.get("message", "")), answer.get("reason")
    except (ValueError, AttributeError):
        message, reason = "", None
    text = f"{verb} {resource}: {message or f'HTTP status {status}'}"
    if status == 409:
        return (AlreadyExists if reason == "AlreadyExists" else Conflict)(text)
    kinds: dict[int, type[ClusterError]] = {400: Invalid, 401: Forbidden, 403: Forbidden, 404: NotFound, 422: Invalid}
    return kinds.get(status, Unavailable)(text)


def _path(kind: str, namespace: str | None) -> str:
    """Return the path of the collection of a kind, in a namespace or in all."""
    group, version = GROUPS[kind]
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{f'/apis/{group}' if group else '/api'}/{version}{where}/{kind}"


def _leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
