"""Build an image if what it is made of has changed."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from devcluster.images import host
from devcluster.images.base import INPUTS_LABEL, ensure_base
from devcluster.images.storage import ImageError, buildah, image_id, label, locked, policy, storage_dir

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "localhost/llm-tuning"
BUILD_OPTIONS = ("--layers", "--pull-never", "--isolation", "chroot", "--network", "host", "--identity-label=false")
"""chroot: the other isolations of buildah fail on hybrid cgroups, which many machines in the cloud have."""


@dataclass(frozen=True)
class Recipe:
    """An image of the project: its Dockerfile, and which of our images it is built on (none: the base image).

    The Dockerfile of an image with a parent takes the parent's reference as `ARG OPERATOR_IMAGE`, and installs nothing.
    """

    dockerfile: str
    parent: str | None = None


RECIPES = {
    "operator": Recipe("Dockerfile"),
    "trainer": Recipe("trainer_image/Dockerfile"),
    "vllm": Recipe("devcluster/images/vllm/Dockerfile"),
    "stand-in": Recipe("tests/support/images/stand_in/Dockerfile", parent="operator"),
}


def build(name: str, *, root: Path = ROOT, tag: str = "dev") -> str:
    """Bring an image (and its parent) up to date with the repository at `root`; returns its reference.

    Raises ImageError.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ImageError(f"no image is called {name}; there are {', '.join(RECIPES)}")
    parent = build(recipe.parent, root=root, tag=tag) if recipe.parent else ensure_base()
    reference = f"{PREFIX}/{name}:{tag}"
    with locked(reference):
        inputs = digest_of_inputs(root, recipe.dockerfile, image_id(parent) or "")
        if label(reference, INPUTS_LABEL) == inputs:
            return reference
        old = image_id(reference)
        start = time.monotonic()
        print(f"building {reference} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=storage_dir(), prefix="settings-") as scratch:
            further = ["--build-arg", f"OPERATOR_IMAGE={parent}"] if recipe.parent else host.options(Path(scratch))
            further += ["--label", f"{INPUTS_LABEL}={inputs}", "--tag", reference, str(root)]
            buildah("build", *BUILD_OPTIONS, *policy(), "--file", str(root / recipe.dockerfile), *further, quiet=False)
        print(f"built {reference} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if old is not None and old != image_id(reference):
            _remove(old)
    return reference


def digest_of_inputs(root: Path, dockerfile: str, parent: str) -> str:
    """A digest of the parent, the Dockerfile and every file that it copies: the same digest, the same image."""
    digest = hashlib.sha256(parent.encode())
    for path in [root / dockerfile, root / ".dockerignore", *copied_files(root, dockerfile)]:
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def copied_files(root: Path, dockerfile: str) -> list[Path]:
    """The files of the repository that the COPY lines name, bytecode left out as .dockerignore does."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", (root / dockerfile).read_text(), re.MULTILINE)
    sources = [root / source for line in lines for source in line.split()[:-1]]
    found = {file for source in sources for file in ([source] if source.is_file() else source.rglob("*"))}
    return sorted(file for file in found if file.is_file() and "__pycache__" not in file.parts)


def _remove(image: str) -> None:
    """An image that its successor replaced, with the layers that only it had. One that others are built on stays."""
    try:
        buildah("rmi", image)
    except ImageError as error:
        print(f"the image before stays: {error}", file=sys.stderr, flush=True)
