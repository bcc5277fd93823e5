"""A process that writes metrics and is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from llm_tuning.tracking import read_metrics


def losses(path: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["train/loss"]) for line in read_metrics(path) if "train/loss" in line]


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from llm_tuning.tracking import MetricsFile\n"
        f"m = MetricsFile(Path({str(tmp_path)!r}) / 'metrics.jsonl')\n"
        "for step in range(1, 101): m.log(step, {'train/loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [step for step, _ in losses(tmp_path / "metrics.jsonl")] == list(range(1, 101))
