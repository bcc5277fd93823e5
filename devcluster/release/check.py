"""`python -m devcluster.release check`: all that can be known of a release before its images are built."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from devcluster.release import licences, version
from devcluster.release.helm import helm
from devcluster.release.locks import OF_IMAGE, Locked, read_locks
from devcluster.release.packages import build_reproducibly, charts, sha256
from devcluster.release.running import commit_time, run
from devcluster.release.sbom import Contents, Installed, build_sbom

SUMS = "SHA256SUMS"


def check(root: Path, out: Path, *, tag: str | None = None) -> int:
    """Build everything that needs no image into `out`, print what was found; 1 if something must be put right.

    Raises ReleaseError where nothing can be built.
    """
    found = version.problems(root, tag=tag)
    run(helm(), "lint", "--strict", *charts(root))
    built = build_reproducibly(root, out)
    locks = {image: read_locks(root, image) for image in OF_IMAGE}
    policy = licences.Policy.read()
    packages = sorted({package for locked in locks.values() for package in locked}, key=lambda package: package.name)
    known = licences.licences_of_locked(packages, policy)
    found += licences.problems(packages, known, policy)
    (out / "LICENCES.md").write_text(licences.table(packages, known), encoding="utf-8")
    for image, locked in locks.items():
        path = out / f"{image}-{version.read_version(root)}.requirements.cdx.json"
        path.write_text(_sbom_of_lock(root, image, locked, known), encoding="utf-8")
        built.append(path)
    _write_sums(out, [*built, out / "LICENCES.md"])
    for path in built:
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    print(f"{len(packages)} Python packages in the images, {len(set(known.values()))} licences")
    for problem in found:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if found else 0


def _sbom_of_lock(root: Path, image: str, locked: Sequence[Locked], known: dict[str, str | None]) -> str:
    contents = Contents([Installed(each.name, each.version, known[each.name]) for each in locked])
    name = f"llm-tuning/{image} (Python packages)"
    return build_sbom(name, version.read_version(root), contents, locked, epoch=commit_time(root))


def _write_sums(out: Path, paths: Sequence[Path]) -> None:
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(paths)]
    (out / SUMS).write_text("".join(lines), encoding="utf-8")
