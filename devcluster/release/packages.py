"""The Python packages and the packed charts, built from the last commit, twice, and the same both times.

Twice means: from two checkouts in folders of other names, with files of other times, in another time zone, and with
other hash seeds. The wheel is built from the source distribution, as by somebody who has nothing else.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from devcluster.release.archives import normalise
from devcluster.release.helm import helm
from devcluster.release.running import ReleaseError, commit_time, git, run

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
SURROUNDINGS = ({"TZ": "UTC", "PYTHONHASHSEED": "1"}, {"TZ": "Pacific/Auckland", "PYTHONHASHSEED": "2"})


def build_reproducibly(root: Path, out: Path) -> list[Path]:
    """Build source distribution, wheel and charts of the last commit into `out`; returns the files.

    Raises ReleaseError if something is not committed, if two builds differ, or if the wheel lacks a file.
    """
    if changed := git(root, "status", "--porcelain", "--untracked-files=no"):
        raise ReleaseError(f"a release is built from a commit; commit these first:\n{changed}")
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            _build(root, Path(folder) / str(number), surroundings) for number, surroundings in enumerate(SURROUNDINGS)
        )
        differing = [one.name for one, other in zip(first, second, strict=True) if sha256(one) != sha256(other)]
        if differing:
            raise ReleaseError(f"built twice, these differ: {', '.join(differing)}")
        if missing := missing_in_wheel(root, next(path for path in first if path.suffix == ".whl")):
            raise ReleaseError(f"files of the packages that are not in the wheel: {', '.join(missing)}")
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, out / path.name)) for path in first]


def charts(root: Path) -> list[Path]:
    """The folders of the charts."""
    return sorted(path.parent for path in root.glob("charts/*/Chart.yaml"))


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def missing_in_wheel(root: Path, wheel: Path) -> list[str]:
    """The files of the packages in the last commit that a wheel does not have."""
    tracked = git(root, "ls-tree", "-r", "--name-only", "HEAD", "llm_tuning/", "operator/tuning_operator/").splitlines()
    with zipfile.ZipFile(wheel) as files:
        return sorted({path.removeprefix("operator/") for path in tracked} - set(files.namelist()))


def _build(root: Path, folder: Path, surroundings: dict[str, str]) -> list[Path]:
    """Source distribution, wheel and charts, in this order, whatever their names."""
    epoch = commit_time(root)
    env = {**surroundings, "SOURCE_DATE_EPOCH": str(epoch)}
    tree, out = folder / "tree", folder / "out"
    out.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", root, "archive", "HEAD"], stdout=subprocess.PIPE, check=True).stdout
    _unpack(io.BytesIO(archive), tree)
    for number, path in enumerate(sorted(tree.rglob("*"))):  # as a checkout of another day would have them
        os.utime(path, (epoch + number, epoch + number))
    source = _run_backend("build_sdist", tree, out, env)
    normalise(source, epoch=epoch)
    _unpack(io.BytesIO(source.read_bytes()), folder / "unpacked")
    [unpacked] = (folder / "unpacked").iterdir()
    wheel = _run_backend("build_wheel", unpacked, out, env)
    run(helm(), "package", *charts(tree), "--destination", out, env=env)
    packed = sorted(out.glob("*.tgz"))
    for chart in packed:
        normalise(chart, epoch=epoch)
    return [source, wheel, *packed]


def _run_backend(hook: str, tree: Path, out: Path, env: dict[str, str]) -> Path:
    """Call setuptools as build frontends do (PEP 517), with the pinned setuptools that is installed here."""
    return out / run(sys.executable, "-c", BUILD, hook, out, cwd=tree, env=env).splitlines()[-1]


def _unpack(archive: io.BytesIO, folder: Path) -> None:
    with tarfile.open(fileobj=archive) as tar:
        tar.extractall(folder, filter="data")
