"""Scripts that a serving pod runs, run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_tuning.agent.contract import AGENT_PORT, PLAN_FILE
from llm_tuning.agent.starting import DRAINED_FILE, RUN_DIR
from llm_tuning.engines.vllm.log import last_error
from llm_tuning.pod.contract import TERMINATION_LOG
from tests.support.service_objects import container_of, pod_spec
from tuning_operator.inference_service.scripts import WAIT_FOR_DRAIN_SECONDS


@pytest.mark.parametrize("agent", ["never started", "answers", "has drained"])
def test_vllm_does_not_wait_for_an_agent_that_answers_nobody(tmp_path: Path, agent: str) -> None:
    """The container's own script, with a port and a folder of the test's."""
    script = container_of(pod_spec(), "vllm")["lifecycle"]["preStop"]["exec"]["command"][-1]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if agent == "answers":
            listener.listen()
        if agent == "has drained":
            (tmp_path / DRAINED_FILE).touch()
        port = str(listener.getsockname()[1])
        script = script.replace(str(AGENT_PORT), port).replace(f'"{RUN_DIR}/', f'"{tmp_path}/')
        script = script.replace(f"+ {WAIT_FOR_DRAIN_SECONDS}", "+ 1.5").replace("sleep(0.5)", "sleep(0.05)")
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
        waited = time.monotonic() - began
    assert waited > 1.5 if agent == "answers" else waited < 1.5


ENGINE = """
import os, subprocess, sys, time
print("INFO starting", flush=True)
{then}
"""
FAILS = """
print("(EngineCore pid=41) ERROR 12-01 02:16:50 [core.py:1510] ValueError: the cause", file=sys.stderr)
frames = ['  File "/x/a_long_path.py", line 1, in main'] * 200
print("Traceback (most recent call last):", *frames, sep="\\n", file=sys.stderr)
raise RuntimeError("Engine core initialization failed. See root cause above.")
"""
PYDANTIC = """
print("pydantic_core.ValidationError: 1 validation error for VllmConfig\\n  Value error, heads (2) must be divisible")
sys.exit(1)
"""
INSPECTION = """
print("(APIServer pid=1) ERROR 12-01 06:48:59 [registry.py:1120] ModuleNotFoundError: No module named 'torchvision'")
print("(APIServer pid=1) pydantic_core.ValidationError: 1 validation error for ModelConfig")
print("(APIServer pid=1)   Value error, it failed to be inspected. Please check the logs for more details.")
sys.exit(1)
"""
ENDS: dict[str, tuple[str, int, str]] = {
    "well": ("", 0, ""),
    "without a word": ("sys.exit(3)", 3, ""),
    "killed": ("os.kill(os.getpid(), 9)", 137, ""),
    "a cause far above the end": (FAILS, 1, "ValueError: the cause"),
    "an error of several lines": (
        PYDANTIC,
        1,
        "pydantic_core.ValidationError: 1 validation error for VllmConfig Value error, heads (2)",
    ),
    "a cause that is only pointed at": (
        INSPECTION,
        1,
        "ModuleNotFoundError: No module named 'torchvision'",
    ),
    "with a process left that writes": ("subprocess.Popen(['sleep', '60']); sys.exit(4)", 4, ""),
}


def start_engine(folder: Path, then: str) -> subprocess.Popen[str]:
    """Run the container's own script on a plan, with folders of the test's."""
    (folder / PLAN_FILE).write_text(
        json.dumps({"command": [sys.executable, "-c", ENGINE.format(then=then)], "environment": {"OF_THE_PLAN": "1"}})
    )
    script = container_of(pod_spec(), "vllm")["command"][-1]
    script = script.replace(f'"{RUN_DIR}/', f'"{folder}/').replace(str(TERMINATION_LOG), str(folder / "message"))
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("end", ENDS)
def test_an_engine_that_ends_leaves_its_log_and_the_cause(tmp_path: Path, end: str) -> None:
    then, code, cause = ENDS[end]
    began = time.monotonic()
    engine = start_engine(tmp_path, then)
    assert engine.wait(timeout=30) == code
    assert time.monotonic() - began < 20, "whatever it leaves behind"
    assert engine.stdout is not None
    os.set_blocking(engine.stdout.fileno(), False)
    assert engine.stdout.read().startswith("INFO starting\n")
    message = tmp_path / "message"
    found = last_error(message.read_text(), most=500) if message.exists() else ""
    assert found.startswith(cause) if cause else not message.exists()


def test_an_engine_is_asked_to_end_and_gets_its_environment(tmp_path: Path) -> None:
    then = (
        "import signal; signal.signal(15, lambda *_: sys.exit(7))\n"
        "print(os.environ['OF_THE_PLAN'], flush=True); time.sleep(60)"
    )
    engine = start_engine(tmp_path, then)
    assert engine.stdout is not None
    assert [engine.stdout.readline(), engine.stdout.readline()] == ["INFO starting\n", "1\n"], "as it is written"
    engine.terminate()
    assert engine.wait(timeout=30) == 7
