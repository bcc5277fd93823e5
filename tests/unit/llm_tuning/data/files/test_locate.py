"""Which files a dataset's path means: the literal name first, then a list or split behind #, then a pattern."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from llm_tuning.data.check import examine_dataset
from llm_tuning.data.files.locate import is_there, locate, split_off
from llm_tuning.data.reading import DatasetFile, data_hash
from llm_tuning.data.report import render_report
from llm_tuning.errors import InputError
from llm_tuning.modes.sft import SFT


def make(root: Path, *names: str, content: str = '{"text": "a"}\n') -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return [root / name for name in names]


def found(path: Path | str) -> list[str]:
    return [file.name for file in locate(Path(path)).files]


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as error:
        locate(Path(path))
    return str(error.value)


@pytest.mark.parametrize("name", ["a#b.json", "rows[1].json", "what?.json", "all*.json", "~me.json", "a b.json"])
def test_a_file_of_exactly_that_name_wins(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "a", "rows1.json", "whats.json", "all-2.json")
    located = locate(tmp_path / name)
    assert (located.files, located.member, located.skipped) == ((tmp_path / name,), "", ())


def test_what_stands_behind_the_last_mark_names_a_list_in_the_file_before_it(tmp_path: Path) -> None:
    make(tmp_path, "rows.json", "a#b.json")
    assert locate(tmp_path / "rows.json#train").member == "train"
    located = locate(tmp_path / "a#b.json#train")
    assert (located.files, located.member) == ((tmp_path / "a#b.json",), "train")
    assert split_off(f"{tmp_path}/rows.json#train") == (f"{tmp_path}/rows.json", "train")
    assert split_off(f"{tmp_path}/a#b.json") == (f"{tmp_path}/a#b.json", "")
    assert split_off(f"{tmp_path}/a#b.json#dev") == (f"{tmp_path}/a#b.json", "dev")


def test_a_pattern_takes_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a.jsonl", "c.json", ".hidden.jsonl", "_SUCCESS", "deep/d.jsonl", "README.md")
    assert found(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert found(tmp_path / "**/*.jsonl") == ["a.jsonl", "b.jsonl", "d.jsonl"]
    located = locate(tmp_path / "*")
    assert [file.name for file in located.files] == ["a.jsonl", "b.jsonl", "c.json"]
    assert [Path(name).name for name in located.skipped] == ["README.md", "_SUCCESS", "deep"]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("none.json", "does not exist; check the path"),
        ("none*.json", "matches no file; check the pattern"),
        ("rows.json#", "names nothing behind the #"),
        ("none.json#train", "does not exist"),
        ("https://host/rows.json", "is no path of this machine"),
        ("hf://datasets/owner/rows", "is no path of this machine"),
        ("owner/rows", "set dataset.uri to hf://datasets/owner/rows"),
    ],
)
def test_what_is_not_there_is_refused_with_what_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "rows.json")
    assert part in refusal(path)
    assert not is_there(Path("none.json"))


def test_two_paths_with_a_comma_are_told_from_a_missing_file(tmp_path: Path) -> None:
    one, two = make(tmp_path, "a.jsonl", "b.jsonl")
    assert "is several paths" in refusal(f"{one},{two}")


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path, "rows.json")
    assert locate(Path("~/rows.json#train")).files == (tmp_path / "rows.json",)


def test_a_folder_gives_its_rows_and_lists_what_it_leaves_out(tmp_path: Path) -> None:
    make(tmp_path, "part-10.jsonl", "part-2.jsonl", ".git/config", ".hidden", "_SUCCESS", "README.md", "notes.txt")
    make(tmp_path, "dataset_infos.json", "picture.png")
    located = locate(tmp_path)
    assert [file.name for file in located.files] == ["part-10.jsonl", "part-2.jsonl"]
    left = [str(Path(name).relative_to(tmp_path)) for name in located.skipped]
    assert left == ["README.md", "dataset_infos.json", "notes.txt", "picture.png", ".git", ".hidden", "_SUCCESS"]


@pytest.mark.parametrize("name", ["more.zip", "rows.xlsx", "old.pkl", "rest.tar.gz", "rows.jsonl.xz"])
def test_a_folder_with_rows_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.jsonl", name)
    assert f"holds {name}, which may hold rows and cannot be read" in refusal(tmp_path)


def test_a_folder_without_rows_says_what_it_has(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "README.md")
    assert "holds no file of rows" in refusal(tmp_path)
    assert "it has README.md, a.txt" in refusal(tmp_path)
    assert "holds no file of rows" in refusal(make_empty(tmp_path / "empty"))


def make_empty(path: Path) -> Path:
    path.mkdir()
    return path


HUB = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (HUB, {"train": 2, "test": 1}),
        (["train.jsonl", "test.jsonl", "dev.jsonl"], {"train": 1, "test": 1, "validation": 1}),
        (["train/a.csv", "train/b.csv", "val/a.csv"], {"train": 2, "validation": 1}),
        (["data/my_train.json", "data/my_eval.json"], {"train": 1, "test": 1}),
        (
            ["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001-0123456789abcdef.parquet"],
            {"train_sft": 1, "train_gen": 1},
        ),
    ],
)
def test_splits_are_named_or_refused(tmp_path: Path, names: list[str], splits: dict[str, int]) -> None:
    make(tmp_path, *names)
    message = refusal(tmp_path)
    assert all(f"{tmp_path}#{split}" in message for split in splits)
    for split, count in splits.items():
        located = locate(Path(f"{tmp_path}#{split}"))
        assert len(located.files) == count
        assert len(located.skipped) == len(names) - count
    assert "has no split `other`" in refusal(f"{tmp_path}#other")


def test_one_split_alone_needs_no_name_and_its_other_names_find_it(tmp_path: Path) -> None:
    make(tmp_path, "data/validation-00000-of-00001.parquet", "README.md")
    assert found(tmp_path) == found(f"{tmp_path}#validation") == found(f"{tmp_path}#val") == found(f"{tmp_path}#dev")


def test_rows_beside_a_split_are_not_added_to_it(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "more.jsonl")
    assert "holds the split train, and more.jsonl of no split" in refusal(tmp_path)
    assert found(f"{tmp_path}#train") == ["train.jsonl"]


def test_a_pattern_over_several_splits_is_refused(tmp_path: Path) -> None:
    make(tmp_path, *HUB)
    assert "holds the splits test and train" in refusal(tmp_path / "data/*.parquet")
    assert len(found(tmp_path / "data/train*")) == 2
    assert len(found(f"{tmp_path}/data/*.parquet#test")) == 1


def test_words_in_the_folders_above_name_no_split(tmp_path: Path) -> None:
    make(tmp_path, "test/a.jsonl", "test/b.jsonl")
    assert found(tmp_path / "test") == ["a.jsonl", "b.jsonl"]
    assert found(tmp_path / "test/*.jsonl") == ["a.jsonl", "b.jsonl"]


def test_rows_in_several_folders_are_not_put_together_by_a_guess(tmp_path: Path) -> None:
    make(tmp_path, "main/train.parquet", "socratic/train.parquet")
    assert "holds rows in several folders: main and socratic" in refusal(tmp_path)
    assert found(tmp_path / "main") == ["train.parquet"]
    assert len(found(tmp_path / "*/train.parquet")) == 2


def test_a_column_in_the_names_of_folders_is_not_lost(tmp_path: Path) -> None:
    make(tmp_path, "label=0/a.parquet", "label=1/a.parquet")
    assert "is partitioned: `label`" in refusal(tmp_path)


def test_a_shard_that_is_missing_is_told(tmp_path: Path) -> None:
    make(tmp_path, "train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    assert "has 2 of the 3 files of train: number 00001 is missing" in refusal(tmp_path)
    assert len(found(tmp_path / "train-*")) == 2


def test_a_saved_dataset_has_the_files_that_it_names(tmp_path: Path) -> None:
    make(tmp_path, "data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "cache-0123.arrow")
    state = {"_data_files": [{"filename": f"data-0000{i}-of-00002.arrow"} for i in (1, 0)], "_split": "train"}
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert found(tmp_path) == found(f"{tmp_path}#train") == ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    assert [Path(name).name for name in locate(tmp_path).skipped] == ["cache-0123.arrow"]
    assert "is one split, not `test`" in refusal(f"{tmp_path}#test")
    (tmp_path / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert "flatten_indices()" in refusal(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(state))
    os.remove(tmp_path / "data-00000-of-00002.arrow")
    assert "is not whole: 1 of 2 files are missing" in refusal(tmp_path)
    for text in ("[]", "{}", "", '{"_data_files": [{"filename": "../x"}]}', "[" * 100_000):
        (tmp_path / "state.json").write_text(text)
        assert "save it again" in refusal(tmp_path)


def test_rows_of_several_files_are_named_by_file_and_row(tmp_path: Path) -> None:
    good = '{"prompt": "a", "output": "b"}\n'
    (tmp_path / "part-1.jsonl").write_text(good * 3)
    (tmp_path / "part-2.jsonl").write_text(f'\n{good}{{"prompt": "{{{{name}}}}", "output": "b"}}\n{{"prompt": "a"}}\n')
    (tmp_path / "part-3.jsonl").write_text("")
    (tmp_path / "part-4.jsonl").write_text(f"{good}nonsense\n{good}")
    report = examine_dataset(tmp_path, form=SFT.rows, tokenizer_dir=None, max_length=64)
    assert [problem.where for problem in report.problems] == [
        f"{tmp_path}/part-2.jsonl row 4",
        f"{tmp_path}/part-4.jsonl row 2, line 2, column 1",
    ]
    assert f"({tmp_path}/part-2.jsonl row 3)" in " ".join(report.warnings)
    assert report.duplicates.places[:2] == [f"{tmp_path}/part-1.jsonl row 2", f"{tmp_path}/part-1.jsonl row 3"]
    assert (report.files, report.rows, report.skipped_files) == (3, 9, [f"{tmp_path}/part-3.jsonl"])
    summary = report.summary()
    assert (
        f"Dataset: {tmp_path} (3 files of JSON Lines, rows are prompt/output, row numbers are line numbers" in summary
    )
    assert f"Note: files that are not read: {tmp_path}/part-3.jsonl" in summary
    lines = "".join(
        hashlib.sha256(file.read_bytes()).hexdigest() + "\n" for file in locate(tmp_path).files if file.stat().st_size
    )
    assert report.data_hash == data_hash(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_the_hash_of_a_single_file_is_that_of_its_bytes_wherever_it_is_found(tmp_path: Path) -> None:
    [file] = make(tmp_path, "rows.jsonl")
    assert data_hash(tmp_path) == data_hash(file) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("one", "other", "rule"),
    [
        (b'{"text": "a"}\n', b'[{"text": "a"}]', "mixes JSON Lines (a.json) and JSON array (b.json)"),
        (b"prompt,output\na,b\n", b"prompt\toutput\na\tb\n", "mixes CSV (a.json) and TSV (b.json)"),
        (
            b'{"text": "a"}\n',
            gzip.compress(b'{"text": "a"}\n'),
            "mixes JSON Lines (a.json) and JSON Lines, gzip (b.json)",
        ),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else None,  # gzip holds the time: no name of a test
)
def test_files_of_two_kinds_are_not_mixed(tmp_path: Path, one: bytes, other: bytes, rule: str) -> None:
    (tmp_path / "a.json").write_bytes(one)
    (tmp_path / "b.json").write_bytes(other)
    with pytest.raises(InputError) as error:
        DatasetFile(tmp_path)
    assert rule in str(error.value)


def test_a_file_that_is_there_twice_by_a_link_is_refused(tmp_path: Path) -> None:
    [file] = make(tmp_path, "part-1.jsonl")
    (tmp_path / "latest.jsonl").symlink_to(file)
    with pytest.raises(InputError, match="names one file twice"):
        DatasetFile(tmp_path)


@pytest.mark.parametrize("given", ["", "*.jsonl"])
def test_a_link_to_what_is_not_there_is_named_itself(tmp_path: Path, given: str) -> None:
    make(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "blobs" / "none")
    (tmp_path / "README.md").symlink_to(tmp_path / "blobs" / "none")
    message = refusal(tmp_path / given)
    assert "b.jsonl: is a link to what is not there; copy the files" in message
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "blobs" / "none")
    assert "and 1 more like it" in refusal(tmp_path / given)


def test_names_with_escape_sequences_do_not_reach_a_terminal(tmp_path: Path) -> None:
    name = "na\nme\x1b[31m.jsonl"
    [file] = make(tmp_path, name, content='{"text": "a"}\n{"text": "b"}\n')
    report = examine_dataset(file, form=SFT.rows, tokenizer_dir=None, max_length=64)
    for text in (report.summary(), render_report(report), render_report(report, color=True)):
        assert "na\\nme\\x1b[31m.jsonl" in text.replace("\n", "").replace(" ", "")
        assert "\x1b[31m.jsonl" not in text
    with pytest.raises(InputError) as error:
        locate(tmp_path / f"{name}.none")
    assert "na\\nme" in str(error.value)
