"""The version is in llm_tuning/_version.py; whatever else names it is held to that.

A chart, a Dockerfile and a page cannot read Python, so they repeat the version. `PLACES` knows where, `problems` tells
what differs, and `set_version` changes all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devcluster.release.running import ReleaseError

SOURCE = "llm_tuning/_version.py"
CHANGELOG = "CHANGELOG.md"
FORM = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
"""What is a version to Python's packages, to Helm and as an image's tag alike; release candidates are not."""


@dataclass(frozen=True)
class Place:
    """Where the version is repeated: files, and a pattern whose first group it is. `required`: once in each or more."""

    files: str
    pattern: str
    required: bool = True


LABEL = r'org\.opencontainers\.image\.version="([^"]*)"'
IMAGE = r"llm-tuning/(?:operator|trainer):(\d[\w.+-]*)"
PACKAGED_CHART = r"\bllm-tuning(?:-api)?-(\d[\w.+-]*)\.tgz"
PLACES = (
    Place(SOURCE, r'^__version__ = "(.*)"$'),
    Place("charts/*/Chart.yaml", r"^version: (\S+)$"),
    Place("charts/*/Chart.yaml", r'^appVersion: "?([^"\s]+)"?$'),
    Place("Dockerfile", LABEL),
    Place("trainer_image/Dockerfile", LABEL),
    *(
        Place(files, pattern, required=False)
        for files in ("README*.md", "docs/**/*.md", "charts/*/*.md", "charts/*/values.yaml")
        for pattern in (IMAGE, PACKAGED_CHART)
    ),
)


def read_version(root: Path) -> str:
    """The version of the source tree at `root`. Raises ReleaseError."""
    found = re.search(PLACES[0].pattern, (root / SOURCE).read_text(encoding="utf-8"), re.MULTILINE)
    if found is None or not FORM.fullmatch(found[1]):
        raise ReleaseError(f'{SOURCE} must have a line like __version__ = "0.1.0", of three numbers')
    return found[1]


def problems(root: Path, *, tag: str | None = None) -> list[str]:
    """What does not name the version, by file and line; with a `tag`, also why it cannot be released as that."""
    version = read_version(root)
    found = []
    for place in PLACES:
        for path in sorted(root.glob(place.files)):
            mentions = list(_mentions(path.read_text(encoding="utf-8"), place))
            name = path.relative_to(root)
            if place.required and not mentions:
                found.append(f"{name}: names no version; expected {version} where {place.pattern} matches")
            found += [f"{name}:{line}: {text}, must be {version}" for line, text in mentions if text != version]
    if tag is not None and tag != f"v{version}":
        found.append(f"the tag is {tag}, must be v{version} as in {SOURCE}")
    if tag is not None and not _has_section(root, version):
        found.append(f"{CHANGELOG}: no section `## [{version}] - YYYY-MM-DD`; give [Unreleased] that name")
    return found


def set_version(root: Path, version: str) -> list[Path]:
    """Write another version into every place; returns the files that changed. Raises ReleaseError."""
    if not FORM.fullmatch(version):
        raise ReleaseError(f"a version is three numbers like 0.2.0, got {version!r}")
    changed = []
    for place in PLACES:
        for path in sorted(root.glob(place.files)):
            before = path.read_text(encoding="utf-8")
            after = re.sub(place.pattern, lambda found: _with_group(found, version), before, flags=re.MULTILINE)
            if after != before:
                path.write_text(after, encoding="utf-8")
                changed.append(path)
    return sorted(set(changed))


def _mentions(text: str, place: Place) -> Iterator[tuple[int, str]]:
    for found in re.finditer(place.pattern, text, re.MULTILINE):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def _with_group(found: re.Match[str], value: str) -> str:
    start, end = found.start(1) - found.start(), found.end(1) - found.start()
    return found[0][:start] + value + found[0][end:]


def _has_section(root: Path, version: str) -> bool:
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    return re.search(heading, (root / CHANGELOG).read_text(encoding="utf-8"), re.MULTILINE) is not None
