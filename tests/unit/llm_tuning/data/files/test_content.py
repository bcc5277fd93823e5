"""What a file is, told by its content; what cannot be read is called by its own name, with what helps."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from llm_tuning.data.reading import DatasetFile
from llm_tuning.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
TEXT = '[{"text": "a"}]'


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"), io.BytesIO())
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "rule", "fix"),
    [
        (zipped("xl/workbook.xml"), "is an Excel workbook", "save it as CSV (UTF-8)"),
        (zipped("word/document.xml"), "is a Word document", "save it as JSON Lines"),
        (zipped("content.xml"), "is an OpenDocument file", "save it as CSV"),
        (zipped("rows.jsonl"), "is a zip archive", "unpack it"),
        (b"PK\x03\x04 and no more", "is a zip archive", "unpack it"),
        (tarred(), "is a tar archive", "unpack it"),
        (gzip.compress(tarred()), "is a tar archive", "unpack it"),
        (POINTER, "is a Git LFS pointer", "git lfs pull"),
        (TEXT.encode("utf-32"), "is UTF-32", "save it as UTF-8"),
        (b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be"), "is UTF-32", "save it as UTF-8"),
        (TEXT.encode("utf-16"), "is UTF-16", "save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "is UTF-16 without its mark", "save it as UTF-8"),
        (pickle.dumps([{"text": "a"}]), "is a pickle", "save the rows as JSON Lines"),
        (b"<!DOCTYPE html><html>", "is HTML", "download it again"),
        (b"SQLite format 3\x00", "is an SQLite database", "export the rows"),
        (b"BZh91AY&SY", "is compressed with bzip2", "gzip or zstd"),
        (b"\xfd7zXZ\x00\x00", "is compressed with xz", "gzip or zstd"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is no text", "save it as JSON Lines"),
        (b"\xff\xff\xff\xff\x00\x00\x00\x00 and no more", "is not a whole Arrow file", "copy or write"),
        (b"ARROW1\x00\x00 and no more", "is not a whole Arrow file", "copy or write"),
        ('{"prompt":{"0":"a","1":"b"},"output":{"0":"c","1":"d"}}', "holds columns, not rows", "orient='records'"),
        ('{"prompt":["a","b"],"output":["c","d"]}', "holds columns, not rows", "orient='records'"),
        ('{"columns":["a"],"index":[0],"data":[["x"]]}', "holds columns, not rows", "orient='records'"),
        ('{"0":{"prompt":"a","output":"b"},"1":{"prompt":"c"}}', "holds columns, not rows", "orient='records'"),
        ('{"prompt":\n{"0":"a"},\n"output":{"0":"c"}}', "holds columns, not rows", "orient='records'"),
        (
            '[{"role":"user","content":"a"}]\n[{"role":"user","content":"a"}]\n',
            "JSON array on each line",
            '{"messages"',
        ),
        ("[]\n[]\n", "JSON array on each line", '{"messages"'),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else None,  # archives hold the time: no name of a test
)
def test_it_is_called_by_its_name(tmp_path: Path, content: bytes | str, rule: str, fix: str) -> None:
    from llm_tuning.data.check import examine_dataset
    from llm_tuning.modes.sft import SFT

    path = tmp_path / "rows"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    report = examine_dataset(path, form=SFT.rows, tokenizer_dir=None, max_length=64)
    [problem] = report.problems
    assert rule in problem.rule
    assert fix in problem.fix
    assert problem.where.startswith(str(path))


def test_a_list_of_lists_says_what_each_row_should_be(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([[{"role": "user", "content": "a"}], [{"from": "human", "value": "a"}], [1]]))
    fixes = [row.fix for _, row in DatasetFile(path)]
    assert fixes == [
        'it is a list of messages: write each row as {"messages": [...]}',
        'it is a list of messages: write each row as {"conversations": [...]}',
        "write each row as {...} with named fields",
    ]


def test_a_device_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a regular file"):
        DatasetFile(Path("/dev/null"))
