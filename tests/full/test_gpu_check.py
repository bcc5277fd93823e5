"""`make gpu-check DEVICE=cpu`: the rehearsal of what only a GPU can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.checks import CHECKS

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1200)
def test_the_rehearsal_on_a_cpu_runs_every_check_and_fails_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu.check", "--device", "cpu", "--out", str(tmp_path), "--budget", "1100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    failed = [f"{line['check']}: {line['name']}: {line['seen']}" for line in lines if line["result"] == "failed"]
    assert not failed
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {line["check"] for line in lines} == {check.name for check in CHECKS}
    assert sum(line["result"] == "passed" for line in lines) > 80
