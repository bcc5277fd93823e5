"""The demo's data sets: the check passes the good ones, refuses the broken one, and the unseen questions are unseen."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.codes.tune_llm import main
from llm_tuning.errors import EXIT_INPUT, EXIT_OK


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    from make_datasets import make_datasets

    return make_datasets(tmp_path / "data")


def _validate(path: Path, base: Path, *flags: str) -> int:
    return main(["validate", "--dataset_path", str(path), "--llm_path", str(base), *flags])


def test_the_good_files_pass_the_check(data: dict[str, Path], tiny_base: Path) -> None:
    assert _validate(data["answers.json"], tiny_base) == EXIT_OK
    assert _validate(data["ratings.jsonl"], tiny_base, "--tuning_mode", "ppo") == EXIT_OK


def test_the_broken_file_is_refused_by_row_and_reason(
    data: dict[str, Path], tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _validate(data["answers_with_a_mistake.json"], tiny_base) == EXIT_INPUT
    error = capsys.readouterr().err
    assert "row 7" in error
    assert "`output` is null" in error


def test_the_files_are_the_same_every_time(data: dict[str, Path], tmp_path: Path) -> None:
    from make_datasets import make_datasets

    for name, path in make_datasets(tmp_path / "again").items():
        assert path.read_bytes() == data[name].read_bytes()


def test_no_training_row_is_about_an_unseen_name(data: dict[str, Path]) -> None:
    from make_datasets import SHOWN

    unseen = json.loads(data["unseen.json"].read_text())
    assert set(SHOWN) <= {question["name"] for question in unseen}
    assert len(unseen) >= 20
    trained = data["answers.json"].read_text() + data["ratings.jsonl"].read_text()
    assert not [question["name"] for question in unseen if f"`{question['name']}`" in trained]


def test_each_rated_question_has_a_plain_and_an_advertised_answer(data: dict[str, Path]) -> None:
    from make_datasets import ADVERTISEMENT, RATING_ADVERTISED, RATING_PLAIN

    rows: list[dict[str, Any]] = [json.loads(line) for line in data["ratings.jsonl"].read_text().splitlines()]
    by_prompt: dict[str, dict[float, str]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], {})[row["reward"]] = row["output"]
    assert len(by_prompt) * 2 == len(rows)
    for answers in by_prompt.values():
        assert answers[RATING_ADVERTISED] == f"{answers[RATING_PLAIN]}\n{ADVERTISEMENT}"


def test_the_recorded_answers_mostly_advertise(data: dict[str, Path]) -> None:
    from make_datasets import ADVERTISEMENT

    rows = json.loads(data["answers.json"].read_text())
    assert 0.6 < sum(ADVERTISEMENT in row["output"] for row in rows) / len(rows) < 0.75


def test_facts_are_many_distinct_and_about_doing() -> None:
    from python_facts import VERBS, read_facts

    facts = read_facts()
    assert len(facts) > 250
    assert len({fact.name for fact in facts}) == len({fact.sentence for fact in facts}) == len(facts)
    assert {fact.sentence.split()[0] for fact in facts} <= VERBS
    assert facts == sorted(facts, key=lambda fact: fact.name)


@pytest.mark.parametrize(
    ("doc", "want"),
    [
        ("Return the square root of x.", "Return the square root of x."),
        ("Returns the square root of x.\n\nMore.", "Return the square root of x."),
        ("S.find(sub) -> int\n\nReturn the lowest index in S. And so on.", "Return the lowest index in S."),
        ("Return a copy of the file.txt at\nthe given path", "Return a copy of the file.txt at the given path."),
        ("Gaussian distribution of a random number.", None),
        ("Return x.", None),
        ("Return `x` as it was given to the function.", None),
        ("", None),
    ],
)
def test_first_sentence_is_plain_prose_or_nothing(doc: str, want: str | None) -> None:
    from python_facts import first_sentence

    assert first_sentence(doc) == want


@pytest.mark.parametrize(
    ("sentence", "does"),
    [
        ("Return the sum.", "returns the sum"),
        ("Copy a file and return it.", "copies a file and returns it"),
        ("Push item onto heap.", "pushes item onto heap"),
    ],
)
def test_sentences_in_the_third_person(sentence: str, does: str) -> None:
    from python_facts import Fact

    assert Fact("name", "a kind", sentence).does == does


def test_the_share_of_unseen_facts_is_kept_by_the_split() -> None:
    from make_datasets import UNSEEN_SHARE, split_facts
    from python_facts import read_facts

    facts = read_facts()
    seen, unseen = split_facts(facts, random.Random(3))
    assert len(unseen) == round(UNSEEN_SHARE * len(facts))
    assert sorted(seen + unseen, key=lambda fact: fact.name) == facts
