"""A real `mlflow server` on 127.0.0.1 that can be killed and started again on the same port and store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

READY_SECONDS = 120


class MlflowServer:
    """Runs `mlflow ui` (another name of `mlflow server`) on `store`; `url` stays the same over kills and starts."""

    def __init__(self, folder: Path, store: str) -> None:
        self._folder = folder
        self._arguments = ["ui", "--backend-store-uri", store, "--host", "127.0.0.1", "--workers", "1"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> MlflowServer:
        """Start it and wait until it answers."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *self._arguments, "--port", str(self._port)],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                # Without the job runner, which nothing here uses: eight processes and half of the start.
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()[-2000:]
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """End it as the kernel would, with its workers; nothing listens on the port afterwards."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False
