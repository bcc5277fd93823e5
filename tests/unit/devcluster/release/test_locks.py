"""What the images are made of is pinned: each package by its hashes, each installation by a requirement file."""

from __future__ import annotations

import re

import pytest

from devcluster.release.images import DOCKERFILES
from devcluster.release.locks import OF_IMAGE, Locked, parse_lock, read_locks
from devcluster.release.running import ROOT, ReleaseError

ONE, TWO = "1" * 64, "2" * 64
LOCK = f"""# made by a program
Some.Thing[extra]==1.0.post1 \\
    --hash=sha256:{ONE} \\
    --hash=sha256:{TWO}
    # via
    #   other
other==2 \\
    --hash=sha256:{ONE}
"""


def test_a_lock_gives_names_versions_and_hashes() -> None:
    assert parse_lock(LOCK, where="x.txt") == [
        Locked("some-thing", "1.0.post1", (ONE, TWO)),
        Locked("other", "2", (ONE,)),
    ]


@pytest.mark.parametrize("line", ["loose>=1", "loose==1", "loose", "loose @ https://files.example/loose.whl"])
def test_a_package_without_version_or_hash_is_refused(line: str) -> None:
    with pytest.raises(ReleaseError, match=r"x.txt: no version or no hash for loose;"):
        parse_lock(f"{LOCK}{line}\n", where="x.txt")


@pytest.mark.parametrize("image", OF_IMAGE)
def test_an_image_installs_its_locks_and_nothing_else(image: str) -> None:
    text = (ROOT / DOCKERFILES[image]).read_text()
    assert tuple(re.findall(r"^RUN sh /opt/requirements/install\.sh (\S+)$", text, re.MULTILINE)) == OF_IMAGE[image]
    assert not re.findall(r"\bpip3? install\b|\buv pip\b|apt-get", text)
    assert len(read_locks(ROOT, image)) > 50


def test_what_installs_requires_hashes() -> None:
    commands = re.findall(r"pip install(?:\\\n|.)+", (ROOT / "requirements/install.sh").read_text())
    assert len(commands) == 2
    assert all("--require-hashes" in command and "--no-deps" in command for command in commands)


def test_the_uv_that_installs_is_pinned() -> None:
    [uv] = parse_lock((ROOT / "requirements/uv.txt").read_text(), where="uv.txt")
    assert uv.name == "uv"
    assert uv.hashes
