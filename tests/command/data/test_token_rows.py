"""A write of token rows that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from llm_tuning.data import token_rows
path, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the marker":
    token_rows.write_json = die
writer = token_rows.TokenRowsWriter(path)
for number in range(10_000):
    writer.append(np.arange(1, 9, dtype=np.int32), np.arange(8) > 3, row_number=number, text="x")
    if moment == "in the middle" and number == 5_000:
        die()
writer.close()
"""


@pytest.mark.parametrize("moment", ["in the middle", "before the marker"])
def test_a_killed_write_over_whole_rows_is_not_whole(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, tmp_path / "rows"]
    subprocess.run([*command, "never"], check=True)
    assert TokenRows.is_whole(tmp_path / "rows")
    done = subprocess.run([*command, moment], check=False)  # the same rows: every file ends with its old size
    assert done.returncode == -signal.SIGKILL
    assert not TokenRows.is_whole(tmp_path / "rows")
    with pytest.raises(FileNotFoundError, match="no whole set"):
        TokenRows.open(tmp_path / "rows")
    with TokenRowsWriter(tmp_path / "rows") as writer:
        writer.append(np.array([8, 9], dtype=np.int32), np.array([False, True]), row_number=4, text="x")
    assert len(TokenRows.open(tmp_path / "rows")) == 1
