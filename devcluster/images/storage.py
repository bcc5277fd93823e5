"""buildah with a storage and a configuration of its own, in the user's cache folder.

The system's configuration of containers is left out: it may have another storage driver (vfs copies every layer), and a
registry that short names resolve to.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster.paths import cache_dir


class ImageError(Exception):
    """An image could not be built or handed over; the message says what to do."""


def storage_dir() -> Path:
    return cache_dir() / "buildah"


def buildah(*arguments: str, quiet: bool = True) -> str:
    """Run buildah and return its output; raises ImageError with what it said. Not `quiet`: it talks to the terminal."""
    command = ["buildah", *arguments]
    streams = subprocess.PIPE if quiet else None
    result = subprocess.run(
        command, env=environment(), stdout=subprocess.PIPE if quiet else 2, stderr=streams, text=True, check=False
    )
    if result.returncode:
        said = (result.stderr or "").strip() or "its messages are above"
        raise ImageError(f"buildah {' '.join(arguments[:2])} failed: {said}")
    return result.stdout or ""


def environment() -> dict[str, str]:
    """What buildah needs to find our storage, and only it; the configuration is written if it is not there."""
    folder = storage_dir() / "config"
    large_files = storage_dir() / "tmp"
    large_files.mkdir(parents=True, exist_ok=True)
    storage, run = storage_dir() / "storage", storage_dir() / "run"
    settings = f'driver = "overlay"\ngraphroot = "{storage}"\nrunroot = "{run}"\n'
    _write(folder / "storage.conf", f"[storage]\n{settings}")
    _write(folder / "registries.conf", "unqualified-search-registries = []\n")
    _write(folder / "containers.conf", "")
    return {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "TMPDIR": str(large_files),
    }


def policy() -> tuple[str, str]:
    """The option of the commands that want a signature policy; images here come from nowhere else."""
    path = storage_dir() / "config" / "policy.json"
    _write(path, json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    return "--signature-policy", str(path)


def image_id(reference: str) -> str | None:
    """The id of an image, which is the digest of its configuration; None if there is none."""
    try:
        return buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", reference).strip()
    except ImageError:
        return None


def label(reference: str, name: str) -> str | None:
    """A label of an image; None if there is no such image or label."""
    try:
        config = json.loads(buildah("inspect", "--type", "image", reference))["OCIv1"]["config"]
    except ImageError:
        return None
    return dict(config.get("Labels") or {}).get(name)


@contextmanager
def locked(reference: str) -> Iterator[None]:
    """One process at a time builds, replaces or reads an image; buildah itself takes care of different ones."""
    locks = storage_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / reference.replace("/", "_")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(text)
        scratch.rename(path)
