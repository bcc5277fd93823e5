"""Families that vLLM's CPU build can run: trained, served by launch_llm.sh, and proven."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import llm_tuning
from llm_tuning.codes.tune_llm import run_tuning
from tests.support.vllm_server import READY_SECONDS, free_port, require_vllm
from tests.support.zoo import make_base
from tests.support.zoo_results import record_served
from tests.support.zoo_trial import write_rows

PACKAGE = Path(llm_tuning.__file__).parent
KINDS = ["qwen3", "llama3_2", "mistral", "gemma3", "phi3", "granite", "olmo2", "qwen3_5", "gemma3_mm"]
"""Tied and not, bf16 and fp32, windows, fused layers, scales, transformers' code in vLLM, states, a tower."""
TRAINING: dict[str, Any] = {
    "batch_size": 8,
    "epochs": 3,
    "learning_rate": 1e-2,
    "lora_dropout": 0.0,
    "devices": "cpu",
    "tracking_uri": None,
}


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_is_served_and_proven(name: str, tmp_path: Path) -> None:
    require_vllm()
    base = make_base(name, tmp_path / name)
    rows = write_rows(tmp_path / "rows.jsonl")
    model = run_tuning(str(base), rows, output_dir=str(tmp_path / "models"), eval_fraction=0.25, **TRAINING)
    port = free_port()
    command = ["bash", "config/llm/launch_llm.sh", str(port), "cpu", str(base), str(tmp_path / "models" / model)]
    env = dict(os.environ) | {"LAUNCH_LOG_DIR": str(tmp_path), "LAUNCH_TIMEOUT_SECONDS": str(READY_SECONDS)}
    try:
        run = subprocess.run(command, cwd=PACKAGE, env=env, capture_output=True, text=True, check=False)
    finally:
        _stop(tmp_path / f"launch_llm_{port}.pid")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "proof: effective" in run.stdout
    record_served(name)


def _stop(pid_file: Path) -> None:
    """End the server's process group, where one is running."""
    if pid_file.exists():
        try:
            os.killpg(int(pid_file.read_text()), signal.SIGTERM)
        except ProcessLookupError:
            return
