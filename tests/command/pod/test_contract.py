"""What importing the pods' contract brings along."""

from __future__ import annotations

import subprocess
import sys


def test_the_contract_is_light() -> None:
    code = (
        "import sys, llm_tuning.pod.contract;"
        "print([m for m in ('torch', 'numpy', 'kopf', 'tokenizers', 'pyarrow', 'jinja2', 'httpx') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
