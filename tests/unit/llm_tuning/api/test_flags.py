"""Flags whose value is more than a word: a mapping, a switch that takes a number, a path below the home folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.cli.parser import Parser
from llm_tuning.codes.tune_llm import _run_parser, build, main
from llm_tuning.errors import InputError

PLACES = {"llm_path": "b", "dataset_path": "d"}


def parsed(*arguments: str) -> tuple[TuningConfig, RunOptions]:
    given = vars(_run_parser().parse_args(["--llm_path", "b", "--dataset_path", "d", *arguments]))
    del given["config"], given["debug"]
    return build(given, config=None)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("prompt=question,output=answer", {"prompt": "question", "output": "answer"}),
        ("prompt=the question", {"prompt": "the question"}),
        (" prompt = a , output=b=c ", {"prompt": "a", "output": "b=c"}),
        ("prompt=质问", {"prompt": "质问"}),
    ],
)
def test_columns_are_pairs(text: str, columns: dict[str, str]) -> None:
    assert parsed("--columns", text)[0].dataset.columns == columns


@pytest.mark.parametrize("text", ["prompt", "", "prompt=", "=question", "prompt=a,", "prompt:a", "{prompt: a}"])
def test_what_are_no_pairs_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(InputError, match=r"--columns: must be FIELD=COLUMN .*write --columns prompt=question,output"):
        parsed("--columns", text)


def test_one_field_has_one_column_and_one_column_one_field() -> None:
    with pytest.raises(InputError, match=r"names the field prompt twice"):
        parsed("--columns", "prompt=a,prompt=b")
    with pytest.raises(InputError, match=r"dataset\.columns \(--columns\): must name each column for one field only"):
        parsed("--columns", "prompt=a,output=a")


@pytest.mark.parametrize("columns", [{"prompt": "question"}, "prompt=question"])
def test_from_python_a_mapping_will_do(columns: Any) -> None:
    assert build(PLACES | {"columns": columns}, config=None)[0].dataset.columns == {"prompt": "question"}


def test_a_file_has_a_mapping_too_and_the_flag_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: b}\ndataset: {path: d, columns: {prompt: a}, evaluation: e}\ntraining: {learn: last}\n"
    )
    config = build({}, config=file)[0]
    assert (config.dataset.columns, config.dataset.evaluation, config.training.learn) == ({"prompt": "a"}, "e", "last")
    flags = {"columns": {"output": "b"}, "eval_dataset_path": "f", "learn": "all"}
    config = build(flags, config=file)[0]
    assert (config.dataset.columns, config.dataset.evaluation, config.training.learn) == ({"output": "b"}, "f", "all")


@pytest.mark.parametrize(
    ("arguments", "want"),
    [([], False), (["--show_sample"], True), (["--show_sample", "425"], 425), (["--no-show_sample"], False)],
)
def test_a_sample_is_asked_for_by_its_number_or_not(arguments: list[str], want: object) -> None:
    found = parsed(*arguments)[1].show_sample
    assert (type(found), found) == (type(want), want), "True is no row 1"


def test_help_shows_a_mapping_as_the_flag_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    for help_of in (["--help"], ["validate", "--help"]):
        with pytest.raises(SystemExit):
            main(help_of)
        said = " ".join(capsys.readouterr().out.split())
        assert "by the field that is meant: prompt=question,output=answer." in said


@pytest.mark.parametrize("number", ["0", "-1", "first", "1.5"])
def test_a_sample_that_is_no_row_is_refused(number: str) -> None:
    with pytest.raises(InputError, match=r"show_sample \(--show_sample\): must be a row's number"):
        parsed(f"--show_sample={number}")


def test_the_home_folder_is_found_where_a_shell_has_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--flag=~/x`, quotes, a file, Python: nothing else has expanded it."""
    monkeypatch.setenv("HOME", "/home/me")
    flags = [
        "--llm_path=~/base",
        "--dataset_path",
        "~/d.json",
        "--eval_dataset_path=~/e.json",
        "--output_dir",
        "~/models",
    ]
    config, options = parsed(*flags, "--tracking_uri=~/mlruns")
    places = [
        config.model.path,
        config.dataset.path,
        config.dataset.evaluation,
        options.output_dir,
        config.tracking.uri,
    ]
    assert places == [f"/home/me/{name}" for name in ("base", "d.json", "e.json", "models", "mlruns")]
    assert build({"llm_path": "~/b", "dataset_path": "~/d"}, config=None)[0].model.path == "/home/me/b"
    parser = Parser()
    parser.add_argument("--output_dir")
    parser.add_argument("--name")
    found = parser.parse_args(["--output_dir=~/models", "--name", "~tilde"])
    assert (found.output_dir, found.name) == ("/home/me/models", "~tilde")


def test_rows_are_held_out_once() -> None:
    with pytest.raises(
        InputError, match=r"training\.evalFraction \(--eval_fraction\): is set beside dataset\.evaluation"
    ):
        parsed("--eval_dataset_path", "e", "--eval_fraction", "0.1")
