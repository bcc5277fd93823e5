"""Which licence each Python package in the images has, and whether somebody has agreed to it.

`licences.yaml` is the agreement: licences that are accepted by their name, and single packages that were looked at. A
package whose metadata name no licence, or one that is not accepted, stops the release until it is in that list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import yaml

from release.locks import Locked

POLICY = Path(__file__).with_name("licences.yaml")


@dataclass(frozen=True)
class Policy:
    """The licences that are accepted (SPDX identifiers), other spellings of them, and the packages looked at."""

    accepted: frozenset[str]
    spellings: Mapping[str, str]
    reviewed: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, path: Path = POLICY) -> Policy:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(frozenset(content["accepted"]), content["spellings"], content["reviewed"])

    def accepts(self, expression: str) -> bool:
        """Whether an SPDX expression is satisfied by accepted licences; one with parentheses never is: review it."""
        return any(
            all(licence.strip() in self.accepted for licence in choice.split(" AND "))
            for choice in expression.split(" OR ")
        )


@dataclass(frozen=True)
class Declared:
    """What the metadata of a package say of its licence, newest form first."""

    expression: str | None = None
    text: str | None = None
    classifiers: tuple[str, ...] = ()

    @classmethod
    def of_installed(cls, name: str) -> Declared | None:
        """The metadata of an installed distribution; None if it is not installed."""
        try:
            metadata = distribution(name).metadata
        except PackageNotFoundError:
            return None
        expression, text = (
            next(iter(metadata.get_all(field) or []), None) for field in ("License-Expression", "License")
        )
        return cls.of_metadata(expression, text, metadata.get_all("Classifier") or [])

    @classmethod
    def of_metadata(cls, expression: str | None, text: str | None, classifiers: Sequence[str]) -> Declared:
        """The three fields as they are in a package's METADATA."""
        names = [line.rsplit(" :: ", 1)[-1] for line in classifiers if line.startswith("License :: ")]
        return cls(expression, text, tuple(names))


def licence_of(name: str, declared: Declared | None, policy: Policy) -> str | None:
    """The SPDX expression of a package; None if it is not known. A reviewed package has what the reviewer found."""
    if name in policy.reviewed:
        return policy.reviewed[name]["licence"]
    if declared is None:
        return None
    if declared.expression:
        return declared.expression
    for word in (declared.text or "", *declared.classifiers):
        if policy.accepts(spelled := policy.spellings.get(word, word)):
            return spelled
    return None


def problems(packages: Sequence[Locked], licences: Mapping[str, str | None], policy: Policy) -> list[str]:
    """A line for each package that nobody has agreed to, and for each entry of the review that is not needed."""
    found = []
    for package in packages:
        licence = licences[package.name]
        if package.name in policy.reviewed:
            continue
        if licence is None:
            found.append(f"{package.name} {package.version}: its licence is not known; {_what_to_do(package.name)}")
        elif not policy.accepts(licence):
            found.append(f"{package.name} {package.version}: {licence} is not accepted; {_what_to_do(package.name)}")
    stale = sorted(set(policy.reviewed) - {package.name for package in packages})
    return found + [f"{POLICY.name}: reviewed.{name} is in no image; remove it" for name in stale]


def licences_of_locked(packages: Sequence[Locked], policy: Policy) -> dict[str, str | None]:
    """The licence of each package by what is installed here, which has the locked versions."""
    return {package.name: licence_of(package.name, Declared.of_installed(package.name), policy) for package in packages}


def table(packages: Sequence[Locked], licences: Mapping[str, str | None]) -> str:
    """The list as Markdown."""
    rows = [f"| {package.name} | {package.version} | {licences[package.name] or 'unknown'} |" for package in packages]
    return "\n".join(["| Package | Version | Licence |", "| --- | --- | --- |", *rows]) + "\n"


def _what_to_do(name: str) -> str:
    return f"read it and add reviewed.{name} to {POLICY.name}, or do without the package"
