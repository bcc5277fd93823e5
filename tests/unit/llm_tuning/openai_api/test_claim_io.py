"""A claim that does not answer: whoever asks nothing of it is answered all the same."""

from __future__ import annotations

import asyncio
import builtins
import io
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx2
import openai
import pytest

from llm_tuning.openai_api.claim_io import THREADS
from llm_tuning.openai_api.file_uses import sweep
from llm_tuning.openai_api.names import result_id
from tests.support.openai_api import make_run
from tests.support.openai_world import SETTINGS, World, open_world

MODEL_ID = "ft_sft_tiny_1_abcdef"
CALLS = ("open", "listdir", "scandir", "stat", "lstat", "mkdir", "rename", "unlink", "rmdir", "statvfs")
SECONDS = 20


class StuckClaim:
    """A folder whose calls wait until it `opens`; those that came in the event loop's thread are kept instead."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, *, threads: str = "") -> None:
        """Hold up the calls of those threads whose names begin so."""
        self._root, self._loop, self._threads = str(root), threading.current_thread(), threads
        self.opens = threading.Event()
        self.waiting = 0
        self.in_loop: list[str] = []
        for module, names in ((os, CALLS), (io, ("open",)), (builtins, ("open",))):
            for name in names:
                patch.setattr(module, name, self._held(name, getattr(module, name)))

    def _held(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *given: Any, **how: Any) -> Any:
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._root):
                thread = threading.current_thread()
                if thread is self._loop:
                    self.in_loop.append(f"{name} {path}")
                elif thread.name.startswith(self._threads) and not self.opens.is_set():
                    self.waiting += 1
                    self.opens.wait(SECONDS)
            return real(path, *given, **how)

        return call

    async def is_asked(self, calls: int = 1) -> None:
        async with asyncio.timeout(SECONDS):
            while self.waiting < calls:
                await asyncio.sleep(0.005)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, SETTINGS | {"deleteAdapters": True}) as made:
        yield made


Asked = Callable[[openai.AsyncOpenAI, dict[str, str]], Awaitable[Any]]
ROUTES: dict[str, Asked] = {
    "upload": lambda client, ids: client.files.create(file=("rows.jsonl", b'{"a": 1}\n'), purpose="fine-tune"),
    "list of files": lambda client, ids: client.files.list(),
    "list of results": lambda client, ids: client.files.list(purpose="fine-tune-results"),
    "file": lambda client, ids: client.files.retrieve(ids["file"]),
    "result": lambda client, ids: client.files.retrieve(ids["result"]),
    "content": lambda client, ids: client.files.content(ids["file"]),
    "figures": lambda client, ids: client.files.content(ids["result"]),
    "deletion of a file": lambda client, ids: client.files.delete(ids["file"]),
    "new job": lambda client, ids: client.fine_tuning.jobs.create(model="gpt-4.1-mini", training_file=ids["file"]),
    "list of jobs": lambda client, ids: client.fine_tuning.jobs.list(),
    "job": lambda client, ids: client.fine_tuning.jobs.retrieve(ids["job"]),
    "events": lambda client, ids: client.fine_tuning.jobs.list_events(ids["job"]),
    "checkpoints": lambda client, ids: client.fine_tuning.jobs.checkpoints.list(ids["job"]),
    "deletion of an adapter": lambda client, ids: client.models.delete(ids["model"], extra_query={"adapter": "true"}),
}


@pytest.mark.parametrize("route", ROUTES)
async def test_a_route_that_waits_for_the_claim_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    model = await world.tuned(model_id=MODEL_ID)
    make_run(world.root, MODEL_ID, [(1, {"train/loss": 2.5})])
    (job,) = (await world.client.fine_tuning.jobs.list()).data
    ids = {"file": world.upload(), "result": result_id(MODEL_ID), "job": job.id, "model": model}
    with monkeypatch.context() as patch:
        claim = StuckClaim(world.root, patch)
        asking = asyncio.ensure_future(ROUTES[route](world.client, ids))
        try:
            await claim.is_asked()
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(world.app), base_url="http://api") as client:
                assert (await asyncio.wait_for(client.get("/healthz"), SECONDS)).status_code == 200
            assert not asking.done()
        finally:
            claim.opens.set()
        await asking
    assert claim.in_loop == []


async def test_the_removal_of_expired_files_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        claim = StuckClaim(world.root, patch)
        sweeping = asyncio.create_task(sweep(world.context))
        await claim.is_asked()
        claim.opens.set()
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
    assert claim.in_loop == []


async def test_names_are_looked_up_while_all_that_asks_the_claim_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        claim = StuckClaim(world.root, patch)
        lists = [asyncio.ensure_future(world.client.files.list(purpose="fine-tune")) for _ in range(2 * THREADS)]
        try:
            await claim.is_asked(THREADS)
            look_up = asyncio.get_running_loop().getaddrinfo("localhost", 80)
            assert await asyncio.wait_for(look_up, SECONDS)
        finally:
            claim.opens.set()
        assert [page.data for page in await asyncio.gather(*lists)] == [[]] * 2 * THREADS


async def test_models_are_listed_while_more_downloads_wait_than_there_are_threads_for_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starlette reads a file on anyio's threads, where FastAPI puts what is no coroutine, too."""
    file_id = world.upload()
    most = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
    with monkeypatch.context() as patch:
        claim = StuckClaim(world.root, patch, threads="AnyIO")
        downloads = [asyncio.ensure_future(world.client.files.content(file_id)) for _ in range(most + 5)]
        try:
            await claim.is_asked(most)
            assert (await asyncio.wait_for(world.client.models.list(), SECONDS)).data
        finally:
            claim.opens.set()
        contents = {answer.content for answer in await asyncio.gather(*downloads)}
    assert len(contents) == 1
    assert claim.in_loop == []
