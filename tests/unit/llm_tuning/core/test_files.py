"""Writers of one folder who all have the same process id, as in pods that share a volume (every one is number 1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path

import pytest

from llm_tuning.core import files
from llm_tuning.core.files import read_json, write_json
from llm_tuning.models.base import check_writable
from llm_tuning.tracking.outbox import SenderState, read_state, write_state

WRITERS, TIMES = 8, 100


def write_and_read(path: Path) -> None:
    write_json(path, {"text": "x" * 10_000})
    assert read_json(path) == {"text": "x" * 10_000}


def write_and_read_state(work_dir: Path) -> None:
    write_state(work_dir, SenderState(run_id="r" * 10_000))
    assert read_state(work_dir).run_id == "r" * 10_000


@pytest.mark.parametrize(
    "write",
    [check_writable, lambda folder: write_and_read(folder / "value.json"), write_and_read_state],
    ids=["check_writable", "write_json", "write_state"],
)
def test_writers_of_one_process_id_do_not_meet(tmp_path: Path, write: Callable[[Path], None]) -> None:
    def writer(_: int) -> None:
        for _ in range(TIMES):
            write(tmp_path)

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(writer, range(WRITERS)))
    assert [path.name for path in tmp_path.glob(".*")] == [], "no temporary file is left"


def test_a_file_that_a_writer_replaces_by_a_larger_one_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry's index is: the moment between looking at a name and opening it is another file's."""
    path = tmp_path / "registry.json"
    write_json(path, {"models": []})
    really = files.open_regular

    def replaced_before(path: Path) -> BufferedReader:
        write_json(path, {"models": ["a" * 1000]})
        return really(path)

    monkeypatch.setattr(files, "open_regular", replaced_before)
    assert json.loads(files.read_file(path)) == {"models": ["a" * 1000]}
