"""The plugin as a process: an interrupt."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from tests.support.fake_api_server import FakeApiServer
from tests.unit.llm_tuning.client.conftest import SPEC, training

ROOT = Path(__file__).resolve().parents[3]


async def test_ctrl_c_ends_the_watching_at_once_and_not_the_job(server: FakeApiServer) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=training(1))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llm_tuning.kubectl.main", "watch", "faq", stdout=PIPE, stderr=PIPE, cwd=ROOT
    )
    assert process.stderr is not None
    assert b"faq: Training" in await asyncio.wait_for(process.stderr.readline(), 20)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert server.paths("DELETE") == server.paths("PATCH") == []
