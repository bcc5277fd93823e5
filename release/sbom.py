"""A bill of materials (SBOM) in CycloneDX: what an image consists of, for scanners and for those who ask.

Python packages come with the SHA-256 of every archive that the requirement file lets in: one of these was installed,
another would have been refused. They stand at an external reference: a component's own hashes are all of one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from release.licences import Declared, Policy, licence_of
from release.locks import Locked, normal_name
from release.running import ReleaseError


@dataclass(frozen=True)
class Installed:
    """A Python package that is there, with the SPDX expression of its licence where that is known."""

    name: str
    version: str
    licence: str | None


@dataclass(frozen=True)
class Contents:
    """What is in an image; of a lock file its packages alone. A name may be there twice: the base has its own."""

    packages: Sequence[Installed]
    python: str | None = None
    distribution: str | None = None
    debian: Sequence[Mapping[str, str]] = ()

    @classmethod
    def of_output(cls, output: str, policy: Policy) -> Contents:
        """Read what contents.py printed."""
        found = json.loads(output)
        packages = []
        for each in found["packages"]:
            declared = Declared.of_metadata(each["expression"], each["text"], each["classifiers"])
            name = normal_name(each["name"])
            packages.append(Installed(name, each["version"], licence_of(name, declared, policy)))
        distribution = f"{found['release']['id']}-{found['release']['version']}"
        return cls(packages, found["python"], distribution, found["debian"])

    def missing(self, locked: Iterable[Locked]) -> list[str]:
        """The packages of requirement files that are not there in their version."""
        there = {(package.name, package.version) for package in self.packages}
        return [f"{each.name} {each.version}" for each in locked if (each.name, each.version) not in there]


def build_sbom(name: str, version: str, contents: Contents, locked: Iterable[Locked], *, epoch: int) -> str:
    """The document, the same for the same arguments; `epoch` (seconds since 1970) is the time it bears.

    Raises ReleaseError if the official schema refuses it.
    """
    hashes = {(package.name, package.version): package.hashes for package in locked}
    root = Component(type=ComponentType.CONTAINER, name=name, version=version, bom_ref=f"{name}@{version}")
    parts = [_python_package(each, hashes.get((each.name, each.version), ())) for each in contents.packages]
    parts += [_debian_package(each, contents.distribution) for each in contents.debian]
    if contents.python:
        url = PackageURL("generic", name="python", version=contents.python)
        parts.append(_component(url, kind=ComponentType.APPLICATION))
    bom = Bom(components=parts)
    bom.metadata.component = root
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    bom.register_dependency(root, parts)
    bom.serial_number = uuid5(NAMESPACE_URL, f"{name}@{version}#{epoch}")
    text = str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"
    if (error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise ReleaseError(f"the bill of materials of {name} does not fit its schema: {error}")
    return text


def count(text: str) -> dict[str, int]:
    """How many components of each kind of package a document lists."""
    kinds: dict[str, int] = {}
    for component in json.loads(text)["components"]:
        kind = PackageURL.from_string(component["purl"]).type
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def _python_package(package: Installed, hashes: Sequence[str]) -> Component:
    url = PackageURL("pypi", name=package.name, version=package.version)
    component = _component(url, licence=package.licence)
    if hashes:
        reference = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(url.to_string()),
            comment="one of these archives; installed with hashes required",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in hashes],
        )
        component.external_references.add(reference)
    return component


def _debian_package(package: Mapping[str, str], distribution: str | None) -> Component:
    qualifiers = {"arch": package["architecture"], **({"distro": distribution} if distribution else {})}
    return _component(PackageURL("deb", "debian", package["name"], package["version"], qualifiers=qualifiers))


def _component(
    url: PackageURL, *, kind: ComponentType = ComponentType.LIBRARY, licence: str | None = None
) -> Component:
    licences: list[Any] = [LicenseFactory().make_from_string(licence)] if licence else []
    return Component(
        type=kind, name=url.name, version=url.version, purl=url, bom_ref=url.to_string(), licenses=licences
    )
