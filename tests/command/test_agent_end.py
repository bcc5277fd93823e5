"""An agent whose read hangs ends at once when it is asked to: nothing waits for its thread."""

from __future__ import annotations

import subprocess
import sys
import time

HANGING = """
import asyncio, threading
from llm_tuning.agent.aside import Aside, StillRunning, within

def hang():
    threading.Event().wait()

async def serve():
    try:
        await Aside().run("a", hang, seconds=0.1)
    except StillRunning:
        pass

try:
    within(0.1, hang)
except StillRunning:
    pass
with asyncio.Runner() as runner:
    runner.run(serve())
print("ended")
"""


def test_a_process_ends_while_reads_hang() -> None:
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "ended\n"), run.stderr
    assert time.monotonic() - began < 30
