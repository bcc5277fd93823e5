"""`tune-llm api` as a process, and OpenAI's SDK for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import openai

from tests.support.vllm_server import free_port

T = TypeVar("T")
START_SECONDS = 180.0
WAIT_SECONDS = 420.0


def rows_of(count: int = 24, **third: Any) -> bytes:
    """Rows as OpenAI takes them, JSON Lines; `third` is the row in the third one's place."""
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"A number: {n}."},
            ]
        }
        for n in range(count)
    ]
    if third:
        rows[2] = third
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class LocalServer:
    """One server on one folder. It may be killed and started again, on the same port."""

    def __init__(self, folder: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.flags, self.port = folder, flags, free_port()
        no_vllm = {"VLLM_PYTHON": sys.executable}  # a test that chats names one
        self.environment = {"HF_HUB_OFFLINE": "1", **no_vllm, **(environment or {})}
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=5)

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "llm_tuning.codes.tune_llm", "api", "--port", str(self.port), *self.flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=os.environ | self.environment
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.with_options(max_retries=0, timeout=2).fine_tuning.jobs.list(limit=1)
            except openai.APIConnectionError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.2)
            else:
                return

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=150)

    def until(self, read: Callable[[], T], holds: Callable[[T], bool]) -> T:
        """Read until that holds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = read()
            if holds(found):
                return found
            assert time.monotonic() < deadline, f"{found}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.3)


@contextmanager
def local_server(folder: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[LocalServer]:
    """Start one; it is ended at the end, with what it has started."""
    server = LocalServer(folder, *flags, environment=environment)
    try:
        server.start()
        yield server
    finally:
        server.client.close()
        if server.process is not None and server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
