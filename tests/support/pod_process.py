"""A claim in a folder, and the pod's program run on it as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_IN = REPOSITORY / "tests" / "support" / "images" / "stand_in"


@dataclass
class Ended:
    """A pod's program that has ended: exit code, its result (None: no JSON) and its log."""

    code: int
    text: str
    log: str

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.text))


@dataclass
class Claim:
    """A claim that holds what `fill_volume.py` writes."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    log: str = "termination-log"
    """Beside the claim: of the pod that is started on it."""

    @property
    def message(self) -> Path:
        return self.root.parent / self.log

    @property
    def models(self) -> Path:
        return self.root / "models"

    def start(self, role: str, **given: Any) -> subprocess.Popen[str]:
        """Start `python -m llm_tuning.pod ROLE`; `given` is as for `spec`, and `stand_in`, `model_id`, `gpus`,
        `start_model_id`, `nodes`, `environment`, `before` (what stands before the command)."""
        environment = os.environ | self.environment | given.pop("environment", {})
        before = given.pop("before", [])
        path = [str(STAND_IN)] if given.pop("stand_in", False) else []
        environment["PYTHONPATH"] = os.pathsep.join([*path, str(REPOSITORY), environment.get("PYTHONPATH", "")])
        pod = {"modelId": given.pop("model_id", "m"), "gpus": given.pop("gpus", 0)}
        if start := given.pop("start_model_id", None):
            pod["startModelId"] = start
        if nodes := given.pop("nodes", None):
            pod["nodes"] = nodes
        environment |= {
            "LLM_TUNING_ROOT": str(self.root),
            "TERMINATION_LOG": str(self.message),
        }
        environment.setdefault("LLM_TUNING_POD", json.dumps(pod | {"spec": spec(**given)}))
        self.message.unlink(missing_ok=True)
        return subprocess.Popen(
            [*before, sys.executable, "-m", "llm_tuning.pod", role],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.root.parent,
        )

    def end(self, process: subprocess.Popen[str], *, seconds: float = 120) -> Ended:
        out, log = process.communicate(timeout=seconds)
        return Ended(process.returncode, self.message.read_text() if self.message.exists() else "", out + log)

    def run(self, role: str, **given: Any) -> Ended:
        """Start, and wait for the end."""
        return self.end(self.start(role, **given))

    def stop_when(self, process: subprocess.Popen[str], reached: Callable[[], bool]) -> Ended:
        """SIGTERM as soon as `reached`, then wait for the end."""
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        return self.end(process)


def spec(**groups: Any) -> dict[str, Any]:
    """A TuningJob's spec on the filled claim, with `groups` in the place of its own."""
    return {
        "model": {"path": "base/tiny"},
        "dataset": {"path": "datasets/good.jsonl"},
        "volume": {"claimName": "tuning"},
        **groups,
    }


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filled") / "workspace"
    subprocess.run([sys.executable, str(STAND_IN / "fill_volume.py"), str(root)], check=True)
    return root


@pytest.fixture
def claim(filled: Path, tmp_path: Path) -> Claim:
    """A claim of the test's own."""
    shutil.copytree(filled, tmp_path / "workspace")
    return Claim(tmp_path / "workspace")
