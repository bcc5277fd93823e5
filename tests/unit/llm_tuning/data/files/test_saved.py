"""Folders and files that the `datasets` library itself writes, filtered and shuffled ones among them."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from llm_tuning.data.check import examine_dataset
from llm_tuning.data.reading import DatasetFile, data_hash
from llm_tuning.errors import InputError
from llm_tuning.modes.sft import SFT

ROWS = [
    {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a {i}"}]} for i in range(30)
]


def rows_of(path: Path | str) -> list[object]:
    dataset = DatasetFile(Path(path))
    rows = [row for _, row in dataset]
    assert dataset.sha256 == data_hash(Path(path))
    return rows


@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_dataset_is_read_as_it_was(tmp_path: Path, shards: int) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "d", num_shards=shards)
    assert rows_of(tmp_path / "d") == ROWS
    assert DatasetFile(tmp_path / "d").skipped == ()


def test_a_filtered_and_shuffled_one_has_its_own_rows_in_its_own_order(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS).shuffle(seed=3).select(range(10))
    dataset.save_to_disk(tmp_path / "d")
    assert rows_of(tmp_path / "d") == list(dataset)


def test_the_split_of_a_dict_is_named(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    parts = {"train": whole.select(range(20)), "test_2": whole.select(range(20, 30))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    for split, part in parts.items():
        assert rows_of(f"{tmp_path}/d#{split}") == list(part)
    with pytest.raises(InputError, match=r"holds the splits train and test_2; name one: \S+/d#train or \S+/d#test_2"):
        rows_of(tmp_path / "d")
    with pytest.raises(InputError, match="has no split `validation`; name one that it has"):
        rows_of(f"{tmp_path}/d#validation")
    datasets.DatasetDict({"train": whole}).save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == ROWS


def test_its_other_writers_are_read(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list([{"prompt": "a, b", "output": "c\nd"}, {"prompt": "e", "output": "f"}])
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.to_json(tmp_path / "a.jsonl")
    dataset.to_json(tmp_path / "a.json", lines=False)
    dataset.to_csv(tmp_path / "a.csv")
    dataset.to_json(tmp_path / "a.jsonl.gz", compression="gzip")
    for name in ("a.parquet", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz"):
        assert rows_of(tmp_path / name) == list(dataset)


def test_a_hubs_folder_is_checked_by_its_split(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS[:20]), ("test", ROWS[20:])):
        part = datasets.Dataset.from_list(rows)
        for shard in range(2):
            (tmp_path / "data").mkdir(exist_ok=True)
            part.shard(2, shard, contiguous=True).to_parquet(tmp_path / f"data/{split}-0000{shard}-of-00002.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert rows_of(f"{tmp_path}#train") == ROWS[:20]
    report = examine_dataset(f"{tmp_path}#train", form=SFT.rows, tokenizer_dir=None, max_length=64)
    assert (report.ok, report.rows, report.files, report.format) == (True, 20, 2, "parquet")
    assert report.skipped_files_count == 3
