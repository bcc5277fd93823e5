"""`python -m llm_tuning.openai_api` as a process on folders of its own, with an API server on a thread."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import yaml

from llm_tuning.openai_api.keys import KeyRecord, digest, new_key
from tests.support.fake_api_server import FakeApiServer
from tests.support.openai_sdk import StrictSyncOpenAI
from tests.support.vllm_server import free_port

START_SECONDS = 60.0


@dataclass
class Server:
    """One process on folders of its own."""

    folder: Path
    kubeconfig: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def write(self, **settings: object) -> None:
        text = {"organization": "acme", "claimName": "tuning", "bases": {"tiny": {"path": "base/tiny"}}, **settings}
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(text))

    def add_key(self, name: str) -> str:
        key, folder = new_key(), self.folder / "keys" / "llm-tuning-api-keys"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(KeyRecord(sha256=digest(key), role="full").encode())
        return key

    def revoke(self, name: str) -> None:
        (self.folder / "keys" / "llm-tuning-api-keys" / name).unlink()

    def run(self, *more: str) -> subprocess.Popen[bytes]:
        options = {"settings": "settings.yaml", "keys": "keys", "root": "claim", "host": "127.0.0.1", "port": self.port}
        command = [sys.executable, "-m", "llm_tuning.openai_api", *(f"--{n}={v}" for n, v in options.items()), *more]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        return self.process

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        options = {"_strict_response_validation": True} | options
        return StrictSyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, **options)

    def start(self) -> None:
        process = self.run()
        deadline = time.monotonic() + START_SECONDS
        with self.client("nobody", max_retries=0, timeout=2) as client:
            while True:
                try:
                    client.files.list()
                except openai.APIConnectionError:
                    assert process.poll() is None, self.log.read_text()
                    assert time.monotonic() < deadline, self.log.read_text()
                    time.sleep(0.1)
                except openai.AuthenticationError:
                    return

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def api_server_on_a_thread() -> Iterator[FakeApiServer]:
    """For what blocks, and for other processes."""
    loop, made = asyncio.new_event_loop(), FakeApiServer()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(made.start(), loop).result(5)
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(made.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
