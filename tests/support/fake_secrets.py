"""Secrets of a fake API server: get, create, merge patch with its check of resourceVersion; names that are refused."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import web


class FakeSecrets:
    """`kept` by name, as the API server gives them back."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.others: deque[Callable[[], None]] = deque()
        """What others write, each just before one of our writes."""
        self._version = 100

    def put(self, name: str, data: dict[str, str]) -> None:
        """Make or replace a Secret; values are base64 as in the API."""
        self._version += 1
        self.kept[name] = {"metadata": {"name": name, "resourceVersion": str(self._version)}, "data": data}

    def add_to(self, app: web.Application, namespace: str) -> None:
        """Serve them."""
        app.router.add_post(f"/api/v1/namespaces/{namespace}/secrets", self._create)
        app.router.add_get(f"/api/v1/namespaces/{namespace}/secrets/{{name}}", self._read)
        app.router.add_patch(f"/api/v1/namespaces/{namespace}/secrets/{{name}}", self._patch)

    async def _read(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(self.kept[name]) if name in self.kept else _status(404, "NotFound", name)

    async def _create(self, request: web.Request) -> web.Response:
        body = json.loads(await request.text())
        self._let_others_write()
        name = body["metadata"]["name"]
        if name in self.kept:
            return _status(409, "AlreadyExists", name)
        self.put(name, body["data"])
        return web.json_response(self.kept[name], status=201)

    async def _patch(self, request: web.Request) -> web.Response:
        body, name = json.loads(await request.text()), request.match_info["name"]
        assert request.content_type == "application/merge-patch+json"
        self._let_others_write()
        if name not in self.kept:
            return _status(404, "NotFound", name)
        before = self.kept[name]
        version = before["metadata"]["resourceVersion"]
        if body.get("metadata", {}).get("resourceVersion", version) != version:
            return _status(409, "Conflict", name)
        data = {**before["data"], **body["data"]}
        self.put(name, {key: value for key, value in data.items() if value is not None})
        return web.json_response(self.kept[name])

    def _let_others_write(self) -> None:
        if self.others:
            self.others.popleft()()


def _status(code: int, reason: str, name: str) -> web.Response:
    message = f'secrets "{name}": {reason}'
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}
    return web.json_response({**body, "reason": reason, "code": code}, status=code)
