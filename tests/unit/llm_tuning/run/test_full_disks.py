"""Whose disk is full, and what follows from it."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from llm_tuning.errors import InputError, TryAgain
from llm_tuning.run import work
from llm_tuning.run.work import disk_errors_as_input_errors

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
    monkeypatch.setattr(work.shutil, "disk_usage", lambda path: Usage(1 << 30, 0, 0 if Path(path) in full else 1 << 30))
    with disk_errors_as_input_errors(folders["models"], "node 1 (faq-train-1)"):
        raise error


def test_a_full_claim_is_bad_input(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no space is left on the disk"):
        fail_on(set(folders.values()), folders, monkeypatch, ERROR)


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
    with pytest.raises(InputError):  # a quota: the file system itself has room
        fail_on(set(), folders, monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(TryAgain, match="other"):
        fail_on({folders["tmp"]}, folders, monkeypatch, TryAgain("NodeLost", "other"))
