"""Build the two images of a release, and list what they weigh and hold.

Docker and podman build on the official base image. buildah builds as the devcluster does, on a base made from Debian's
packages, where no registry can be reached: good for looking at, not for publishing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from devcluster import images as devcluster_images
from devcluster.images.layers import read_image
from devcluster.images.storage import ImageError, buildah, image_id, storage_dir
from release.licences import Policy
from release.locks import read_locks
from release.running import ReleaseError, commit_time, git, run, run_shown
from release.sbom import Contents, build_sbom, count
from release.version import read_version

DOCKERFILES = {"operator": "Dockerfile", "trainer": "trainer_image/Dockerfile"}
CONTENTS = Path(__file__).with_name("contents.py")
ENGINES = ("docker", "podman", "buildah")
LABEL = "org.opencontainers.image"
DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")


class Engine(Protocol):
    """What builds images and runs a program in one."""

    def build(self, name: str, *, root: Path, reference: str, base: str | None, labels: Mapping[str, str]) -> str:
        """Build one of DOCKERFILES; returns the reference under which the engine has it."""
        ...

    def size_bytes(self, reference: str) -> int:
        """The size of its layers, not compressed."""
        ...

    def run_python(self, reference: str, program: str) -> str:
        """The output of a Python program in the image, without a network."""
        ...


@dataclass(frozen=True)
class Docker:
    """docker, and podman, which takes the same commands."""

    command: str

    def build(self, name: str, *, root: Path, reference: str, base: str | None, labels: Mapping[str, str]) -> str:
        options = [f"--label={key}={value}" for key, value in labels.items()]
        if base is not None:
            options.append(f"--build-arg=BASE_IMAGE={base}")
        run_shown(self.command, "build", f"--file={root / DOCKERFILES[name]}", f"--tag={reference}", *options, root)
        return reference

    def size_bytes(self, reference: str) -> int:
        return int(run(self.command, "image", "inspect", "--format={{.Size}}", reference))

    def run_python(self, reference: str, program: str) -> str:
        return run(self.command, "run", "--rm", "--network=none", "--entrypoint=python", reference, "-I", "-c", program)


class Buildah:
    """buildah with the devcluster's storage: images are named `localhost/llm-tuning/NAME:dev` and built if changed."""

    def build(self, name: str, *, root: Path, reference: str, base: str | None, labels: Mapping[str, str]) -> str:
        del reference, labels
        if base is not None:
            raise ReleaseError("--base needs docker or podman: with buildah the base is made from Debian's packages")
        return devcluster_images.build(name, root=root)

    def size_bytes(self, reference: str) -> int:
        image = image_id(reference)
        if image is None:
            raise ReleaseError(f"there is no image {reference}")
        stored = read_image(storage_dir() / "storage", image)
        return sum(layer.size for layer in stored.layers)

    def run_python(self, reference: str, program: str) -> str:
        container = buildah("from", "--pull-never", reference).strip()
        try:
            return buildah("run", "--isolation", "chroot", container, "--", "python", "-I", "-c", program)
        finally:
            buildah("rm", container)


def find_engine(name: str | None = None) -> Engine:
    """The engine of a name, or the first of ENGINES that works here. Raises ReleaseError."""
    for each in ENGINES if name is None else (name,):
        if each == "buildah" and shutil.which(each):
            return Buildah()
        if each != "buildah" and shutil.which(each) and _answers(each):
            return Docker(each)
    what = f"{name} does not work" if name else f"none of {', '.join(ENGINES)} works"
    raise ReleaseError(f"{what} here; install one of them, and start docker's daemon")


def build_images(root: Path, out: Path, engine: Engine, *, prefix: str, base: str | None, source: str | None) -> str:
    """Build all images of a release and write their bills of materials into `out`; returns the table of their sizes.

    Raises ReleaseError, also if an image lacks a package of its requirement files.
    """
    if base is not None and not DIGEST.fullmatch(base):
        raise ReleaseError(f"--base must end with a digest (NAME@sha256:...), got {base!r}")
    version, epoch = read_version(root), commit_time(root)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        for name in DOCKERFILES:
            labels = build_labels(root, base=base, source=source)
            built = engine.build(name, root=root, reference=f"{prefix}/{name}:{version}", base=base, labels=labels)
            contents = Contents.of_output(engine.run_python(built, CONTENTS.read_text(encoding="utf-8")), Policy.read())
            locked = read_locks(root, name)
            if missing := contents.missing(locked):
                raise ReleaseError(f"{built} lacks packages of requirements/: {', '.join(missing)}")
            text = build_sbom(f"llm-tuning/{name}", version, contents, locked, epoch=epoch)
            (out / f"{name}-{version}.cdx.json").write_text(text, encoding="utf-8")
            kinds = count(text)
            size = engine.size_bytes(built) / 1e6
            rows.append(f"| {built} | {size:,.0f} MB | {kinds.get('pypi', 0)} | {kinds.get('deb', 0)} |")
    except ImageError as error:
        raise ReleaseError(str(error)) from error
    return "\n".join(["| Image | Size | Python packages | Debian packages |", "| --- | --- | --- | --- |", *rows])


def build_labels(root: Path, *, base: str | None, source: str | None) -> dict[str, str]:
    """The labels that only a release knows; title, description and version are in the Dockerfiles."""
    created = datetime.fromtimestamp(commit_time(root), UTC)
    labels = {f"{LABEL}.revision": git(root, "rev-parse", "HEAD"), f"{LABEL}.created": created.isoformat()}
    if source:
        labels[f"{LABEL}.source"] = source
    if base:
        name, digest = base.split("@")
        labels |= {f"{LABEL}.base.name": name, f"{LABEL}.base.digest": digest}
    return labels


def _answers(command: str) -> bool:
    return subprocess.run([command, "info"], capture_output=True, check=False).returncode == 0
