"""Processes that fetch, as jobs on one volume do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from pathlib import Path
from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.patience import Limits
from llm_tuning.sources.uri import parse_uri
limits = Limits(backoff_seconds=0.05, stale_seconds=1000)  # who is dead is known by its lock, not by its silence
fetched = fetch(parse_uri(sys.argv[1], "model"), Path(sys.argv[2]), limits=limits)
print(fetched.moved, fetched.path)
"""


def fetcher(endpoint: str, uri: str, root: Path) -> subprocess.Popen[str]:
    """Start a process that fetches `uri` from a hub at `endpoint`; it prints the bytes it moved and the path."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "HF_TOKEN": ""}
    command = [sys.executable, "-c", CODE, uri, str(root)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def moved(process: subprocess.Popen[str]) -> int:
    """Wait for a fetcher that has to succeed and return the bytes that it moved."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return int(out.split()[0])
