"""Small Parquet files that unfold to gigabytes are refused in bounded memory and time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import large_files

MIB = 1 << 20
READ = """
import re, sys, time
from pathlib import Path
from llm_tuning.data.files.parquet import read_parquet
from llm_tuning.data.files.stored import StoredFile
import pyarrow.parquet
def peak():  # ru_maxrss would count the parent's memory before the exec
    return int(re.search("VmHWM: +([0-9]+)", Path("/proc/self/status").read_text().replace(chr(9), " "))[1])
before, began, rows = peak(), time.process_time(), 0
try:
    for _ in read_parquet(StoredFile(Path(sys.argv[1]))): rows += 1
except ValueError as error: print(error)
print(peak() - before, time.process_time() - began, rows)
"""


def read(path: Path) -> subprocess.CompletedProcess[str]:
    """Read a file in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(large_files.ROOT)}
    command = [sys.executable, "-c", READ, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def write(path: Path, table: pa.Table) -> Path:
    """Compressed well, with values shared however long they are, and read as plain text."""
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False)
    return path


def same(text: str, count: int) -> pa.DictionaryArray:
    """`count` times one text, in the memory of one."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))


def long_list() -> pa.Table:
    content = same("q" * MIB, 1400)
    message = pa.StructArray.from_arrays([same("user", 1400), content], ["role", "content"])
    return pa.table({"messages": pa.ListArray.from_arrays([0, 700, 1400], message)})


BOMBS: dict[str, tuple[Callable[[], pa.Table], str, int]] = {
    "a later cell": (lambda: pa.table({"text": ["a"] * 300 + ["x" * (600 * MIB)]}), r"row \d+: unfolds to more", 0),
    "many rows": (
        lambda: pa.table({"text": same("y" * 1000, 2_000_000)}),
        r"after row [\d,]+: unfolds to more",
        60_000,
    ),
    "large rows": (
        lambda: pa.table({"text": same("t" * (15 * MIB), 300)}),
        "after row 4: unfolds to more than 64 MiB",
        4,
    ),
    "a long list": (long_list, "row 1: unfolds to more than 512 MiB", 0),
    "rows of nothing": (lambda: pa.table({"text": pa.nulls(20_000_000, pa.string())}), "after row .*: unfolds", 1000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_unfolds_without_end_is_refused(tmp_path: Path, kind: str) -> None:
    make, want, least = BOMBS[kind]
    path = write(tmp_path / "rows.parquet", make())
    assert path.stat().st_size < MIB
    done = read(path)
    said, figures = done.stdout.splitlines()
    kibibytes, seconds, rows = map(float, figures.split())
    assert re.search(want, said), said
    assert kibibytes < 700 * 1024
    assert seconds < 20
    assert rows >= least


def test_a_row_group_is_not_read_whole(tmp_path: Path) -> None:
    """Texts that do not compress: the file is as large as they are."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [os.urandom(1500).hex() for _ in range(40_000)]}), path, use_dictionary=False)
    assert path.stat().st_size > 70 * MIB
    done = read(path)
    kibibytes, _, rows = map(float, done.stdout.split())
    print(f"{kibibytes / 1024:.0f} MiB more")
    assert rows == 40_000
    assert kibibytes < 64 * 1024
