"""`launch_llm.sh` with the real vLLM, from start to stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import llm_tuning
from tests.support.lora_adapters import PROBE_TEXTS, make_adapter
from tests.support.page_runs import texts
from tests.support.vllm_server import READY_SECONDS, free_port, require_vllm

PACKAGE = Path(llm_tuning.__file__).parent


SHORT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A rank-24 adapter of the base, trained with another chat template than the base's."""
    folder = tmp_path_factory.mktemp("models") / "ft_sft_tiny"
    return make_adapter(folder, tiny_base, b_scale=0.05, rank=24, chat_template=SHORT_TEMPLATE)


def launch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script from the documented folder."""
    return launch_line(shlex.join(["bash", "config/llm/launch_llm.sh", *map(str, arguments)]), **environment)


def launch_line(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", line]
    env = dict(os.environ) | {"LAUNCH_LOG_DIR": str(Path.cwd() / "logs")} | environment
    return subprocess.run(command, cwd=PACKAGE, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def leftovers() -> Iterator[list[int]]:
    """Process groups that a test started; what is left of them afterwards is killed."""
    groups: list[int] = []
    yield groups
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


def running(group: int) -> list[str]:
    """Command names of the processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state != "Z":
            found.append(name)
    return found


def wait_until_ended(group: int) -> None:
    deadline = time.monotonic() + 60
    while running(group) and time.monotonic() < deadline:
        time.sleep(0.1)


def with_own(documented: str, in_their_place: dict[str, Any]) -> str:
    """A line of the documentation with what it is about here."""
    for word, own in in_their_place.items():
        assert word in documented
        documented = documented.replace(word, str(own))
    return documented


def test_serve_call_and_stop(adapter: Path, tiny_base: Path, tmp_path: Path, leftovers: list[int]) -> None:
    require_vllm()
    port = free_port()
    folder, documented = texts("docs/serving.md", "Serving on one machine, and proving it")
    assert folder == f"cd {PACKAGE.name}"
    in_their_place = {
        "8000": port,
        "base/qwen3-0.6b": tiny_base,
        "../models/ft_sft_qwen3-0.6b_1795551246_3fa94c": adapter,
    }
    line = with_own(documented, in_their_place)
    run = launch_line(line, LAUNCH_TIMEOUT_SECONDS=str(READY_SECONDS), HTTP_PROXY="http://127.0.0.1:9")
    print(run.stdout, run.stderr)
    pid_file = tmp_path / "logs" / f"launch_llm_{port}.pid"
    group = int(pid_file.read_text())
    leftovers.append(group)
    assert run.returncode == 0, run.stderr
    assert "proof: effective" in run.stdout
    assert "another chat template" in run.stderr

    url = f"http://127.0.0.1:{port}"
    answers = {}
    for name in ("lora", "ft_sft_tiny", "tiny-llama"):
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
        response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        assert response.status_code == 200, response.text
        answers[name] = response.json()["choices"][0]["message"]["content"]
    assert answers["lora"] == answers["ft_sft_tiny"] != answers["tiny-llama"]
    [asking] = texts("docs/serving.md", "What is served under which name")
    asked = subprocess.run(["bash", "-c", with_own(asking, {"8000": port})], capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout)["choices"][0]["message"]["content"]

    # Proofs of several clients at once: what ends a server whose lm_head is prepared for LoRA.
    ids = json.loads((adapter / "parity.json").read_text())["probes"][0]["token_ids"]
    body = {"model": "lora", "prompt": ids, "max_tokens": 8, "prompt_logprobs": 0}
    with ThreadPoolExecutor(8) as pool:
        codes = list(
            pool.map(lambda _: httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code, range(16))
        )
    assert codes == [200] * 16

    log = (tmp_path / "logs" / f"launch_llm_{port}.log").read_text()
    assert not any(question in log for question, _ in PROBE_TEXTS)  # no dataset text in logs

    call, stop = (line.partition(": ")[2] for line in run.stdout.splitlines()[-2:])
    called = subprocess.run(
        ["bash", "-c", f"{call} --silent --noproxy '*'"], capture_output=True, text=True, check=True
    )
    assert json.loads(called.stdout)["model"] == "lora"
    assert len(running(group)) >= 3
    subprocess.run(["bash", "-c", stop], check=True)
    wait_until_ended(group)
    assert running(group) == []


def test_a_server_that_dies_shows_the_end_of_its_log(tiny_base: Path, tmp_path: Path) -> None:
    require_vllm()
    port = free_port()
    run = launch(port, "cpu", tiny_base, VLLM_ARGS="--no-such-flag")
    assert run.returncode == 1
    assert "vLLM ended before it answered (exit code 2)" in run.stderr
    assert "unrecognized arguments: --no-such-flag" in run.stderr
    assert not (tmp_path / "logs" / f"launch_llm_{port}.pid").exists()


def test_a_stop_signal_while_waiting_ends_vllm_too(tiny_base: Path, tmp_path: Path, leftovers: list[int]) -> None:
    require_vllm()
    port = free_port()
    command = ["bash", "config/llm/launch_llm.sh", str(port), "cpu", str(tiny_base)]
    env = dict(os.environ) | {"LAUNCH_LOG_DIR": str(tmp_path)}
    launcher = subprocess.Popen(
        command, cwd=PACKAGE, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pid_file = tmp_path / f"launch_llm_{port}.pid"
    while launcher.poll() is None and not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.05)
    group = int(pid_file.read_text())
    leftovers.append(group)
    launcher.terminate()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 75
    assert "try again (Stopped)" in errors
    assert running(group) == []


def commands_running() -> Iterator[list[str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace").split("\0")
        except OSError:
            continue
