"""Where a devcluster keeps things: everything in the user's cache folder, nothing in the system's."""

from __future__ import annotations

import os
import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parent


def cache_dir() -> Path:
    """The cache of this project; `XDG_CACHE_HOME` is honoured."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llm-tuning"


def clusters_dir() -> Path:
    return cache_dir() / "devcluster"


def state_dir(name: str) -> Path:
    """The folder of one cluster. Raises ValueError for a name that is no DNS label of at most 20 characters."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", name):
        raise ValueError(f"cluster name must be at most 20 of a-z 0-9 and -, got {name!r}")
    return clusters_dir() / "clusters" / name


def kubeconfig(name: str) -> Path:
    """The cluster-admin's kubeconfig."""
    return state_dir(name) / "kubeconfig"
