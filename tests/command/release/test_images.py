"""How the images of a release are built and described: by a stand-in for docker here, by buildah in the e2e tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devcluster.images.storage import label
from devcluster.release.images import Docker, build_images, build_labels, find_engine
from devcluster.release.locks import OF_IMAGE, read_locks
from devcluster.release.running import ROOT, ReleaseError, git
from devcluster.release.version import read_version

BASE = f"python@sha256:{'a' * 64}"
SCRIPT = """#!/bin/sh
printf '%s\\n' "$*" | head -1 >> {log}
case "$1 $2" in
  "info ") exit {info} ;;
  "build "*) echo building; exit {build} ;;
  "image inspect") echo 123456789 ;;
  "run "*) cat {contents} ;;
  *) exit 3 ;;
esac
"""


class FakeDocker:
    """A program `docker` that writes down how it is called and has images with the packages that it is told."""

    def __init__(self, folder: Path, *, info: int = 0, build: int = 0) -> None:
        self.log, self.contents = folder / "log", folder / "contents.json"
        self.log.touch()
        path = folder / "bin" / "docker"
        path.parent.mkdir()
        path.write_text(SCRIPT.format(log=self.log, contents=self.contents, info=info, build=build))
        path.chmod(0o755)

    def hold(self, packages: dict[str, str]) -> None:
        fields = {"expression": "MIT", "text": None, "classifiers": []}
        content = {
            "python": "3.11.9",
            "release": {"id": "debian", "version": "12"},
            "packages": [{"name": name, "version": version, **fields} for name, version in packages.items()],
            "debian": [{"name": "libc6", "version": "2.36", "architecture": "amd64"}],
        }
        self.contents.write_text(json.dumps(content))

    def calls(self, command: str) -> list[list[str]]:
        return [words for line in self.log.read_text().splitlines() if (words := line.split())[0] == command]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    fake = FakeDocker(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return fake


def everything_locked() -> dict[str, str]:
    return {package.name: package.version for image in OF_IMAGE for package in read_locks(ROOT, image)}


def test_docker_builds_both_on_the_base_that_is_given_with_labels(docker: FakeDocker, tmp_path: Path) -> None:
    docker.hold(everything_locked())
    options = {"prefix": "registry.example/tuning", "base": BASE, "source": "https://code.example/tuning"}
    table = build_images(ROOT, tmp_path / "dist", find_engine(), **options)
    version = read_version(ROOT)
    builds = docker.calls("build")
    assert [words[-1] for words in builds] == [str(ROOT)] * 2
    for words, name, file in zip(
        builds, ("operator", "trainer"), ("Dockerfile", "trainer_image/Dockerfile"), strict=True
    ):
        assert f"--file={ROOT / file}" in words
        assert f"--tag=registry.example/tuning/{name}:{version}" in words
        assert f"--build-arg=BASE_IMAGE={BASE}" in words
        labels = {
            word.removeprefix("--label=org.opencontainers.image.").split("=")[0] for word in words if "label" in word
        }
        assert labels == {"revision", "created", "source", "base.name", "base.digest"}
        assert f"| registry.example/tuning/{name}:{version} | 123 MB |" in table
        bom = json.loads((tmp_path / "dist" / f"{name}-{version}.cdx.json").read_text())
        assert bom["metadata"]["component"]["name"] == f"llm-tuning/{name}"
    assert all("--network=none" in words for words in docker.calls("run"))


def test_an_image_that_lacks_a_locked_package_is_no_release(docker: FakeDocker, tmp_path: Path) -> None:
    docker.hold(everything_locked() | {"kopf": "1.0"})
    with pytest.raises(ReleaseError, match=r"operator:\S+ lacks packages of requirements/: kopf 1\.\d+"):
        build_images(ROOT, tmp_path / "dist", Docker("docker"), prefix="x", base=None, source=None)


def test_a_build_that_fails_shows_its_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    FakeDocker(tmp_path, build=1)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(ReleaseError, match="docker build ended with 1"):
        build_images(ROOT, tmp_path / "dist", Docker("docker"), prefix="x", base=None, source=None)
    assert capfd.readouterr() == ("", "building\n")


@pytest.mark.parametrize("base", ["python:3.11-slim-bookworm", "python@sha256:abc"])
def test_a_base_without_digest_is_refused_before_anything_is_built(
    docker: FakeDocker, tmp_path: Path, base: str
) -> None:
    with pytest.raises(ReleaseError, match="must end with a digest"):
        build_images(ROOT, tmp_path / "dist", Docker("docker"), prefix="x", base=base, source=None)
    assert docker.calls("build") == []


def test_labels_name_the_commit() -> None:
    labels = build_labels(ROOT, base=None, source=None)
    assert labels["org.opencontainers.image.revision"] == git(ROOT, "rev-parse", "HEAD")
    assert labels["org.opencontainers.image.created"].endswith("+00:00")
    assert len(labels) == 2


def test_a_docker_without_its_daemon_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDocker(tmp_path, info=1)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/nowhere")
    with pytest.raises(ReleaseError, match="none of docker, podman, buildah works here"):
        find_engine()
    with pytest.raises(ReleaseError, match="docker does not work here"):
        find_engine("docker")


def test_buildah_builds_both_and_lists_what_debian_and_python_brought(tmp_path: Path) -> None:
    table = build_images(ROOT, tmp_path, find_engine("buildah"), prefix="unused", base=None, source=None)
    assert "localhost/llm-tuning/operator:dev" in table
    for name in OF_IMAGE:
        assert label(f"localhost/llm-tuning/{name}:dev", "org.opencontainers.image.version") == read_version(ROOT)
        bom = json.loads((tmp_path / f"{name}-{read_version(ROOT)}.cdx.json").read_text())
        found = {component["purl"].split("@")[0]: component for component in bom["components"]}
        assert {"pkg:deb/debian/libc6", "pkg:generic/python"} < set(found)
        for package in read_locks(ROOT, name):
            assert "externalReferences" in found[f"pkg:pypi/{package.name}"], package.name
