"""Arrow files and streams: what pyarrow, pandas and the `datasets` library write; damaged ones never crash."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_tuning.data.faults import RowFault
from llm_tuning.data.reading import DatasetFile, data_hash
from llm_tuning.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"é {i}"}, {"role": "assistant", "content": "b" * i}], "id": i}
    for i in range(700)
]
TABLE = pa.Table.from_pylist(ROWS)


def write(path: Path, table: pa.Table, form: str, **options: Any) -> Path:
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with new(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=300)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        list(DatasetFile(path))
    return str(error.value)


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_files_and_streams_are_read(tmp_path: Path, form: str, compression: str | None) -> None:
    path = write(tmp_path / "rows", TABLE, form, compression=compression)
    dataset = DatasetFile(path)
    assert list(dataset) == list(enumerate(ROWS, 1))
    assert (dataset.format, dataset.sha256) == ("arrow", data_hash(path))


def test_what_pandas_writes_as_feather_is_read(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_feather(tmp_path / "rows.feather")
    assert [row for _, row in DatasetFile(tmp_path / "rows.feather")] == ROWS


@pytest.mark.parametrize("form", ["stream", "file"])
def test_a_row_above_the_limit_is_refused_with_its_number(tmp_path: Path, form: str) -> None:
    texts = ["a", "b" * (17 << 20), "c"]
    rows = dict(DatasetFile(write(tmp_path / "rows", pa.table({"text": texts}), form)))
    assert isinstance(rows[2], RowFault)
    assert rows[2].rule == "is larger than 16 MiB"
    assert (rows[1], rows[3]) == ({"text": "a"}, {"text": "c"})


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_file_is_read_or_refused_and_never_followed(tmp_path: Path, form: str, seed: int) -> None:
    chance = random.Random(seed)
    path = write(tmp_path / "rows", TABLE, form, compression=chance.choice([None, "zstd"]))
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 30)):
        content[chance.randrange(8, len(content))] = chance.randrange(256)
    path.write_bytes(content[: chance.randint(100, len(content))] if chance.random() < 0.3 else content)
    with suppress(InputError):
        for _ in DatasetFile(path):
            pass


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, kind: str) -> None:
    pair = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["role", "role"])
    tables = {
        "text": pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]),
        "role": pa.table({"messages": pair}),
    }
    for name, table in tables.items():
        path = tmp_path / name
        if kind == "arrow":
            write(path, table, "stream")
        else:
            pq.write_table(table, path)
        assert f"names two columns `{name}`" in refusal(path)


def test_texts_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"b"]).buffers())
    message = refusal(write(tmp_path / "rows", pa.table({"text": bad}), "stream"))
    assert "not UTF-8" in message or "not a whole Arrow file" in message
