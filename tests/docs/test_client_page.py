"""The Python of docs/client.md and README.md runs as it stands; the plugin takes what docs/kubectl-plugin.md says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

import llm_tuning.client as package
from llm_tuning.client import logs
from llm_tuning.kubectl.main import COMMANDS, build_parser
from tests.support.fake_api_server import FakeApiServer, write_kubeconfig
from tests.support.page_runs import texts
from tests.unit.llm_tuning.client.conftest import SUCCEEDED, condition

DOCS = Path(__file__).resolve().parents[2] / "docs"
CLIENT, PLUGIN = ((DOCS / name).read_text(encoding="utf-8") for name in ("client.md", "kubectl-plugin.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


async def answer(request: web.Request) -> web.StreamResponse:
    """As the page's service: with tools it calls one, and then says what that gave."""
    asked = json.loads(await request.text())
    message: dict[str, Any] = {"content": "On the login page."}
    if asked["messages"][-1]["role"] == "tool":
        message = {"content": asked["messages"][-1]["content"]}
    elif "tools" in asked:
        function = {"name": asked["tools"][0]["function"]["name"], "arguments": '{"city": "Rome"}'}
        message = {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
    if not asked.get("stream"):
        return web.json_response({"choices": [{"message": message}]})
    response = web.StreamResponse()
    await response.prepare(request)
    for word in message["content"].split(" "):
        event = {"choices": [{"delta": {"content": f"{word} "}}]}
        await response.write(f"data: {json.dumps(event)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def operate(server: FakeApiServer) -> None:
    """What is created succeeds, or is ready, at once."""

    server.service = answer
    while True:
        for plural, status in (
            ("tuningjobs", SUCCEEDED),
            ("inferenceservices", {"conditions": [condition("Ready", "True", "Ready")]}),
        ):
            for raw in server.all(plural):
                name = raw["metadata"]["name"]
                if "status" not in raw:
                    await server.put(plural, name, status=status)
                    if plural == "tuningjobs":
                        server.add_pod(name, "train", f"{name}-train-1", lines=["Trained: done"])
        await asyncio.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    """In $KUBECONFIG, with an operator, on a thread: the blocks block."""
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.05)
    loop, server = asyncio.new_event_loop(), FakeApiServer()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
    operating = asyncio.run_coroutine_threadsafe(operate(server), loop)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", server.connection.server)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    yield server
    operating.cancel()
    with contextlib.suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.mark.timeout(60)
def test_the_python_blocks_run(cluster: FakeApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    shared: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(CLIENT, "python"):
        exec(compile(block, "docs/client.md", "exec"), shared)
    shared["client"].close()
    said = capsys.readouterr().out
    assert "models/ft_sft_tiny_1_abcdef 1.5" in said
    assert "On the login page.\n" in said
    assert "On the login page. 21 degrees in Rome\n" in said, "a stream, and the answer to a tool's result"
    assert "spec.lora.rank must be at least 1, got 0" in said
    assert "Succeeded True \n['faq']" in said
    assert "Trained: done" in said
    assert len(cluster.all("tuningjobs")) == 3


@pytest.mark.timeout(60)
def test_the_python_of_the_readme_runs(cluster: FakeApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = texts("README.md", "From Python and kubectl")
    exec(compile(block, "README.md", "exec"), {"__name__": "docs"})
    assert "On the login page." in capsys.readouterr().out


def test_every_error_has_its_line_and_the_role_is_one() -> None:
    errors = {name for name in package.__all__ if isinstance(getattr(package, name), type)}
    errors = {name for name in errors if issubclass(getattr(package, name), Exception)}
    assert errors - {"ClusterError"} | {"InputError"} == set(
        re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", CLIENT, flags=re.MULTILINE)))
    )
    (role,) = blocks(CLIENT, "yaml")
    assert yaml.safe_load(role)["kind"] == "Role"


def test_every_plugin_line_is_taken() -> None:
    lines = [line for block in blocks(PLUGIN, "") for line in block.splitlines()]
    for line in lines:
        assert line.startswith("kubectl tuning ")
        build_parser().parse_args(shlex.split(line)[2:])
    assert {line.split()[2] for line in lines} == set(COMMANDS)
    table = re.findall(r"^\| `([\w-]+) (?:-f FILE|NAME|create NAME)`", PLUGIN, flags=re.MULTILINE)
    assert set(table) == set(COMMANDS)
