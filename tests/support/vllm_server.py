"""A real vLLM on loopback for the tests, and a proxy before it that forbids prompt log-probabilities."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from llm_tuning.engines.vllm.environment import OFFLINE
from llm_tuning.serving.server_process import ServerProcess
from tests.support.missing import skip_or_fail

VLLM_PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm/bin/python"
READY_SECONDS = 300
"""About 25 s on two free cores; the rest is for machines that are busy."""


def require_vllm() -> None:
    """Skip on a machine without the environment; in CI that is a failure."""
    if not VLLM_PYTHON.exists():
        skip_or_fail("no .venv-vllm: make it with `make vllm-env`")


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def vllm_server(
    folder: Path,
    base: Path,
    *,
    dtype: str,
    adapters: Mapping[str, Path],
    base_names: Sequence[str],
    max_model_len: int = 512,
) -> Iterator[str]:
    """Serve `base` under `base_names` with `adapters`, and give the address. It has ended when the block is left."""
    require_vllm()
    port = free_port()
    server = ServerProcess(folder, port=port)
    command = [
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(base), "--served-model-name", *base_names, "--max-model-len", str(max_model_len)),
        *("--dtype", dtype, "--enforce-eager", "--enable-lora", "--max-lora-rank", "32"),
        *("--lora-modules", *(f"{name}={path}" for name, path in adapters.items())),
    ]
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    server.start(command, dict(os.environ) | OFFLINE | cpu)
    try:
        url = f"http://127.0.0.1:{port}"
        server.wait_until_it_answers(url, timeout_seconds=READY_SECONDS)
        yield url
    finally:
        server.stop()


@contextmanager
def without_prompt_logprobs(url: str) -> Iterator[str]:
    """A gateway before the server at `url` that answers 400 to requests for prompt log-probabilities, as some do."""

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(httpx.get(f"{url}{self.path}", timeout=60))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "prompt_logprobs" in body:
                self._answer(httpx.Response(400, json={"error": {"message": "prompt_logprobs is not allowed here"}}))
            else:
                self._answer(httpx.post(f"{url}{self.path}", json=body, timeout=60))

        def _answer(self, response: httpx.Response) -> None:
            self.send_response(response.status_code)
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    gateway = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=gateway.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{gateway.server_port}"
    finally:
        gateway.shutdown()
        thread.join()
        gateway.server_close()
