"""Rows to evaluate on in a file of their own: checked with the others, all held out, none that training has seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import DatasetRefused, check_dataset
from llm_tuning.data.reading import data_hash, evaluation_path
from llm_tuning.data.report import Report
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.modes import MODES
from tests.support.other_rows import assistant, user

TRAINING = [{"prompt": f"question {i}", "output": f"answer {i}", "reward": i} for i in range(30)]
HELD_OUT = [{"prompt": f"other question {i}", "output": f"answer {i}", "reward": 1} for i in range(5)]


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def training(tmp_path: Path) -> Path:
    return written(tmp_path / "train.jsonl", TRAINING)


def check(training: Path, held_out: Sequence[Any], base: Path | None = None, mode: str = "sft", **more: Any) -> Report:
    evaluation = written(training.parent / "eval.jsonl", held_out)
    form = MODES[mode].rows
    return check_dataset(training, form=form, tokenizer_dir=base, max_length=200, evaluation=evaluation, **more)


def test_all_rows_of_the_file_are_held_out_and_no_other(training: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    report = check(training, HELD_OUT, tokenizer_dir, out=tmp_path / "out")
    assert report.evaluation is not None
    assert (report.kept, report.evaluation.kept, report.evaluation.evaluated) == (30, 5, 5)
    assert report.evaluation.data_hash == data_hash(tmp_path / "eval.jsonl") != report.data_hash
    assert (report.warnings, report.evaluation.warnings) == ([], [])
    rows = TokenRows.open(tmp_path / "out")
    trained, held_out = rows.hold_out(0.05, 42)
    assert trained.tolist() == list(range(30))
    assert [rows.messages(int(i))[0]["content"] for i in held_out] == [row["prompt"] for row in HELD_OUT]  # type: ignore[index]
    assert rows.row_numbers[held_out].tolist() == [1, 2, 3, 4, 5]


SHAPES: dict[str, Callable[[str], dict[str, Any]]] = {
    "messages": lambda asked: {"messages": [user(asked), assistant("a")]},
    "conversations": lambda asked: {"conversations": [user(asked), assistant("a")]},
    "instruction": lambda asked: {"instruction": asked, "input": "", "output": "a"},
    "prompt": lambda asked: {"prompt": asked, "output": "a"},
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("mode", ["sft", "kto"])
def test_a_system_message_beside_the_turns_is_no_prompt_of_its_own(shape: str, mode: str, tmp_path: Path) -> None:
    def rows(named: str) -> list[dict[str, Any]]:
        more = {"system": "Be brief."} | ({} if mode == "sft" else {"label": True})
        rows = [SHAPES[shape](f"{named} {i}") | more for i in range(30)]
        return rows if mode == "sft" else [*rows, rows[0] | {"label": False}]

    report = check(written(tmp_path / "train.jsonl", rows("question")), rows("another"), mode=mode)
    assert report.evaluation is not None
    assert (report.prompts, report.evaluation.prompts, report.evaluation.in_training.count) == (30, 30, 0)


@pytest.mark.parametrize("beside", [{}, {"history": [["What is a list?", "A row of values."]]}])
def test_alpaca_rows_with_labels_are_counted_by_what_they_ask(beside: dict[str, Any], tmp_path: Path) -> None:
    asked = [{"instruction": f"question {i}", "output": "a", "label": i % 2} | beside for i in range(6)]
    report = check(written(tmp_path / "train.jsonl", asked), [asked[0] | {"instruction": "another"}], mode="kto")
    assert report.labels is not None
    assert (report.prompts, report.labels.prompts, report.labels.one_sided, report.labels.contradicted) == (6, 6, 6, 0)


def test_a_file_that_either_side_reads_is_not_said_to_be_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    written(folder / "train.jsonl", TRAINING)
    written(folder / "validation.jsonl", HELD_OUT)
    written(folder / "test.jsonl", HELD_OUT)
    form = MODES["sft"].rows
    report = check_dataset(f"{folder}#train", form=form, tokenizer_dir=None, max_length=200, evaluation="#validation")
    assert report.evaluation is not None
    for part in (report, report.evaluation):
        assert (part.skipped_files, part.skipped_files_count) == ([f"{folder}/test.jsonl"], 1)


def test_few_rows_will_do_on_either_side(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Below 20 rows nothing is split off, but what is given is used."""
    few = written(tmp_path / "few.jsonl", TRAINING[:2])
    check(few, HELD_OUT[:1], tokenizer_dir, out=tmp_path / "out")
    trained, held_out = TokenRows.open(tmp_path / "out").hold_out(0.05, 42)
    assert (trained.tolist(), held_out.tolist()) == ([0, 1], [2])


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}


@pytest.mark.parametrize(
    "seen",
    [
        TRAINING[3],
        TRAINING[3] | {"output": "another answer"},
        TRAINING[3] | {"prompt": "question  3\n"},
    ],
    ids=["a copy", "the same prompt", "other white space"],
)
def test_a_row_whose_prompt_is_trained_on_is_left_out_and_said(
    training: Path, tokenizer_dir: Path, tmp_path: Path, seen: dict[str, Any]
) -> None:
    report = check(training, [HELD_OUT[0], seen, HELD_OUT[1]], tokenizer_dir, out=tmp_path / "out")
    assert report.evaluation is not None
    assert (report.evaluation.evaluated, report.evaluation.in_training.rows) == (2, [2])
    assert "row 2 has its prompt among the training rows and no part in the scores" in report.summary()
    _, held_out = TokenRows.open(tmp_path / "out").hold_out(0.05, 42)
    assert held_out.tolist() == [30, 32]


def test_the_beginning_of_a_trained_conversation_is_seen(tokenizer_dir: Path, tmp_path: Path) -> None:
    """A log that is written after every turn: what the shorter row leaves open is answered within the longer one."""
    long = written(tmp_path / "log.jsonl", [chat("a", "b", "c", "d"), chat("e", "f")])
    report = check(long, [chat("a", "b"), chat("g", "h")], tokenizer_dir, out=tmp_path / "out")
    assert report.evaluation is not None
    assert report.evaluation.in_training.rows == [1]
    assert TokenRows.open(tmp_path / "out").hold_out(0.05, 42)[1].tolist() == [3]


def test_a_file_of_nothing_but_trained_prompts_is_refused(training: Path) -> None:
    with pytest.raises(DatasetRefused, match=r"2 usable rows, all with a prompt of the training rows") as error:
        check(training, TRAINING[:2])
    (problem,) = error.value.problems
    assert (problem.field, problem.where) == ("dataset.evaluation", str(training.parent / "eval.jsonl"))


def test_the_problems_of_both_files_come_together_each_with_its_file(tmp_path: Path, tokenizer_dir: Path) -> None:
    training = written(tmp_path / "train.jsonl", [*TRAINING, {"prompt": "", "output": "a"}])
    with pytest.raises(DatasetRefused) as error:
        check(training, [*HELD_OUT, {"prompt": "q", "output": None}], tokenizer_dir, out=tmp_path / "out")
    assert [(problem.field, problem.where) for problem in error.value.problems] == [
        ("dataset.path", f"{training}, row 31"),
        ("dataset.evaluation", f"{tmp_path / 'eval.jsonl'}, row 6"),
    ]
    assert not (tmp_path / "out").exists()


def test_refused_rows_of_both_are_skipped_when_asked(tmp_path: Path, tokenizer_dir: Path) -> None:
    training = written(tmp_path / "train.jsonl", [{"prompt": "", "output": "a"}, *TRAINING])
    held_out = [{"prompt": "q", "output": None}, *HELD_OUT]
    report = check(training, held_out, tokenizer_dir, skip_invalid_rows=True, out=tmp_path / "out")
    assert report.evaluation is not None
    assert (report.kept, report.evaluation.kept, report.evaluation.refused) == (30, 5, 1)
    assert "Warning: evaluation: 1 refused row is skipped" in report.summary()


@pytest.mark.parametrize(("rows", "rule"), [([], "is empty"), ([{"prompt": "q", "output": None}], "is null")])
def test_a_file_without_a_usable_row_is_refused_though_rows_are_skipped(
    training: Path, rows: list[Any], rule: str
) -> None:
    with pytest.raises(DatasetRefused, match=rule) as error:
        check(training, rows, skip_invalid_rows=True)
    assert {problem.field for problem in error.value.problems} == {"dataset.evaluation"}


def test_a_missing_file_is_named_with_the_rows_that_are_wrong(tmp_path: Path) -> None:
    training = written(tmp_path / "train.jsonl", [*TRAINING, {"prompt": "q"}])
    with pytest.raises(DatasetRefused) as error:
        check_dataset(
            training, form=MODES["sft"].rows, tokenizer_dir=None, max_length=200, evaluation=tmp_path / "none.jsonl"
        )
    assert "`output` is missing" in str(error.value)
    assert "none.jsonl: does not exist" in str(error.value)


def test_rows_to_evaluate_on_need_not_make_sense_to_train_on(training: Path) -> None:
    """One reward in all rows teaches nothing; it can be scored."""
    assert check(training, HELD_OUT, mode="ppo").ok


def test_columns_are_those_of_both_files(tmp_path: Path) -> None:
    def of(rows: Sequence[Any]) -> list[Any]:
        return [{"question": row["prompt"], "reply": row["output"]} for row in rows]

    training = written(tmp_path / "train.jsonl", of(TRAINING))
    report = check(training, of(HELD_OUT), columns={"prompt": "question", "output": "reply"})
    assert (report.kept, report.ignored_fields) == (30, [])
    assert report.evaluation is not None
    assert report.evaluation.kept == 5


def test_one_prompt_in_all_training_rows_is_no_fault_where_rows_are_given(tmp_path: Path) -> None:
    training = written(tmp_path / "train.jsonl", [TRAINING[0] | {"output": f"answer {i}"} for i in range(30)])
    assert not any("one prompt" in warning for warning in check(training, HELD_OUT).warnings)


def test_the_report_is_read_back_and_tells_the_two_apart(training: Path, tokenizer_dir: Path) -> None:
    report = check(training, HELD_OUT, tokenizer_dir)
    assert Report.model_validate_json(report.model_dump_json()) == report
    lines = report.summary().splitlines()
    assert f"Evaluation: {training.parent / 'eval.jsonl'} (JSON Lines" in "\n".join(lines)
    assert "- rows: 5 read, 5 kept, 0 refused; 5 different prompts" in lines


def test_a_part_alone_is_of_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.json").touch()
    assert evaluation_path("all.json", "#validation") == Path("all.json#validation")
    assert evaluation_path("all.json#train", "#validation") == Path("all.json#validation")
    assert evaluation_path("all.json", "eval.json") == Path("eval.json")
    for name in ("no#1.json", "#validation"):
        (tmp_path / name).touch()
    assert evaluation_path("no#1.json", "#test") == Path("no#1.json#test")
    assert evaluation_path("all.json", "#validation") == Path("#validation"), "a file of that name is meant"


def test_both_parts_of_one_file_are_a_data_set(tmp_path: Path, tokenizer_dir: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"train": TRAINING, "validation": HELD_OUT}))
    report = check_dataset(
        f"{path}#train",
        form=MODES["sft"].rows,
        tokenizer_dir=tokenizer_dir,
        max_length=200,
        evaluation="#validation",
        out=tmp_path / "out",
    )
    assert report.evaluation is not None
    assert (report.kept, report.evaluation.evaluated) == (30, 5)
    assert report.data_hash != report.evaluation.data_hash, "two parts of one file are not the same rows"
    assert len(TokenRows.open(tmp_path / "out").hold_out(0.05, 42)[1]) == 5
