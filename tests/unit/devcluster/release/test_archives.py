"""Archives packed at different times, in different orders and by different users become the same."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from devcluster.release.archives import normalise
from devcluster.release.running import ReleaseError


def pack(path: Path, names: list[str], *, time: int, user: str, mode: int = 0o644) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname, member.mode = len(name), time, user, mode
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


def test_time_order_user_and_the_groups_rights_leave_no_trace(tmp_path: Path) -> None:
    one = pack(tmp_path / "one.tar.gz", ["a", "b"], time=1, user="root")
    two = pack(tmp_path / "two.tar.gz", ["b", "a"], time=2, user="me", mode=0o664)
    assert one.read_bytes() != two.read_bytes()
    for path in (one, two):
        normalise(path, epoch=1_700_000_000)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as tar:
        assert [(member.name, member.mtime, member.mode) for member in tar] == [
            ("a", 1_700_000_000, 0o644),
            ("b", 1_700_000_000, 0o644),
        ]
        file = tar.extractfile("b")
        assert file is not None
        assert file.read() == b"b"


def test_what_can_be_run_stays_so(tmp_path: Path) -> None:
    path = pack(tmp_path / "one.tar.gz", ["a"], time=1, user="root", mode=0o700)
    normalise(path, epoch=0)
    with tarfile.open(path) as tar:
        assert tar.getmember("a").mode == 0o755


def test_a_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "one.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ReleaseError, match="a is neither a file nor a folder"):
        normalise(tmp_path / "one.tar.gz", epoch=0)
