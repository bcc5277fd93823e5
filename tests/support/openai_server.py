"""A server of the fine-tuning API's files as a process on loopback: for kills, cut connections and its memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class FileServer:
    """The process, and where it answers."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def most_memory_mib(self) -> int:
        """Return the largest resident set that the process ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) // 1024

    def kill(self) -> None:
        """End it without a word, as a node does that is lost."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def file_server(root: Path, *, file_bytes: int = 2**30, total_bytes: int = 2**34) -> Iterator[FileServer]:
    """Serve the claim at `root`; the socket listens before the process does, so nobody waits for it."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        command = [
            sys.executable,
            "-m",
            __name__,
            str(root),
            str(listening.fileno()),
            str(file_bytes),
            str(total_bytes),
        ]
        process = subprocess.Popen(
            command, pass_fds=[listening.fileno()], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
        )
        try:
            yield FileServer(process, listening.getsockname()[1])
        finally:
            process.terminate()
            process.wait(timeout=30)


def _main(root: str, descriptor: str, file_bytes: str, total_bytes: str) -> None:
    import uvicorn

    from llm_tuning.openai_api.app import create_app
    from tests.support.openai_api import make_context

    app = create_app(make_context(Path(root), file_bytes=int(file_bytes), total_bytes=int(total_bytes)))
    uvicorn.run(app, fd=int(descriptor), log_level="warning")


if __name__ == "__main__":
    _main(*sys.argv[1:])
