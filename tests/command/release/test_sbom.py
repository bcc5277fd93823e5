"""The bill of materials names every package, with what lets a reader find exactly that one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

from devcluster.release.images import CONTENTS
from devcluster.release.licences import Policy
from devcluster.release.locks import Locked
from devcluster.release.sbom import Contents, Installed, build_sbom, count
from tests.support.missing import skip_or_fail

HASHES = ("1" * 64, "2" * 64)
CONTENT = Contents(
    packages=[Installed("some", "1.0", "MIT"), Installed("some", "0.9", None), Installed("two", "2", "MIT AND ISC")],
    python="3.11.9",
    distribution="debian-12",
    debian=[{"name": "libc6", "version": "2.36-9+deb12u10", "architecture": "amd64"}],
)
LOCKED = [Locked("some", "1.0", HASHES), Locked("two", "2", HASHES[:1])]


def components(text: str) -> dict[str, dict[str, Any]]:
    return {component["purl"]: component for component in json.loads(text)["components"]}


def test_packages_of_python_and_debian_are_named_by_purl() -> None:
    text = build_sbom("llm-tuning/operator", "0.1.0", CONTENT, LOCKED, epoch=1_700_000_000)
    found = components(text)
    assert sorted(found) == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
        "pkg:generic/python@3.11.9",
        "pkg:pypi/some@0.9",
        "pkg:pypi/some@1.0",
        "pkg:pypi/two@2",
    ]
    assert count(text) == {"deb": 1, "generic": 1, "pypi": 3}
    about = json.loads(text)["metadata"]
    assert (about["component"]["name"], about["component"]["version"]) == ("llm-tuning/operator", "0.1.0")
    assert about["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_a_package_has_the_hashes_of_its_own_version_only() -> None:
    found = components(build_sbom("operator", "0.1.0", CONTENT, LOCKED, epoch=0))
    [reference] = found["pkg:pypi/some@1.0"]["externalReferences"]
    assert {each["content"] for each in reference["hashes"]} == set(HASHES)
    assert "externalReferences" not in found["pkg:pypi/some@0.9"]


def test_licences_are_ids_or_expressions() -> None:
    found = components(build_sbom("operator", "0.1.0", CONTENT, LOCKED, epoch=0))
    assert found["pkg:pypi/some@1.0"]["licenses"][0]["license"]["id"] == "MIT"
    assert found["pkg:pypi/two@2"]["licenses"][0]["expression"] == "MIT AND ISC"


def test_it_is_the_same_when_it_is_written_again() -> None:
    one, two = (build_sbom("operator", "0.1.0", CONTENT, LOCKED, epoch=7) for _ in range(2))
    assert one == two
    assert build_sbom("operator", "0.1.1", CONTENT, LOCKED, epoch=7) != one


def test_a_locked_package_that_is_not_there_is_missed() -> None:
    assert CONTENT.missing(LOCKED) == []
    assert CONTENT.missing([Locked("some", "1.1", HASHES), Locked("three", "3", HASHES)]) == ["some 1.1", "three 3"]


def test_the_program_for_the_image_lists_what_is_installed_where_it_runs() -> None:
    if shutil.which("dpkg-query") is None:
        skip_or_fail("dpkg-query is missing: not on Debian")
    output = subprocess.check_output([sys.executable, "-I", "-c", CONTENTS.read_text()], text=True)
    contents = Contents.of_output(output, Policy.read())
    assert "pytest" in {package.name for package in contents.packages}
    assert contents.python == ".".join(map(str, sys.version_info[:3]))
    assert {"dpkg", "libc6"} <= {package["name"] for package in contents.debian}
