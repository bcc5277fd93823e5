"""Streams of rows from JSON arrays, JSON Lines and Parquet, and the files that are none of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.files import rows as limits
from llm_tuning.data.reading import DatasetFile, data_hash
from llm_tuning.errors import InputError

ROWS = [{"prompt": f"question {i} é\n🙂", "output": '\\"[{],' * i, "n": i} for i in range(30)]


def read(path: Path) -> list[tuple[int, Any]]:
    return list(DatasetFile(path))


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize("name", ["data.json", "data.parquet", "data"], ids=lambda name: f"named {name}")
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_by_content_whatever_its_name(tmp_path: Path, name: str, indent: int | None) -> None:
    path = written(tmp_path / name, json.dumps(ROWS, indent=indent))
    dataset = DatasetFile(path)
    assert list(dataset) == list(enumerate(ROWS, 1))
    assert dataset.format == "json"
    assert dataset.sha256 == data_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_lines_with_bom_crlf_and_blank_lines_are_simply_read(tmp_path: Path, end: str, bom: bytes) -> None:
    text = end.join(["", *(json.dumps(row, ensure_ascii=False) for row in ROWS[:2]), "  ", json.dumps(ROWS[2])])
    dataset = DatasetFile(written(tmp_path / "data.json", bom + text.encode()))
    assert list(dataset) == [(2, ROWS[0]), (3, ROWS[1]), (5, ROWS[2])]
    assert dataset.format == "jsonl"
    assert dataset.numbering == "line numbers"


def test_an_array_with_bom_and_crlf_is_simply_read(tmp_path: Path) -> None:
    text = json.dumps(ROWS, indent=1, ensure_ascii=False).replace("\n", "\r\n")
    path = written(tmp_path / "data.json", b"\xef\xbb\xbf\r\n" + text.encode() + b"\r\n")
    assert read(path) == list(enumerate(ROWS, 1))


def test_parquet_is_read_by_content_with_nested_messages(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}], "reward": 0.5} for i in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.json", row_group_size=300)
    dataset = DatasetFile(tmp_path / "data.json")
    assert list(dataset) == list(enumerate(rows, 1))
    assert (dataset.format, dataset.sha256) == ("parquet", data_hash(dataset.path))


@pytest.mark.parametrize("seed", range(20))
def test_an_array_reads_the_same_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(limits, "CHUNK_BYTES", chance.randint(1, 40))
    text = json.dumps(ROWS, indent=chance.choice([None, 1]), ensure_ascii=False)
    assert read(written(tmp_path / "data", text)) == list(enumerate(ROWS, 1))


@pytest.mark.parametrize("seed", range(40))
def test_a_broken_array_names_the_same_line_and_column_as_pythons_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(limits, "CHUNK_BYTES", chance.choice([7, 64, 1 << 20]))
    text = json.dumps(ROWS[:10], indent=chance.choice([None, 1]), ensure_ascii=False)
    places = [i for i, character in enumerate(text) if character in '":,']
    place = chance.choice(places)
    broken = text[:place] + "!" + text[place + 1 :]
    try:
        json.loads(broken)
    except json.JSONDecodeError as error:
        want = f"line {error.lineno}, column {error.colno}"
    else:
        assert [row for _, row in read(written(tmp_path / "d", broken))] == json.loads(broken)
        return
    assert want in refusal(written(tmp_path / "d", broken))


@pytest.mark.parametrize("cut", range(1, 60, 2))
def test_an_array_cut_anywhere_is_refused_as_cut_off(tmp_path: Path, cut: int) -> None:
    text = json.dumps(ROWS[1:4])
    message = refusal(written(tmp_path / "data.json", text[: -cut * 2]))
    assert "cut off" in message
    assert "data.json, line 1, column" in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[{}] 5", ["line 1, column 6", "after the end of the array"]),
        ("[{}] []", ["line 1, column 6", "a JSON array on each line"]),
        ("[{},]", ["line 1, column 5", "comma after the last row"]),
        ("[{} {}]", ["line 1, column 5", "after row 1", "expecting ,"]),
        ('[{}, {"a": "\\x"}]', ["row 2", "escape", "line 1, column"]),
        (b'[\n{"a": "caf\xe9"}]', ["line 2", "byte 12", "not UTF-8"]),
        ("[" * 100_000, ["row 1", "nested too deeply"]),
        ("[" + "9" * 5000 + "]", ["row 1", "too many digits"]),
        ("a line of prose\n", ["line 1, column 1", "not JSON"]),
        ("\n\n  hello", ["line 3, column 3", "not JSON"]),
        ("", ["empty"]),
        (" \r\n ", ["empty"]),
        (b"\xef\xbb\xbf", ["empty"]),
        ('[{"a": 1}]'.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
        (b"\x1f\x8b\x08\x00", ["cut off"]),
        (b"PAR1 and no more", ["not a whole Parquet file"]),
        ('{\n "data": [{"prompt": "a"}]\n}', ["one JSON object", "name the list", "data.json#data"]),
        ('{\n "prompt": "a"\n}', ["one JSON object", "one row a line"]),
        ('{\n "a": 1\n}\n{\n "a": 1\n}', ["objects over several lines"]),
        ('{"a": 1},\n{"a": 2},\n', ["line 1", "comma after the object", "without it"]),
        ('{\n "a": 1,\n "b" 2\n}', ["line 3, column 6", "not valid JSON"]),
        ('{"a": "b', ["line 1", "cut off"]),
        ('{"a" 1}', ["line 1, column 6", "not valid JSON"]),
    ],
)
def test_what_is_no_row_list_is_refused_with_its_place(tmp_path: Path, content: bytes | str, parts: list[str]) -> None:
    message = refusal(written(tmp_path / "data.json", content))
    assert all(part in message for part in ["data.json", *parts]), message


def test_the_place_of_a_row_that_is_cut_off_is_on_its_own_line(tmp_path: Path) -> None:
    rows = read(written(tmp_path / "data.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n'))
    assert isinstance(rows[1][1], RowFault)
    assert rows[1][1].at == "line 2, column 6"
    assert [row for _, row in rows if isinstance(row, dict)] == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_elements_that_are_no_objects_are_refused_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", chunk)
    rows = read(written(tmp_path / "d", '[123456789, {"a": 1}, "text", null, [1, 2]]'))
    assert [row.rule.partition("got ")[2] if isinstance(row, RowFault) else row for _, row in rows] == [
        "a number",
        {"a": 1},
        "text",
        "null",
        "a list",
    ]


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.json")
    assert "holds no file of rows" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    with pytest.raises(InputError, match="does not exist"):
        data_hash(tmp_path / "missing.json")


def test_broken_lines_are_refused_rows_and_all_are_found(tmp_path: Path) -> None:
    good = b'{"a": 1}'
    lines = [good, b'{"a" 1}', good, b'{"a": "\xff"}', b"[1]", b'{"a": 1} x', good, b'{"a": "tr']
    faults = {number: row for number, row in read(written(tmp_path / "d", b"\n".join(lines))) if row != {"a": 1}}
    assert {number: fault.reason for number, fault in faults.items()} == {
        2: Reason.NOT_JSON,
        4: Reason.NOT_UTF8,
        5: Reason.NOT_AN_OBJECT,
        6: Reason.NOT_JSON,
        8: Reason.TRUNCATED_ROW,
    }
    assert faults[2].at == "line 2, column 6"
    assert faults[4].at == f"line 4, column 8, byte {len(good) * 2 + len(lines[1]) + 3 + 7}"


def test_a_broken_first_line_is_one_refused_row_if_the_second_is_whole(tmp_path: Path) -> None:
    (_, first), second = read(written(tmp_path / "d", '{"a" 1}\n{"a": 1}\n'))
    assert isinstance(first, RowFault)
    assert second == (2, {"a": 1})


def test_a_row_beyond_the_size_limit_is_refused_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 64)
    monkeypatch.setattr(limits, "CHUNK_BYTES", 16)
    rows = [{"a": 1}, {"a": "x" * 200}, {"a": 2}]
    _, (_, fault), _ = found = read(written(tmp_path / "d", "\n".join(map(json.dumps, rows))))
    assert fault.reason is Reason.ROW_TOO_LARGE
    assert [row for _, row in found if row is not fault] == [{"a": 1}, {"a": 2}]
    assert "a row 2 of more than" in refusal(written(tmp_path / "d", json.dumps([*rows, "x" * 2000])))


def test_nan_and_infinity_are_read_as_numbers_for_the_row_check_to_judge(tmp_path: Path) -> None:
    (_, row), _ = read(written(tmp_path / "d", '{"a": NaN, "b": -Infinity}\n{}\n'))
    assert math.isnan(row["a"])
    assert row["b"] == -math.inf
