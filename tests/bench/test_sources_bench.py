"""Fetching a gigabyte from loopback against huggingface_hub's own snapshot_download; and ten that want the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import tiny_model
from tests.support.source_fetchers import fetcher, moved

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTES = int(os.environ.get("SOURCES_BENCH_MIB", "1024"))
SHARDS = 4
ROUNDS = 3
SERVER = f"""
import time
from tests.support.hub_server import HubServer, content, tiny_model
files = tiny_model(10)
del files["model.safetensors"]
files["model.safetensors.index.json"] = b"{{}}"
for n in range({SHARDS}):
    files[f"model-{{n + 1:05d}}-of-{SHARDS:05d}.safetensors"] = content({MEBIBYTES} * 2**20 // {SHARDS}, n)
hub = HubServer()
hub.model("o/n", files)
for name, body in files.items():
    hub.tag(body)
print(hub.url, flush=True)
while True:
    time.sleep(1)
"""
OURS = """
import sys
from pathlib import Path
from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.uri import parse_uri
fetch(parse_uri("hf://o/n", "model"), Path(sys.argv[1]))
"""
THEIRS = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("o/n", local_dir=sys.argv[1], ignore_patterns=["*.bin", "*.py", "original/*"])
"""
MEASURED = """
import resource, sys, time
began = time.monotonic()
exec(sys.argv.pop(1))
print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    yield running.stdout.readline().strip()
    running.terminate()
    running.wait()


def measured(code: str, folder: Path, url: str) -> tuple[float, float]:
    """Run `code` as a process and return seconds and MiB at most."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    command = [sys.executable, "-c", MEASURED, code, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def test_a_gigabyte_is_fetched_as_fast_as_huggingface_hub_does_and_hashed(server: str, tmp_path: Path) -> None:
    ours, theirs = [], []
    for turn in range(ROUNDS):
        ours.append(measured(OURS, tmp_path / f"ours-{turn}", server))
        theirs.append(measured(THEIRS, tmp_path / f"theirs-{turn}", server))
    for name, found in (("sources", ours), ("snapshot_download", theirs)):
        print(f"{name}: {sorted(seconds for seconds, _ in found)} s, {max(memory for _, memory in found):.0f} MiB")
    assert min(ours)[0] <= min(theirs)[0] / 0.9
    assert max(memory for _, memory in ours) < 200


def test_ten_at_once_move_the_bytes_of_one(server: str, tmp_path: Path) -> None:
    counts = [moved(process) for process in [fetcher(server, "hf://o/n", tmp_path) for _ in range(10)]]
    total = MEBIBYTES * 2**20
    print(f"ten at once: {sum(counts):,} bytes of {total:,}")
    assert total <= sum(counts) <= 1.01 * total + sum(map(len, tiny_model(10).values()))


def test_a_second_fetch_of_the_same_commit_takes_under_a_second(server: str, tmp_path: Path) -> None:
    measured(OURS, tmp_path, server)
    began = time.monotonic()
    again, _ = measured(OURS, tmp_path, server)
    print(f"again: {again:.2f} s, as a process {time.monotonic() - began:.2f} s")
    assert again < 1
