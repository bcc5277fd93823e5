"""Packages and chart of a small project, built for real. `make release-check` does it with ours."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from devcluster.release.packages import build_reproducibly
from devcluster.release.running import ReleaseError
from tests.support.release_project import commit

CLOCK = """import time
from setuptools import setup
open("llm_tuning/made.py", "w").write(f"{time.time_ns()}")
setup()
"""


def test_wheel_source_and_chart_are_built_the_same_twice(project: Path, tmp_path: Path) -> None:
    built = {path.name: path for path in build_reproducibly(project, tmp_path / "dist")}
    assert list(built) == ["llm_tuning-0.1.0.tar.gz", "llm_tuning-0.1.0-py3-none-any.whl", "llm-tuning-0.1.0.tgz"]
    with zipfile.ZipFile(built["llm_tuning-0.1.0-py3-none-any.whl"]) as wheel:
        assert "llm_tuning/config/start.sh" in wheel.namelist()
    with tarfile.open(built["llm-tuning-0.1.0.tgz"]) as chart:
        assert "llm-tuning/templates/note.yaml" in chart.getnames()
        assert len({member.mtime for member in chart}) == 1


def test_a_build_that_depends_on_the_clock_is_found(project: Path, tmp_path: Path) -> None:
    (project / "setup.py").write_text(CLOCK)
    commit(project)
    with pytest.raises(ReleaseError, match=r"built twice, these differ: llm_tuning-0.1.0.tar.gz"):
        build_reproducibly(project, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_file_that_the_wheel_lacks_is_named(project: Path, tmp_path: Path) -> None:
    (project / "llm_tuning/config/forgotten.yaml").write_text("{}\n")
    commit(project)
    with pytest.raises(ReleaseError, match=r"not in the wheel: llm_tuning/config/forgotten.yaml$"):
        build_reproducibly(project, tmp_path / "dist")


def test_what_is_not_committed_is_not_released(project: Path, tmp_path: Path) -> None:
    (project / "llm_tuning/__init__.py").write_text("changed = True\n")
    with pytest.raises(ReleaseError, match=r"commit these first:\n M llm_tuning/__init__.py"):
        build_reproducibly(project, tmp_path / "dist")
