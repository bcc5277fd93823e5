"""The operator as a process of this machine, for tests that end it by SIGKILL or look at its numbers."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class OperatorProcess:
    """`start` starts it; it watches one namespace, keeps its pod name, and has its HTTP port on 127.0.0.1."""

    def __init__(self, kubeconfig: Path, namespace: str, log_file: Path, **settings: str) -> None:
        self.kubeconfig, self.namespace, self.log_file = kubeconfig, namespace, log_file
        self._settings = {"POD_NAME": f"operator-{secrets.token_hex(4)}", **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        """Start it, again after it was ended."""
        assert self._process is None or self._process.poll() is not None
        self.port = free_port()
        given = {
            "NAMESPACE": self.namespace,
            "WATCH_NAMESPACES": self.namespace,
            "OPERATOR_IMAGE": "localhost/llm-tuning/operator:dev",
            "TRAINER_IMAGE": "localhost/llm-tuning/stand-in:dev",
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self.port),
            "CHECK_CPU": "50m",
            "CHECK_MEMORY": "256Mi",
            **self._settings,
        }
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            **{f"TUNING_OPERATOR_{name}": value for name, value in given.items()},
        }
        with self.log_file.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tuning_operator"], env=environment, stdout=stream, stderr=stream, cwd=ROOT
            )

    def wait_ready(self, seconds: float = 60) -> None:
        """Until /readyz says ok; fails with the log."""
        deadline = time.monotonic() + seconds
        while not self.answers("readyz"):
            assert self.running(), self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.1)

    def answers(self, path: str) -> bool:
        """Whether the path answers 200."""
        try:
            return self.get(path) is not None
        except OSError:
            return False

    def get(self, path: str) -> str:
        """Body of /healthz, /readyz or /metrics; raises OSError."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/{path}", timeout=5) as reply:
            return str(reply.read().decode())

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: int) -> None:
        """A signal: SIGKILL, SIGSTOP, SIGCONT."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, number: int = signal.SIGTERM, seconds: float = 20) -> int | None:
        """Send the signal and wait; returns the exit code."""
        if self._process is None:
            return None
        self.send(number)
        return self._process.wait(seconds)

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Resident memory."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def free_port() -> int:
    """Find a port that no connection gets by itself until the operator listens there, which takes it seconds."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
