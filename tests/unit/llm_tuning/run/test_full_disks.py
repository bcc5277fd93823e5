"""Whose disk is full, and what follows from it."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from llm_tuning.core import room
from llm_tuning.errors import TryAgain
from llm_tuning.pod.contract import PodReason
from llm_tuning.run.work import disk_errors_explained

Usage = namedtuple("Usage", "total used free")
ERROR = RuntimeError("Data could not be written")
"""As libraries say it."""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("models", "tmp")}
    for folder in made.values():
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(made["tmp"]))
    return made


def fail_on(full: set[Path], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Run into `error` while these folders have no room."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(1 << 30, 0, 0 if Path(path) in full else 1 << 30))
    with disk_errors_explained(folders["models"], "node 1 (faq-train-1)"):
        raise error


def test_a_full_claim_is_named_though_the_pods_own_disk_is_full_too(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TryAgain, match=f"^output_dir: no space is left in {folders['models']}; make room") as caught:
        fail_on(set(folders.values()), folders, monkeypatch, ERROR)
    assert caught.value.reason == PodReason.VOLUME_FULL


def test_a_full_disk_of_the_pods_own_is_tried_again_and_named(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TryAgain) as caught:
        fail_on({folders["tmp"]}, folders, monkeypatch, ERROR)
    assert caught.value.reason == "DiskFull"
    said = f"no space is left in {folders['tmp']} of node 1 (faq-train-1): RuntimeError: Data could not be written"
    assert caught.value.message.startswith(said)


def test_what_fails_while_there_is_room_is_left_alone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="Data could not"):
        fail_on(set(), folders, monkeypatch, ERROR)
    for number in (errno.ENOSPC, errno.EDQUOT):  # a quota: the file system itself has room
        said = OSError(number, os.strerror(number))
        hidden = RuntimeError(
            "unexpected pos 704 vs 598"
        )  # as torch.save() says it of a file that could not be written
        hidden.__context__ = said
        kept = ValueError(f"Error while serializing: I/O error: {said.strerror} (os error {number})")  # as safetensors
        for error in (said, hidden, kept):
            with pytest.raises(TryAgain, match="no space is left in"):
                fail_on(set(), folders, monkeypatch, error)
    with pytest.raises(TryAgain, match="other"):
        fail_on({folders["tmp"]}, folders, monkeypatch, TryAgain("NodeLost", "other"))
