"""A licence that nobody has agreed to stops a release."""

from __future__ import annotations

import pytest

from devcluster.release.licences import Declared, Policy, licence_of, licences_of_locked, problems
from devcluster.release.locks import OF_IMAGE, Locked, read_locks
from devcluster.release.running import ROOT

POLICY = Policy(
    accepted=frozenset({"MIT", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"}),
    spellings={"MIT License": "MIT"},
    reviewed={"looked-at": {"licence": "LicenseRef-Own", "why": "read"}},
)


def test_every_package_of_the_images_has_a_licence_that_was_agreed_to() -> None:
    packages = list({package.name: package for image in OF_IMAGE for package in read_locks(ROOT, image)}.values())
    policy = Policy.read()
    assert problems(packages, licences_of_locked(packages, policy), policy) == []


def test_every_review_says_why() -> None:
    for name, review in Policy.read().reviewed.items():
        assert set(review) == {"licence", "why"}, name
        assert len(review["why"]) > 20, name


@pytest.mark.parametrize(
    ("expression", "accepted"),
    [
        ("MIT", True),
        ("MIT AND BSD-3-Clause", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only OR MIT AND AGPL-3.0-only", False),
        ("MIT AND Apache-2.0 WITH LLVM-exception", True),
        ("Apache-2.0", False),
        ("MIT AND (BSD-3-Clause OR MIT)", False),  # not understood: to be reviewed
        ("", False),
    ],
)
def test_all_of_one_choice_must_be_accepted(expression: str, accepted: bool) -> None:
    assert POLICY.accepts(expression) is accepted


@pytest.mark.parametrize(
    ("declared", "licence"),
    [
        (Declared("GPL-3.0-only", "MIT", ("MIT License",)), "GPL-3.0-only"),  # the newest form wins
        (Declared(None, "MIT", ()), "MIT"),
        (Declared(None, "the whole text of a licence", ("MIT License",)), "MIT"),
        (Declared(None, None, ("OSI Approved", "MIT License")), "MIT"),
        (Declared(None, "MIT AND BSD-3-Clause", ()), "MIT AND BSD-3-Clause"),
        (Declared(None, "as you like", ("OSI Approved",)), None),
        (Declared(), None),
        (None, None),
    ],
)
def test_the_licence_is_what_the_metadata_say(declared: Declared | None, licence: str | None) -> None:
    assert licence_of("some", declared, POLICY) == licence
    assert licence_of("looked-at", declared, POLICY) == "LicenseRef-Own"


def test_the_licence_of_an_installed_package_is_found() -> None:
    assert Declared.of_installed("pytest") is not None
    assert licence_of("pytest", Declared.of_installed("pytest"), POLICY) == "MIT"
    assert Declared.of_installed("no-such-package") is None


def test_unknown_and_refused_licences_and_idle_reviews_are_problems() -> None:
    packages = [Locked("good", "1", ()), Locked("dark", "2", ()), Locked("gnu", "3", ())]
    found = problems(packages, {"good": "MIT", "dark": None, "gnu": "GPL-3.0-only"}, POLICY)
    assert [problem.split(";")[0] for problem in found] == [
        "dark 2: its licence is not known",
        "gnu 3: GPL-3.0-only is not accepted",
        "licences.yaml: reviewed.looked-at is in no image",
    ]
