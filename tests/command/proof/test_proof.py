"""What importing the proof brings along."""

from __future__ import annotations

import subprocess
import sys


def test_the_proof_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; import llm_tuning.proof, llm_tuning.proof.prove, llm_tuning.serving.launch; "
        "print(sorted({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
