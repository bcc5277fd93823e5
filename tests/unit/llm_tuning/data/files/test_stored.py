"""Compressed files: by content, with several parts, cut off, damaged, and unfolding without end."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_tuning.data.files import stored
from llm_tuning.data.reading import DatasetFile, data_hash
from llm_tuning.errors import InputError

ROWS = [{"prompt": f"question {i} é", "output": "answer" * i} for i in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd}
every = pytest.mark.parametrize("kind", PACKERS)


def as_parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def as_arrow() -> bytes:
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return sink.getvalue().to_pybytes()


CONTENTS = {
    "json": lambda: json.dumps(ROWS, indent=1).encode(),
    "jsonl": lambda: LINES,
    "csv": lambda: b"prompt,output\n" + b"".join(f"{r['prompt']},{r['output']}\n".encode() for r in ROWS[1:]),
    "parquet": as_parquet,
    "arrow": as_arrow,
}


@every
@pytest.mark.parametrize("form", CONTENTS)
def test_each_format_is_read_through_each_compression_by_content(tmp_path: Path, kind: str, form: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(PACKERS[kind](CONTENTS[form]()))
    dataset = DatasetFile(path)
    assert [row for _, row in dataset] == ROWS[form == "csv" :]
    assert (dataset.format, dataset.compression, dataset.sha256) == (form, kind, data_hash(path))


@every
def test_parts_put_one_behind_the_other_are_one_file(tmp_path: Path, kind: str) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 5
    path = tmp_path / "rows"
    path.write_bytes(b"".join(map(PACKERS[kind], (LINES[:half], b"", LINES[half:]))))
    dataset = DatasetFile(path)
    assert [row for _, row in dataset] == ROWS
    assert dataset.sha256 == data_hash(path)


@every
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / "rows"
    content = PACKERS[kind](LINES)
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match="ends in the middle: the file is cut off; copy"):
        list(DatasetFile(path))


@every
def test_a_damaged_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows"
    content = bytearray(PACKERS[kind](LINES))
    content[len(content) // 2] ^= 0xFF
    content[len(content) // 2 + 1] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError):
        list(DatasetFile(path))
    path.write_bytes(PACKERS[kind](LINES) + b"and more")
    with pytest.raises(InputError, match="is damaged"):
        list(DatasetFile(path))


@every
@pytest.mark.parametrize("byte", [b" ", b"\n", b"a", b"["])
def test_what_unfolds_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, byte: bytes
) -> None:
    monkeypatch.setattr(stored, "LEAST_UNFOLDED_BYTES", 1 << 20)
    monkeypatch.setattr(stored, "MOST_UNFOLDED", 100)
    path = tmp_path / "rows"
    path.write_bytes(PACKERS[kind](b'{"text": "a"}\n' + byte * (3 << 20)))
    with pytest.raises(InputError, match="unfolds to more than 1 MiB from"):
        list(DatasetFile(path))


@every
def test_what_is_compressed_twice_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(PACKERS[kind](gzip.compress(LINES)))
    with pytest.raises(InputError, match="is compressed twice; unpack it once"):
        list(DatasetFile(path))
