"""OpenAI's SDK for Node, from the npm registry; kept in the user's cache. It has no dependencies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from devcluster.paths import cache_dir
from tests.support.missing import skip_or_fail

VERSION = "7.55.0"
SHA256 = "0dfe04d620754817721c04511c6425731f1bf132699e4fe9377ca966a14a6971"


def node_sdk() -> Path:
    """Return a folder whose scripts may `require("openai")`; without node the test is skipped."""
    if shutil.which("node") is None or (npm := shutil.which("npm")) is None:
        skip_or_fail("node and npm are not installed: OpenAI's SDK for Node runs on them")
    folder = cache_dir() / "node" / f"openai-{VERSION}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        scratch = Path(made)
        command = [npm, "pack", "--silent", "--ignore-scripts", f"openai@{VERSION}"]
        done = subprocess.run(command, check=False, cwd=scratch, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(f"npm cannot fetch openai@{VERSION}: {done.stderr[-500:]}")
        packed = next(scratch.glob("*.tgz"))
        found = hashlib.sha256(packed.read_bytes()).hexdigest()
        if found != SHA256:
            raise RuntimeError(f"openai@{VERSION} has the hash {found}, not {SHA256}")
        with tarfile.open(packed) as archive:
            archive.extractall(scratch / "files" / "node_modules", filter="data")
        (scratch / "files" / "node_modules" / "package").rename(scratch / "files" / "node_modules" / "openai")
        try:
            (scratch / "files").rename(folder)
        except OSError:  # another process was first
            if not folder.exists():
                raise
    return folder


def run_node(script: str, *arguments: str, base_url: str, key: str, seconds: float = 120) -> dict[str, Any]:
    """Run a script, which finds the address and the key in its environment; returns the object that it prints."""
    environment = os.environ | {
        "NODE_PATH": str(node_sdk() / "node_modules"),
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": key,
    }
    command = ["node", "-e", script, "script", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found
