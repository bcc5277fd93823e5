"""Tasks that lose a cancellation, fail while they end or have ended: all are over, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from tuning_operator.core import tasks as module
from tuning_operator.core.tasks import end


async def loses_one_cancellation() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def fails_as_it_ends() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise OSError("closing")


async def fails() -> None:
    raise OSError("before")


async def test_all_tasks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.05)
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context))
    tasks = [asyncio.create_task(part()) for part in (loses_one_cancellation, fails_as_it_ends, fails)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end([*tasks, asyncio.create_task(asyncio.sleep(60))])
    assert all(task.done() for task in tasks)
    del tasks
    assert said == []


async def test_no_tasks_are_no_wait() -> None:
    await end([])
