"""`validate` as a process: what it imports, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_base import make_tokenizer

ROWS = [{"prompt": f"question {i}", "output": f"answer {i}", "reward": i} for i in range(5)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    make_tokenizer(path)
    return path


def dataset(rows: list[Any]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


CODE = """
import argparse, sys
from llm_tuning.cli import validate
heavy = {"numpy", "pyarrow", "rich", "jinja2", "tokenizers", "torch"} & set(sys.modules)
assert not heavy, f"importing the command imports {heavy}"
parser = argparse.ArgumentParser()
validate.add_arguments(parser)
code = validate.run(parser.parse_args(sys.argv[1:]))
heavy = {"torch", "transformers", "datasets", "peft", "trl", "mlflow", "pyarrow"} & set(sys.modules)
assert not heavy, f"validate imports {heavy}"
sys.exit(code)
"""


@pytest.mark.parametrize(("rows", "code"), [(ROWS, 0), ([*ROWS, {}], 64)], ids=["good", "refused"])
def test_a_check_is_quick_and_imports_nothing_heavy(base: Path, rows: list[Any], code: int) -> None:
    flags = ["--dataset_path", dataset(rows), "--llm_path", base, "--json", "--show_sample"]
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CODE, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert time.monotonic() - start < 10
