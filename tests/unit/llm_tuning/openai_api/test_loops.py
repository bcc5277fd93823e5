"""What goes on beside the requests: no object and no fault ends it, and none is told over and over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_tuning.openai_api import app, file_uses, publishing
from llm_tuning.openai_api.app import create_app
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.names import LABEL_API, upload_path
from tests.support.fake_api_server import Raw
from tests.support.openai_world import ROW, World

JOB: Raw = {
    "mode": "sft",
    "model": {"path": "base/tiny"},
    "dataset": {"path": "datasets/a.jsonl"},
    "volume": {"claimName": "tuning"},
}
OF_ANOTHER_VERSION: dict[str, dict[str, Raw]] = {
    "spec": {"spec": JOB | {"mode": "grpo"}},
    "status": {"spec": JOB, "status": {"conditions": [{"type": "Finished"}]}},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(file_uses, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(app, "AGAIN_SECONDS", 0.01)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def lists(world: World) -> int:
    return sum(method == "GET" and "tuningjobs" in path for method, path, _, _ in world.server.requests)


def expired_file(world: World) -> Path:
    record = world.store.folder / world.upload(ROW) / "file.json"
    record.write_text(record.read_text().replace('"expires_at": null', '"expires_at": 1'))
    return record.parent


@pytest.mark.parametrize("is_ours", [False, True], ids=["of kubectl", "of this API"])
@pytest.mark.parametrize("what", OF_ANOTHER_VERSION)
async def test_a_job_that_cannot_be_read_holds_up_no_loop_and_keeps_the_files_that_it_names(
    world: World, caplog: pytest.LogCaptureFixture, what: str, is_ours: bool
) -> None:
    name = await world.tuned(model_id="ft_a")
    expired, named = expired_file(world), expired_file(world)
    bad = OF_ANOTHER_VERSION[what]
    spec = bad["spec"] | {"dataset": {"path": upload_path(named.name)}}
    await world.server.put("tuningjobs", "bad", spec=spec, status=bad.get("status"))
    if is_ours:
        world.server.cluster.objects["tuningjobs"]["team", "bad"]["metadata"]["labels"] = {LABEL_API: "true"}
    async with world.app.router.lifespan_context(world.app):
        await until(lambda: len(world.services()) == 1 and not expired.exists())
        before = lists(world)
        await until(lambda: lists(world) > before + 20)
        assert named.exists()
        await world.server.remove("tuningjobs", "bad")
        await until(lambda: not named.exists())
    assert world.routes("api-gpt-4-1-mini") == [name]
    told = [each for each in caplog.records if each.levelname in ("WARNING", "ERROR")]
    assert len(told) == 1, "once, and not over and over"


async def test_a_fault_that_a_loop_does_not_know_is_logged_once_and_the_loop_begins_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    begun, is_mended = 0, asyncio.Event()

    async def loop(context: Context) -> None:
        nonlocal begun
        begun += 1
        if begun < 4:
            raise ZeroDivisionError
        is_mended.set()
        await asyncio.Event().wait()

    made = create_app(world.context, loops=[loop])
    async with made.router.lifespan_context(made):
        await asyncio.wait_for(is_mended.wait(), 20)
    assert caplog.text.count("it begins again") == 1
