"""The registry commands as processes: what they import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import make_light_base, publish_model


@pytest.fixture
def models() -> Path:
    """`models/` in the current directory: an older sft and a newer ppo adapter of one base, and a hand-made entry."""
    folder = Path("models")
    folder.mkdir()
    (folder / "registry.json").write_text('{"models":[{"model_id":"by-hand","model_type":"external"}]}')
    base = make_light_base(Path("base/tiny"))
    publish_model(folder, "first", base=base)
    no_held_out = {"source": "none", "base": None, "tuned": None}
    publish_model(folder, "second", base=base, mode="ppo", created_at="2026-11-25T08:00:00Z", metrics=no_held_out)
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
