"""Reads of an agent as processes: one that hangs keeps no process from its end, and none takes its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from llm_tuning.models.adapter import HEADER_BYTES, SMALL_FILE_BYTES
from tests.unit.llm_tuning.agent.conftest import write_adapter

ROOT = Path(__file__).resolve().parents[3]
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


READING = """
import resource, sys
from pathlib import Path
from llm_tuning.agent.fit import find_misfit
from tests.unit.llm_tuning.agent.conftest import PLAN

def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = rss()
print(find_misfit(Path(sys.argv[1]), PLAN).reason, rss() - before)
"""
MOST_MIB = 300
"""The agent has 1 GiB, and 80 MB at rest."""


def test_the_largest_files_that_are_read_take_a_bounded_memory(tmp_path: Path) -> None:
    """Whatever they hold: tiny objects take most."""
    folder = write_adapter(tmp_path, "ft_a", dtype="float32")
    for name in ("adapter_config.json", "parity.json", "model.json"):
        whole = json.loads((folder / name).read_text()) | {"more": []}
        text = json.dumps(whole).removesuffix("]}")
        (folder / name).write_text(text + "{}," * ((SMALL_FILE_BYTES - len(text)) // 3 - 2) + "{}]}")
    header = b"{%s}" % b",".join(b'"%x":{}' % number for number in range(HEADER_BYTES // 12))
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    run = subprocess.run(
        [sys.executable, "-c", READING, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    reason, mib = run.stdout.split()
    assert reason == "AdapterInvalid"
    assert int(mib) < MOST_MIB
