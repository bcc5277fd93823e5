"""kube-router's firewall on a devcluster: what enforces NetworkPolicies there.

It writes all of iptables' filter table back as it read it a moment before, and so would undo what kube-proxy writes in
between. Each has a table of its own: kube-proxy that of iptables' nft backend, which is the machine's `iptables`, and
kube-router that of the legacy one. A packet has to pass both.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from devcluster.build import BuildError, go_build, locked
from devcluster.paths import SOURCE, clusters_dir

MODULE = SOURCE / "kube_router"
PACKAGE = "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
LEGACY = ("iptables", "iptables-save", "iptables-restore")


def build_kube_router() -> Path:
    """The folder of the program and the iptables it is to find first, made once for each version. Raises BuildError."""
    digest = hashlib.sha256((MODULE / "go.sum").read_bytes()).hexdigest()[:16]
    folder = clusters_dir() / "bin" / f"kube-router-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (folder / "kube-router").exists():
            go_build(MODULE, [PACKAGE], folder / "kube-router")
        legacy = shutil.which("xtables-legacy-multi")
        if legacy is None:
            raise BuildError(
                "missing: xtables-legacy-multi of the package iptables, which kube-router's rules go through"
            )
        for name in LEGACY:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(legacy)
    return folder
