"""Checkpoints are whole or not there, whenever the process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_tuning.run.checkpoints import latest_checkpoint, save_checkpoint


def write_state(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "optimizer").write_bytes(b"o" * 1000)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_is_found_again_under_its_step(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "checkpoints", 12, write_state)
    assert latest_checkpoint(tmp_path / "checkpoints") == (12, saved)
    assert names(saved) == ["optimizer", "weights"]


def test_nothing_saved_means_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "never") is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file is no checkpoint")
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_is_the_one_with_most_steps_not_the_last_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, write_state, keep=3)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest[0] == 100


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, write_state, keep=2)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5"]


def test_a_failed_save_leaves_the_earlier_checkpoint_and_no_rest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, write_state)

    def fails_half_way(folder: Path) -> None:
        (folder / "weights").write_bytes(b"w")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, fails_half_way)
    assert names(tmp_path) == ["checkpoint-1"]


def test_everything_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []

    def keep(path: Path) -> None:
        flushed.append((path.name, (tmp_path / "checkpoint-1").exists()))

    monkeypatch.setattr("llm_tuning.run.checkpoints.flush", keep)
    save_checkpoint(tmp_path, 1, write_state)
    before = {name for name, named in flushed if not named}
    assert before == {"weights", "optimizer", ".saving-1"}
    assert flushed[-1] == (tmp_path.name, True), "then the folder, which holds the name"


def test_saving_a_step_again_keeps_the_whole_one_that_is_there(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, write_state)
    save_checkpoint(tmp_path, 3, lambda folder: (folder / "other").touch() or None)
    assert names(tmp_path / "checkpoint-3") == ["optimizer", "weights"]


KILLED_IN_SAVE = """
import os, signal, sys
from pathlib import Path
from llm_tuning.run.checkpoints import save_checkpoint

def write(folder):
    (folder / "weights").write_bytes(b"w" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)

save_checkpoint(Path(sys.argv[1]), 2, write)
"""


def test_a_save_killed_half_way_is_never_taken_for_whole_and_goes_with_the_next(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 1, write_state)
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_SAVE, str(tmp_path)], check=False, cwd=os.environ["PWD"])
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".saving-2", "checkpoint-1"], "the kill came too early or too late for this test"
    assert latest_checkpoint(tmp_path) == (1, first)
    save_checkpoint(tmp_path, 2, write_state)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_removal_killed_half_way_is_never_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, write_state)
    monkeypatch.setattr("shutil.rmtree", lambda *_args, **_options: None)  # as if killed before anything was removed
    save_checkpoint(tmp_path, 2, write_state, keep=1)
    monkeypatch.undo()
    assert names(tmp_path) == [".removed-checkpoint-1", "checkpoint-2"]
    save_checkpoint(tmp_path, 3, write_state, keep=2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
