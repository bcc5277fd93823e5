"""`memory_cluster` over HTTP on loopback, for what a real API server cannot be asked to do: forget versions, refuse.

It speaks lists, watches and Status objects in the shapes of kube-apiserver 1.36, keeps the logs of pods, and does once
what `next_answers` and `next_watches` tell it. It does not validate.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from llm_tuning.api.kube import API_VERSION, LABEL_JOB, LABEL_ROLE, LABEL_UID
from llm_tuning.client import Connection
from llm_tuning.pod.roles import ROLES
from tests.support.fake_secrets import FakeSecrets
from tests.support.memory_cluster import MemoryCluster
from tuning_operator.core.cache import PODS
from tuning_operator.core.errors import AlreadyExists

Raw = dict[str, Any]
NAMESPACE = "team"
CUSTOM = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}"
TIME = "2026-11-29T08:00:00Z"

Script = Callable[[web.StreamResponse, web.Request], Awaitable[None]]


def status_object(code: int, reason: str, message: str, **details: Any) -> web.Response:
    """The API server's answer to what it refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    body |= {"reason": reason, "code": code} | ({"details": details} if details else {})
    return web.json_response(body, status=code)


class FakeApiServer:
    """`await start()` it; `connection` leads to it."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.secrets = FakeSecrets()
        self.logs: dict[str, list[tuple[str, str]]] = {}
        """By pod: times and lines. A pod that `is_running` keeps its followers."""
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        """Method, path with query, headers and body of each."""
        self.next_answers: deque[web.Response] = deque()
        """Instead of the next requests that are no watches."""
        self.next_watches: deque[web.Response | Script] = deque()
        """Instead of the next watches: an answer, or what writes the stream."""
        self.next_logs: deque[Script] = deque()
        self.service: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        """What stands behind the service proxy."""
        self.time = TIME
        """When the next object is made."""
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", CUSTOM + "/{plural}", self._collection)
        app.router.add_route("*", CUSTOM + "/{plural}/{name}", self._one)
        self.secrets.add_to(app, NAMESPACE)
        app.router.add_get(f"/api/v1/namespaces/{NAMESPACE}/pods", self._list_pods)
        app.router.add_get(f"/api/v1/namespaces/{NAMESPACE}/pods/{{pod}}", self._pod)
        app.router.add_get(f"/api/v1/namespaces/{NAMESPACE}/pods/{{pod}}/log", self._log)
        app.router.add_route("*", f"/api/v1/namespaces/{NAMESPACE}/services/{{service}}/proxy/{{path:.*}}", self._proxy)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Cut all connections; `start` listens on the same port again."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def connection(self) -> Connection:
        return Connection(f"http://127.0.0.1:{self.port}", namespace=NAMESPACE)

    # --- the cluster's part ------------------------------------------------------------------------------------------

    def all(self, plural: str) -> list[Raw]:
        """The objects of a kind, in the order in which they were made."""
        return [copy_of for (_, name) in self.cluster.objects[plural] if (copy_of := self.cluster.get(plural, name))]

    async def put(self, plural: str, name: str, *, spec: Raw | None = None, status: Raw | None = None) -> Raw:
        """Make or change an object, as a user or the operator does."""
        before = self.cluster.get(plural, name)
        raw = before or self._fresh(plural, {"metadata": {"name": name}})
        raw |= {"spec": spec} if spec is not None else {}
        raw |= {"status": status} if status is not None else {}
        done = self.cluster.change(plural, raw) if before else self.cluster.add(plural, raw)
        return await self._tell(done)

    async def remove(self, plural: str, name: str) -> None:
        self.cluster.remove(plural, NAMESPACE, name)
        await self._tell({})

    def add_pod(
        self, job: str, role: str, name: str, *, state: str = "terminated", lines: list[str] | None = None
    ) -> Raw:
        """A pod of a TuningJob in order of time, with its log."""
        number = len(self.cluster.objects[PODS])
        labels = {LABEL_JOB: job, LABEL_UID: f"uid-{job}", LABEL_ROLE: role}
        pod = {
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": f"uid-{name}",
                "labels": labels,
                "creationTimestamp": f"2026-11-29T08:00:{number:02}Z",
            },
            "spec": {"containers": [{"name": ROLES[role].container}]},
            "status": {"containerStatuses": [{"name": ROLES[role].container, "state": {state: {}}}]},
        }
        self.cluster.add(PODS, pod)
        self.logs[name] = [(f"2026-11-29T08:01:00.{n + 1:03}Z", line) for n, line in enumerate(lines or [])]
        return pod

    def set_state(self, name: str, state: str, *, container: str | None = None) -> None:
        """Of that container of the pod, or of the only one."""
        pod = self.cluster.get(PODS, name)
        assert pod is not None
        for status in pod["status"]["containerStatuses"]:
            if container in (None, status["name"]):
                status["state"] = {state: {}}
        self.cluster.change(PODS, pod)

    def add_sidecar(self, pod: Raw, name: str, state: str = "running") -> None:
        """One more container, as a webhook adds it."""
        pod["spec"]["containers"].insert(0, {"name": name})
        statuses = [*pod["status"]["containerStatuses"], {"name": name, "state": {state: {}}}]
        pod["status"]["containerStatuses"] = sorted(statuses, key=lambda status: str(status["name"]))
        self.cluster.change(PODS, pod)

    def skip(self, versions: int) -> int:
        """As if others had written so often; returns the newest version."""
        self.cluster.version += versions
        return self.cluster.version

    def _fresh(self, plural: str, body: Raw) -> Raw:
        name = body["metadata"].get("name") or f"{body['metadata']['generateName']}x{self.cluster.version}"
        kind = {"tuningjobs": "TuningJob", "inferenceservices": "InferenceService"}[plural]
        metadata = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "generation": 1,
            "creationTimestamp": self.time,
            **{kept: body["metadata"][kept] for kept in ("labels", "annotations") if kept in body["metadata"]},
        }
        return {**body, "apiVersion": API_VERSION, "kind": kind, "metadata": metadata}

    async def _tell(self, done: Raw) -> Raw:
        """Wake the watches."""
        async with self._changed:
            self._changed.notify_all()
        return done

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _keep(self, request: web.Request) -> Any:
        text = await request.text()
        body = json.loads(text) if text else None
        self.requests.append((request.method, request.path_qs, dict(request.headers), body))
        return body

    def paths(self, method: str) -> list[str]:
        """Without queries."""
        return [path.partition("?")[0] for verb, path, _, _ in self.requests if verb == method]

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        body, plural = await self._keep(request), request.match_info["plural"]
        if request.query.get("watch") == "true":
            return await self._watch(request, plural)
        if self.next_answers:
            return self.next_answers.popleft()
        if request.method == "POST":
            raw = self._fresh(plural, body)
            try:
                return web.json_response(await self._tell(self.cluster.add(plural, raw)), status=201)
            except AlreadyExists:
                message = f'{plural}.{API_VERSION} "{raw["metadata"]["name"]}" already exists'
                return status_object(409, "AlreadyExists", message)
        name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        wanted = [pair.split("=") for pair in request.query.get("labelSelector", "").split(",") if pair]
        items = [raw for raw in self.cluster.objects[plural].values() if name in ("", raw["metadata"]["name"])]
        items = [
            raw for raw in items if all(raw["metadata"].get("labels", {}).get(key) == value for key, value in wanted)
        ]
        metadata = {"resourceVersion": str(self.cluster.version)}
        return web.json_response({"kind": "List", "metadata": metadata, "items": items})

    async def _one(self, request: web.Request) -> web.StreamResponse:
        body, plural, name = await self._keep(request), request.match_info["plural"], request.match_info["name"]
        if self.next_answers:
            return self.next_answers.popleft()
        raw = self.cluster.get(plural, name)
        if raw is None:
            return status_object(404, "NotFound", f'{plural}.tuning.llmtuning.dev "{name}" not found')
        if request.method == "DELETE":
            await self.remove(plural, name)
            return web.json_response({"kind": "Status", "status": "Success"})
        if request.method == "PATCH":
            version = raw["metadata"]["resourceVersion"]
            if body.get("metadata", {}).get("resourceVersion", version) != version:
                message = f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified'
                return status_object(409, "Conflict", message)
            return web.json_response(await self._tell(self.cluster.change(plural, merge_patch(raw, body))))
        return web.json_response(raw)

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        script = self.next_watches.popleft() if self.next_watches else None
        if isinstance(script, web.Response):
            return script
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if script is not None:
            await script(response, request)
            return response
        name = request.query["fieldSelector"].removeprefix("metadata.name=")
        seen = int(request.query["resourceVersion"])
        while True:
            newest = self.cluster.version
            for event, raw in list(self.cluster.watch[plural]):
                if int(raw["metadata"]["resourceVersion"]) > seen and raw["metadata"]["name"] == name:
                    await write_event(response, event, raw)
            seen = max(seen, newest)
            async with self._changed:
                await self._changed.wait_for(lambda after=seen: self.cluster.version > after)

    async def _list_pods(self, request: web.Request) -> web.StreamResponse:
        await self._keep(request)
        if self.next_answers:
            return self.next_answers.popleft()
        uid = request.query["labelSelector"].partition(",")[0].removeprefix(f"{LABEL_UID}=")
        return web.json_response(
            {"items": [pod for pod in self.all(PODS) if pod["metadata"]["labels"][LABEL_UID] == uid]}
        )

    async def _pod(self, request: web.Request) -> web.StreamResponse:
        await self._keep(request)
        pod = self.cluster.get(PODS, request.match_info["pod"])
        return web.json_response(pod) if pod else status_object(404, "NotFound", "no such pod")

    async def _log(self, request: web.Request) -> web.StreamResponse:
        await self._keep(request)
        pod = request.match_info["pod"]
        found = self.cluster.get(PODS, pod) or {}
        names = [container["name"] for container in found["spec"]["containers"]]
        if len(names) > 1 and request.query.get("container") not in names:
            choice = f"a container name must be specified for pod {pod}, choose one of: {names}"
            return status_object(400, "BadRequest", choice)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        if self.next_logs:
            await response.prepare(request)
            await self.next_logs.popleft()(response, request)
            return response
        since = request.query.get("sinceTime", "")
        text = "".join(f"{time} {line}\n" for time, line in self.logs[pod] if time >= since)
        return web.Response(text=text)

    async def _proxy(self, request: web.Request) -> web.StreamResponse:
        await self._keep(request)
        if self.service is None:
            return status_object(503, "ServiceUnavailable", 'no endpoints available for service "faq"')
        return await self.service(request)


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, mappings are merged, all else is put in place."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


async def write_event(response: web.StreamResponse, kind: str, raw: Raw) -> None:
    """One event of a watch."""
    await response.write(json.dumps({"type": kind, "object": raw}).encode() + b"\n")


def cut(request: web.Request) -> None:
    """End the connection as a dying network does."""
    assert request.transport is not None
    request.transport.abort()


def write_kubeconfig(path: Path, server: str, user: Raw | None = None) -> Path:
    """Write a kubeconfig whose only context is that server's namespace `team`."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return path
