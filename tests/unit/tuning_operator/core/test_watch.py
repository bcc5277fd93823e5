"""What kopf asks of an API server: our kinds and what everybody may read, in the whole cluster or in namespaces."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import kopf
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kopf._cogs.clients import api as kopfs_api

from tuning_operator.core.cache import GROUPS, TUNING_JOBS, Cache
from tuning_operator.core.watch import _is_not_of_kopfs_callback, _settings, watch

SERVED = GROUPS | {"namespaces": ("", "v1"), "customresourcedefinitions": ("apiextensions.k8s.io", "v1")}
"""What kopf looks for and has no business with is there too."""
VERSIONS = {"/".join(found) for found in SERVED.values()}
JOB = {"metadata": {"namespace": "team", "name": "faq", "uid": "u", "resourceVersion": "2"}, "spec": {}}


class ApiServer:
    """Discovery of our kinds, and watches that say nothing but one TuningJob; every path that is asked is noted."""

    def __init__(self) -> None:
        self.watched: set[str] = set()
        self.others: set[str] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            self.watched.add(request.path)
            return await self._watch(request)
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        if request.path == "/apis":
            groups = [
                {"name": group, "preferredVersion": {"version": version}, "versions": [{"version": version}]}
                for group, version in set(SERVED.values())
                if group
            ]
            return web.json_response({"groups": groups})
        version = request.path.removeprefix("/apis/") if "/apis/" in request.path else f"/{request.path[5:]}"
        if version in VERSIONS:
            return web.json_response({"resources": self._resources(version)})
        self.others.add(request.path)
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})

    @staticmethod
    def _resources(version: str) -> list[dict[str, object]]:
        kinds = [kind for kind, found in SERVED.items() if "/".join(found) == version]
        verbs = ["list", "watch", "patch"]
        return [
            {"name": kind, "kind": kind, "singularName": kind, "namespaced": True, "verbs": verbs} for kind in kinds
        ]

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        if request.path.endswith(f"/{TUNING_JOBS}"):
            event = {"type": "ADDED", "object": JOB | {"kind": "TuningJob"}}
            await reply.write(json.dumps(event).encode() + b"\n")
        await asyncio.sleep(30)
        return reply


def kubeconfig(file: Path, server: str) -> Path:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.parametrize("namespaces", [(), ("team-a", "team-b")])
async def test_only_what_the_roles_of_the_chart_allow_is_asked(
    namespaces: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    store, stop = Cache(), asyncio.Event()
    wanted = {
        f"{f'/apis/{group}' if group else '/api'}/{version}{where}/{kind}"
        for kind, (group, version) in GROUPS.items()
        for where in [f"/namespaces/{name}" for name in namespaces] or [""]
    }
    async with TestServer(app) as server:
        config = kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}")
        monkeypatch.setenv("KUBECONFIG", str(config))
        running = asyncio.create_task(watch(store, namespaces, stop, asyncio.Event()))
        try:
            async with asyncio.timeout(20):
                while not wanted <= api.watched or store.get(TUNING_JOBS, "team", "faq") is None:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)  # what else it would ask for
        finally:
            stop.set()
            await asyncio.wait_for(running, 20)
    assert api.watched == wanted
    assert api.others == set()


async def open_a_watch_that_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """By kopf's own code, while the API server has not answered."""
    asked = asyncio.Event()

    async def request(**_: Any) -> None:
        asked.set()
        await asyncio.sleep(0.05)
        raise asyncio.CancelledError

    monkeypatch.setattr(kopfs_api, "request", request)
    told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    log = logging.getLogger("kopf")
    stream = kopfs_api.stream("/", settings=kopf.OperatorSettings(), stopper=told, logger=log)
    opening = asyncio.ensure_future(anext(stream, None))
    await asked.wait()
    told.set_result(None)
    assert await opening is None


async def test_a_callback_of_kopf_that_fails_is_not_shown_as_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.removeFilter(_is_not_of_kopfs_callback)
    await open_a_watch_that_is_told_to_end(monkeypatch)
    assert "request_cancel_callback" in caplog.text, "kopf has no such fault any more: the filter can go"
    caplog.clear()
    _settings()
    await open_a_watch_that_is_told_to_end(monkeypatch)
    assert caplog.text == ""
    asyncio.get_running_loop().call_soon(int, "another fault")
    await asyncio.sleep(0)
    assert "another fault" in caplog.text
