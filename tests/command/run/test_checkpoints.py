"""A save of a checkpoint that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from llm_tuning.run.checkpoints import latest_checkpoint, save_checkpoint


def write_state(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "optimizer").write_bytes(b"o" * 1000)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


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
