"""The registry commands as processes: what they import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import publish_two


@pytest.fixture
def models() -> Path:
    """`models/` in the current directory."""
    folder = Path("models")
    publish_two(folder)
    return folder


def test_no_action_imports_what_only_training_needs(models: Path) -> None:
    code = (
        "import sys; from llm_tuning.codes.tune_llm import main\n"
        "[main(['registry', *a.split()]) for a in ('list', 'show first', 'verify', 'rebuild')]\n"
        "main(['report', 'first'])\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'mlflow', 'datasets', 'numpy', 'pyarrow', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
