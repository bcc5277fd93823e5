"""A small project of the same shape as ours, in a git repository of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from devcluster.release.running import run

FILES = {
    "llm_tuning/__init__.py": "",
    "llm_tuning/_version.py": '__version__ = "0.1.0"\n',
    "llm_tuning/config/start.sh": "echo\n",
    "pyproject.toml": """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "llm-tuning"
version = "0.1.0"
[tool.setuptools]
packages = ["llm_tuning"]
[tool.setuptools.package-data]
llm_tuning = ["config/*.sh"]
""",
    "charts/llm-tuning/Chart.yaml": 'apiVersion: v2\nname: llm-tuning\nversion: 0.1.0\nappVersion: "0.1.0"\n',
    "charts/llm-tuning/values.yaml": "{}\n",
    "charts/llm-tuning/templates/note.yaml": "kind: Note\n",
    "Dockerfile": 'LABEL org.opencontainers.image.version="0.1.0"\n',
    "trainer_image/Dockerfile": 'LABEL org.opencontainers.image.version="0.1.0"\n',
    "docs/operator.md": "docker build -t registry.example/llm-tuning/operator:0.1.0 .\n",
    "CHANGELOG.md": "## [Unreleased]\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project, committed."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    run("git", "init", "--quiet", root)
    commit(root)
    return root


def commit(root: Path) -> None:
    """Commit whatever is in the project's folder."""
    run("git", "-C", root, "add", "--all")
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
    run("git", "-C", root, *who, "commit", "--quiet", "--message", "as it is")
