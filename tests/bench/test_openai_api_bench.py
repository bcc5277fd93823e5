"""Lists of the fine-tuning API by OpenAI's SDK: 200 files, 500 jobs, and the figures of those that have succeeded."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from llm_tuning.openai_api.files import FileStore
from llm_tuning.openai_api.names import upload_path
from tests.support.openai_api import make_run
from tests.support.openai_world import SUCCEEDED, World, open_world

FILES, JOBS, STEPS = 200, 500, 200
MOST_MS = 300
REPEATS = 7


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A claim with 200 files, and 500 jobs that have succeeded, with their runs."""
    async with open_world(tmp_path) as made:
        rows = [made.upload() for _ in range(FILES)]
        for number in range(JOBS):
            spec = {
                "mode": "sft",
                "model": {"path": "base/tiny"},
                "dataset": {"path": upload_path(rows[number % FILES])},
                "volume": {"claimName": "tuning"},
            }
            status = copy.deepcopy(SUCCEEDED) | {"modelId": f"ft_sft_tiny_{number}"}
            await made.server.put("tuningjobs", f"job-{number:03}", spec=spec, status=status)
        yield made


async def _median_ms(what: str, ask: Callable[[], Awaitable[int]], expected: int) -> float:
    times, cpu = [], []
    for _ in range(REPEATS):
        began, before = time.perf_counter(), time.process_time()
        assert await ask() == expected
        times.append(1000 * (time.perf_counter() - began))
        cpu.append(1000 * (time.process_time() - before))
    print(
        f"\n{what}: median {statistics.median(times):.0f} ms of {REPEATS}, first {times[0]:.0f}, "
        f"worst {max(times):.0f}; "
        f"processor time of it all {statistics.median(cpu):.0f} ms"
    )
    return statistics.median(times)


async def test_200_files_are_listed_in_time(world: World, tmp_path: Path) -> None:
    async def ask() -> int:
        return len((await world.client.files.list(purpose="fine-tune")).data)

    async def ask_a_new_server() -> int:
        world.store._known.clear()
        return await ask()

    limits = world.settings.limits
    assert len(FileStore(tmp_path, file_bytes=limits.file_bytes, total_bytes=limits.total_bytes).records()) == FILES
    assert await _median_ms(f"{FILES} files", ask, FILES) <= MOST_MS
    assert await _median_ms(f"{FILES} files, none known", ask_a_new_server, FILES) <= MOST_MS


async def test_500_jobs_are_listed_in_time(world: World, tmp_path: Path) -> None:
    for number in range(JOBS):
        make_run(tmp_path, f"ft_sft_tiny_{number}", [(1, {"train/loss": 2.5})])

    async def page() -> int:
        return len((await world.client.fine_tuning.jobs.list(limit=100)).data)

    async def all_pages() -> int:
        return len([job async for job in world.client.fine_tuning.jobs.list(limit=100)])

    assert await _median_ms(f"{JOBS} jobs in pages of 100", all_pages, JOBS) <= MOST_MS
    assert await _median_ms(f"100 of {JOBS} jobs", page, 100) <= MOST_MS


async def test_files_are_listed_in_time_beside_the_figures_of_500_jobs(world: World, tmp_path: Path) -> None:
    lines = [(step, {"train/loss": 2.5, "train/tokens": 1.0, "train/grad_norm": 0.5}) for step in range(1, STEPS + 1)]
    for number in range(JOBS):
        make_run(tmp_path, f"ft_sft_tiny_{number}", lines)

    async def ask() -> int:
        return len((await world.client.files.list()).data)

    began = time.perf_counter()
    assert await ask() == FILES + JOBS
    print(f"\n{JOBS} runs of {STEPS} steps, none known: {1000 * (time.perf_counter() - began):.0f} ms")
    assert await _median_ms(f"{FILES} files and {JOBS} results", ask, FILES + JOBS) <= MOST_MS
