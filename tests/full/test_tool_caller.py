"""A base that was taught to call tools, served by `launch_llm.sh`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from llm_tuning.client.answers import read_answer
from tests.engine.test_launch_llm import launch, leftovers
from tests.engine.test_tool_caller import CALL, QUESTION, THOUGHT, TOOLS, bare, called, folder
from tests.support.vllm_server import READY_SECONDS, free_port

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
__all__ = ["folder", "leftovers"]  # fixtures of the test below


async def test_on_one_machine_the_parsers_are_those_of_the_template_too(
    folder: Path, tmp_path: Path, leftovers: list[int]
) -> None:
    port, claim = free_port(), folder / "claim"
    served = (port, "cpu", claim / "base/qwen3", claim / "models/ft_caller")
    run = await asyncio.to_thread(launch, *served, LAUNCH_TIMEOUT_SECONDS=str(READY_SECONDS))
    leftovers.append(int((tmp_path / f"logs/launch_llm_{port}.pid").read_text()))
    assert run.returncode == 0, run.stderr
    assert "proof: effective" in run.stdout
    body = {"model": "lora", "messages": [QUESTION], "tools": TOOLS, "max_tokens": 96, "temperature": 0}
    async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
        response = await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer = bare(read_answer(response.json(), ""))
    assert (answer.reasoning, answer.text, called(answer)) == (THOUGHT, "", [CALL])
