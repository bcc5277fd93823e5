"""`launch_llm.sh` with the real vLLM: what it does not leave served."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import httpx
import pytest

from tests.engine.test_launch_llm import adapter, commands_running, launch, leftovers
from tests.support.lora_adapters import copy_adapter
from tests.support.vllm_server import READY_SECONDS, free_port, require_vllm

__all__ = ["adapter", "leftovers"]  # fixtures of the tests below


def test_an_adapter_that_does_nothing_is_not_left_served(
    adapter: Path, tiny_base: Path, tmp_path: Path, leftovers: list[int]
) -> None:
    """Its weights were zeroed after training; the manifest of this one does not tell."""
    from safetensors.torch import load_file, save_file

    require_vllm()
    zeroed = copy_adapter(adapter, tmp_path / "zeroed")
    weights = load_file(zeroed / "adapter_model.safetensors")
    save_file({k: w * 0 if "lora_B" in k else w for k, w in weights.items()}, zeroed / "adapter_model.safetensors")
    port = free_port()
    run = launch(port, "cpu", tiny_base, zeroed, LAUNCH_TIMEOUT_SECONDS=str(READY_SECONDS))
    print(run.stdout, run.stderr)
    assert run.returncode == 1
    assert "WARNING: proof: no effect" in run.stderr
    assert "the server was stopped" in run.stderr
    assert not (tmp_path / "logs" / f"launch_llm_{port}.pid").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)


def test_a_server_that_is_not_ready_in_time_is_stopped(tiny_base: Path, tmp_path: Path) -> None:
    require_vllm()
    port = free_port()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"launch_llm_{port}.pid").write_text(f"{os.getpid()}\n")  # of before a power cut
    run = launch(port, "cpu", tiny_base, LAUNCH_TIMEOUT_SECONDS="1")
    assert run.returncode == 75
    assert f"launch_llm_{port}.pid was left behind by a server that has ended; this one takes its place" in run.stderr
    assert "did not answer within 1 s" in run.stderr
    assert not (tmp_path / "logs" / f"launch_llm_{port}.pid").exists()
    assert not any(str(port) in shlex.join(command) for command in commands_running())
