"""A large data set is checked in memory that does not grow with it, in every form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import large_files

MEGABYTES = 30
PYTHON_MIB = 75
"""Of which about 45 are Python and its libraries: the file as a whole does not fit beside them."""
PYARROW_MIB = 75
"""What its libraries take besides, where they are needed."""
WITH_PYARROW = ("rows.parquet", "rows.arrow", "rows.jsonl.zst")


@pytest.mark.parametrize("form", large_files.FORMS)
def test_a_data_set_of_30_mb_is_checked_in_bounded_memory(tmp_path: Path, form: str) -> None:
    path, rows = large_files.write(tmp_path, form, MEGABYTES)
    found = large_files.check(path)
    print(f"{form}: {MEGABYTES / found['seconds']:.0f} MB/s, peak {found['peak_mib']} MiB")
    assert (found["rows"], found["kept"]) == (rows, rows)
    assert found["peak_mib"] < PYTHON_MIB + PYARROW_MIB * (form in WITH_PYARROW)
