"""The version is in one place, and what repeats it is held to that."""

from __future__ import annotations

from pathlib import Path

import pytest

from devcluster.release.running import ROOT, ReleaseError
from devcluster.release.version import problems, read_version, set_version


def test_everything_here_names_the_version() -> None:
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("charts/llm-tuning/Chart.yaml", 3),
        ("charts/llm-tuning/Chart.yaml", 4),
        ("Dockerfile", 1),
        ("trainer_image/Dockerfile", 1),
        ("docs/operator.md", 1),
    ],
)
def test_a_place_that_was_forgotten_is_named_with_its_line(project: Path, name: str, line: int) -> None:
    lines = (project / name).read_text().splitlines()
    lines[line - 1] = lines[line - 1].replace("0.1.0", "0.0.9")
    (project / name).write_text("\n".join(lines) + "\n")
    assert problems(project) == [f"{name}:{line}: 0.0.9, must be 0.1.0"]


def test_a_label_that_went_away_is_missed(project: Path) -> None:
    (project / "Dockerfile").write_text("USER 65532\n")
    [problem] = problems(project)
    assert problem.startswith("Dockerfile: names no version; expected 0.1.0")


def test_a_new_version_is_written_everywhere_and_nothing_else_changes(project: Path) -> None:
    page = project / "docs/operator.md"
    page.write_text("Python 0.1.0; llm-tuning/trainer:0.1.0, llm-tuning/trainer:dev, llm-tuning-0.1.0.tgz\n")
    assert len(set_version(project, "0.2.0")) == 5
    assert read_version(project) == "0.2.0"
    assert problems(project) == []
    assert page.read_text() == "Python 0.1.0; llm-tuning/trainer:0.2.0, llm-tuning/trainer:dev, llm-tuning-0.2.0.tgz\n"
    assert set_version(project, "0.2.0") == []


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "0.2.0rc1", "0.2.0-rc.1", "0.02.0", ""])
def test_a_version_that_helm_or_python_would_not_take_is_refused(project: Path, version: str) -> None:
    with pytest.raises(ReleaseError, match="three numbers"):
        set_version(project, version)
    (project / "llm_tuning/_version.py").write_text(f'__version__ = "{version}"\n')
    with pytest.raises(ReleaseError, match="three numbers"):
        read_version(project)


def test_a_tag_needs_its_version_and_a_section_of_the_change_log(project: Path) -> None:
    assert problems(project, tag="v0.1.1") == [
        "the tag is v0.1.1, must be v0.1.0 as in llm_tuning/_version.py",
        "CHANGELOG.md: no section `## [0.1.0] - YYYY-MM-DD`; give [Unreleased] that name",
    ]
    (project / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n")
    assert problems(project, tag="v0.1.0") == []
