"""The hash-pinned requirement files: which packages an image has, and which archives may be installed for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from release.running import ReleaseError

OF_IMAGE = {"operator": ("operator.txt",), "trainer": ("torch.txt", "trainer.txt")}
"""The requirement files of each released image; its Dockerfile installs them in this order."""
ENTRY = re.compile(
    r"^([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==(\S+)((?: ?\\?\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)", re.M
)


@dataclass(frozen=True)
class Locked:
    """A package in a requirement file: its name, its version, and the SHA-256 of each archive that is accepted."""

    name: str
    version: str
    hashes: tuple[str, ...]


def parse_lock(text: str, *, where: str) -> list[Locked]:
    """The packages of a requirement file. Raises ReleaseError for one without a hash."""
    found = [
        Locked(normal_name(name), version, tuple(re.findall(r"sha256:([0-9a-f]{64})", hashes)))
        for name, version, hashes in ENTRY.findall(text)
    ]
    named = {normal_name(line) for line in re.findall(r"^([A-Za-z0-9][\w.-]*)", text, re.M)}
    if unpinned := sorted(named - {package.name for package in found}):
        raise ReleaseError(f"{where}: no version or no hash for {', '.join(unpinned)}; `make lock` writes both")
    return found


def read_locks(root: Path, image: str) -> list[Locked]:
    """The Python packages of an image, by name. Raises ReleaseError."""
    found: dict[str, Locked] = {}
    for name in OF_IMAGE[image]:
        path = root / "requirements" / name
        found |= {package.name: package for package in parse_lock(path.read_text(encoding="utf-8"), where=str(name))}
    return sorted(found.values(), key=lambda package: package.name)


def normal_name(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
