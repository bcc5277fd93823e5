"""The base image of the Dockerfiles, made from Debian's packages under the name of the official one.

Where there is no registry, `FROM python:3.11-slim-bookworm` has to come from somewhere. debootstrap makes the same
distribution with Debian's Python 3.11 where the official image has one that it compiled itself; what the Dockerfiles
rely on (`python` on the path, its venv, a bundle of certificates) is the same in both.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from devcluster.images.storage import ImageError, buildah, label, locked, policy, storage_dir

BASE = "localhost/python:3.11-slim-bookworm"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv", "libnuma1")
"""libnuma1 is for vLLM's CPU build, whose Dockerfile installs it where it is missing: builds here have no apt."""
INPUTS_LABEL = "dev.llmtuning.inputs"

# What debootstrap takes over from this machine or leaves behind, and what no pod reads.
LEFT_OUT = (
    "dev/*",
    "etc/apt/sources.list",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/machine-id",
    "usr/lib/python3*/EXTERNALLY-MANAGED",
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "var/cache/*/*",
    "var/lib/apt/lists/*",
    "var/log/*",
)


def ensure_base() -> str:
    """The base image's reference; built (about a minute) if it is not there. Raises ImageError."""
    inputs = hashlib.sha256(json.dumps([SUITE, PACKAGES, LEFT_OUT]).encode()).hexdigest()
    with locked(BASE):
        if label(BASE, INPUTS_LABEL) != inputs:
            with tempfile.TemporaryDirectory(dir=storage_dir(), prefix="base-") as folder:
                root = Path(folder) / "root"
                _bootstrap(root)
                _commit(root, inputs)
    return BASE


def _bootstrap(root: Path) -> None:
    if shutil.which("debootstrap") is None:
        raise ImageError("debootstrap is missing; python -m devcluster build installs it")
    print(f"making the base image from Debian {SUITE} ...", file=sys.stderr, flush=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root), *_mirror()]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise ImageError("debootstrap failed:\n" + "\n".join(result.stdout.splitlines()[-5:]))
    for pattern in LEFT_OUT:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3")


def _mirror() -> list[str]:
    """Where this machine gets the same suite from; debootstrap's own choice if it runs another one."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return next(([line.split()[1]] for line in output.splitlines() if line.split()[0] == SUITE), [])


def _commit(root: Path, inputs: str) -> None:
    container = buildah("from", "scratch").strip()
    try:
        buildah("copy", "--quiet", container, str(root), "/")
        buildah("config", "--label", f"{INPUTS_LABEL}={inputs}", "--cmd", "python3", container)
        buildah("commit", "--quiet", *policy(), container, BASE)
    finally:
        buildah("rm", container)
