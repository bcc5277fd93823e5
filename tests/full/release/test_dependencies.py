"""The client installs beside what people have: the lowest and the newest versions that pyproject.toml allows both work.

Everything else is tested with the versions that are pinned in requirements/.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
UV = ROOT / ".tools/bin/uv"
TESTS = ["tests/unit/llm_tuning/api", "tests/unit/llm_tuning/client"]
"""What uses pydantic and the Kubernetes client the most; neither needs the training libraries."""


@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
def test_the_client_works_with_the_lowest_and_the_newest_versions_allowed(resolution: str, tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    _run(UV, "venv", "--quiet", "--python", "3.11", tmp_path / "venv")
    tools = ["pytest>=8.4", "pytest-asyncio>=1.0", "pytest-timeout>=2.4", "cryptography>=45"]
    _run(UV, "pip", "install", "--quiet", "--python", python, "--resolution", resolution, f"{ROOT}[client]", *tools)
    found = _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, cwd=ROOT)
    assert " failed" not in found.splitlines()[-1]
    assert " passed" in found.splitlines()[-1]


def _run(*command: object, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()
