"""Lists of rows under a name in one JSON object: `file.json#train`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import examine_dataset
from llm_tuning.data.files import rows as limits
from llm_tuning.data.reading import DatasetFile, data_hash
from llm_tuning.errors import InputError
from llm_tuning.modes.sft import SFT

ROWS = [{"prompt": f"q {i} é", "output": 'a "quoted\\" ]}[{' * i} for i in range(20)]
WRAPPED = {
    "version": 1.5,
    "about": 'a "]} text',
    "none": None,
    "train": ROWS,
    "empty": [],
    "test": ROWS[:3],
    "meta": {"a": [[1], {}]},
}


def written(path: Path, value: Any, **how: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value, **how), encoding="utf-8")
    return path


def named(path: Path, name: str) -> Path:
    return Path(f"{path}#{name}")


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        list(DatasetFile(path))
    return str(error.value)


@pytest.mark.parametrize("seed", range(30))
def test_the_named_list_is_read_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(limits, "CHUNK_BYTES", chance.choice([1, 3, 17, 1 << 20]))
    members = list(WRAPPED.items())
    chance.shuffle(members)
    how = {"indent": chance.choice([None, 1]), "ensure_ascii": chance.choice([True, False])}
    path = written(tmp_path / "rows.json", dict(members), **how)
    for name, want in (("train", ROWS), ("test", ROWS[:3]), ("empty", [])):
        dataset = DatasetFile(named(path, name))
        assert [row for _, row in dataset] == want
        assert dataset.sha256 == data_hash(named(path, name))


def test_the_hash_says_which_list_is_learned(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", {"a": ROWS, "b": ROWS})
    assert len({data_hash(path), data_hash(named(path, "a")), data_hash(named(path, "b"))}) == 3


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_that_is_not_named_is_refused_with_the_exact_names(tmp_path: Path, indent: int | None) -> None:
    path = written(tmp_path / "rows.json", WRAPPED, indent=indent)
    report = examine_dataset(path, form=SFT.rows, tokenizer_dir=None, max_length=64)
    assert [(problem.rule, problem.fix) for problem in report.problems] == [
        ("is one JSON object that holds lists of rows", f"name the list: {path}#train or {path}#test")
    ]
    assert "Refused" not in report.summary()  # with a remedy for a row, which the object is none of
    assert examine_dataset(named(path, "train"), form=SFT.rows, tokenizer_dir=None, max_length=64).rows == 20


@pytest.mark.parametrize(
    ("content", "name", "parts"),
    [
        (WRAPPED, "none", ["holds no list in `none`", "#train and", "#test"]),
        (WRAPPED, "other", ["has no `other`", "#train and"]),
        ({"a": 1}, "other", ["has no `other`", "no list of rows"]),
        ('{"a": [{"t": 1}], "a": [{"t": 2}]}', "a", ["gives `a` twice"]),
        ('{"a": [{"t": 1}]}\n{"a": []}', "a", ["line 2", "leave #a away"]),
        ('{"a": [{"t": 1}], "b": "cut', "a", ["cut off"]),
        ('{"a": [{"t": 1}], "b": [1, {"c": 2}', "a", ["cut off"]),
        ('{"b": [1, {"c": 2}', "a", ["cut off"]),
        ('{"a": [{"t": 1}]', "a", ["not valid JSON"]),
        ('{"a" [{"t": 1}]}', "a", ["expecting : after a name"]),
        ('{"a": [{"t" 1}]}', "a", ["line 1, column 13", "row 1"]),
        ('{"b": tru, "a": []}', "a", ["not valid JSON"]),
        ('[{"t": 1}]', "a", ["has no names for its rows", "leave #a away"]),
        ("prompt,output\na,b\n", "a", ["has no names for its rows"]),
    ],
)
def test_what_is_named_wrongly_is_refused(tmp_path: Path, content: Any, name: str, parts: list[str]) -> None:
    message = refusal(named(written(tmp_path / "rows.json", content), name))
    assert all(part in message for part in parts), message


def test_one_conversation_is_no_list_of_rows(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = written(tmp_path / "rows.json", row, indent=1)
    assert refusal(path).endswith(
        "is one JSON object, not a list of rows; write a JSON array of rows [...] or one row a line"
    )


def test_members_are_passed_over_however_deep_and_long_they_are(tmp_path: Path) -> None:
    text = (
        '{"deep": '
        + "[" * 50_000
        + "]" * 50_000
        + ', "long": "'
        + '\\\\\\"x' * 300_000
        + '", "train": [{"text": "a"}]}'
    )
    path = written(tmp_path / "rows.json", text)
    assert list(DatasetFile(named(path, "train"))) == [(1, {"text": "a"})]
