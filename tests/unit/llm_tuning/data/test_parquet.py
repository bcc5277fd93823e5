"""Parquet rows are bounded as JSON rows are, whatever a file of a few hundred bytes unfolds to."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_tuning.data.check import check_dataset
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.files.parquet import read_parquet
from llm_tuning.data.files.stored import StoredFile
from llm_tuning.data.reading import DatasetFile
from llm_tuning.errors import InputError
from llm_tuning.modes.sft import SFT

MIB = 1 << 20


def write(path: Path, table: pa.Table, **options: object) -> Path:
    """Compressed well, with values shared however long they are."""
    pq.write_table(table, path, **{"compression": "zstd", "dictionary_pagesize_limit": 1 << 30} | options)
    return path


def test_a_row_above_the_limit_is_refused_with_its_number(tmp_path: Path) -> None:
    texts = ["a", "b" * (17 * MIB), "c", "d" * (15 * MIB)]
    rows = dict(
        read_parquet(StoredFile(write(tmp_path / "rows.parquet", pa.table({"prompt": texts, "output": ["x"] * 4}))))
    )
    assert isinstance(rows[2], RowFault)
    assert (rows[2].reason, rows[2].rule) == (Reason.ROW_TOO_LARGE, "is larger than 16 MiB")
    assert [rows[number]["prompt"][0] for number in (1, 3, 4)] == ["a", "c", "d"]


@pytest.mark.parametrize("kind", ["cells", "nested", "dictionary", "nested dictionary"])
def test_a_row_is_measured_as_a_whole(tmp_path: Path, kind: str) -> None:
    """No cell is above the limit, but their row is."""
    part = "p" * (9 * MIB)
    table = {
        "cells": lambda: pa.table({"prompt": ["a", part], "output": ["b", part]}),
        "nested": lambda: pa.table({"messages": [[{"content": "a"}], [{"content": part}, {"content": part}]]}),
        "dictionary": lambda: pa.table({n: pa.array(["a", part]).dictionary_encode() for n in ("prompt", "output")}),
        "nested dictionary": lambda: pa.table(
            {"m": pa.ListArray.from_arrays([0, 1, 3], pa.array(["a", part, part]).dictionary_encode())}
        ),
    }[kind]()
    rows = dict(read_parquet(StoredFile(write(tmp_path / "rows.parquet", table))))
    assert isinstance(rows[1], dict)
    assert isinstance(rows[2], RowFault)


def test_the_check_refuses_a_large_row_as_it_does_in_json(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "output": "b"}, {"prompt": "c" * (17 * MIB), "output": "d"}, {"prompt": "e", "output": "f"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "rows.parquet", pa.Table.from_pylist(rows))
    said = []
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(InputError) as refused:
            check_dataset(tmp_path / name, form=SFT.rows, tokenizer_dir=None, max_length=128)
        said.append(str(refused.value).replace(name, "rows"))
    assert said[0] == said[1]
    assert "row 2: is larger than 16 MiB (RowTooLarge); split it into several rows" in said[0]


def test_the_memory_limit_goes_with_the_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", pa.table({"text": ["a", "b"]}))
    before = resource.getrlimit(resource.RLIMIT_AS)
    for _ in DatasetFile(path):
        assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_ordinary_rows_are_no_slower_for_it(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"question {i}" * 5 for i in range(50_000)], "output": ["answer"] * 50_000})
    path = write(tmp_path / "rows.parquet", table)
    began = time.process_time()
    assert sum(1 for _ in read_parquet(StoredFile(path))) == 50_000
    assert time.process_time() - began < 5
