"""The Dockerfiles keep the rules of hadolint and ours; tests/full/devcluster/test_images.py looks at the images."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster.release.images import DOCKERFILES
from devcluster.release.running import ROOT, git
from devcluster.release.version import read_version

HADOLINT = Path(sys.executable).parent / "hadolint"
EVERY = [name for name in git(ROOT, "ls-files").splitlines() if Path(name).name == "Dockerfile"]


def test_all_dockerfiles_are_looked_at() -> None:
    assert set(DOCKERFILES.values()) < set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    done = subprocess.run([HADOLINT, "--no-color", ROOT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_say_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp\n")
    done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3006" in done.stdout


@pytest.mark.parametrize("name", DOCKERFILES.values())
def test_a_released_image_is_labelled_and_has_no_rights(name: str) -> None:
    text = (ROOT / name).read_text()
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', text))
    assert set(labels) == {"title", "description", "licenses", "version"}
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == read_version(ROOT)
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["65532:65532"]


def test_the_trainer_asks_nvidias_runtime_for_computing_and_nvidia_smi_and_for_no_gpus_of_its_own() -> None:
    """Which GPUs a container has is the device plugin's to say; an image that says `all` is shown those of others."""
    text = (ROOT / "trainer_image" / "Dockerfile").read_text()
    assert re.findall(r"(NVIDIA_\w+=\S+)", text) == ["NVIDIA_DRIVER_CAPABILITIES=compute,utility"]


@pytest.mark.parametrize("name", DOCKERFILES.values())
def test_the_base_can_be_named_by_its_digest(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert lines[:2] == ["ARG BASE_IMAGE=python:3.11-slim-bookworm", "FROM ${BASE_IMAGE}"]
