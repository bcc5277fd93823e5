"""`tune-llm registry`: what it prints, and with which exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_tuning.codes.tune_llm import main
from tests.support.models import publish_model, publish_two, start_run


@pytest.fixture
def models() -> Path:
    """`models/` in the current directory."""
    folder = Path("models")
    publish_two(folder)
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Standard output of `tune-llm registry ARGUMENTS`, which must end with `code`."""
    assert main(["registry", *arguments]) == code
    return capsys.readouterr().out


def test_the_list_is_aligned_and_newest_first(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base_id = json.loads(said(capsys, "show", "first", "--json"))["entry"]["base_model_id"]
    lines = [line.split() for line in said(capsys, "list").splitlines()]
    assert lines == [
        ["MODEL_ID", "MODE", "BASE", "CREATED", "HELD-OUT", "LOSS"],
        ["second", "ppo", "tiny", "2026-11-25T08:00:00Z", "-"],
        [base_id, "base", "-", "2026-11-24T20:00:00Z", "-"],
        ["first", "sft", "tiny", "2026-11-24T20:00:00Z", "2.5000", "->", "1.2500"],
        ["by-hand", "external", "-", "-", "-"],
    ]


def test_the_columns_of_the_list_begin_under_their_names(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = said(capsys, "list").splitlines()
    assert all(row[header.index("CREATED") - 1] == " " for row in rows)
    assert all(row[header.index("CREATED")] != " " for row in rows)


def test_the_list_as_json_is_the_registry_and_the_losses(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(said(capsys, "list", "--json"))["models"]
    first = next(model for model in listed if model["model_id"] == "first")
    assert first["held_out_loss"] == {"base": 2.5, "tuned": 1.25}
    assert (first["whole"], first["path"], first["tags"]) == (True, "models/first", ["sft"])
    assert listed[-1] == {"model_id": "by-hand", "model_type": "external"}


def test_a_model_whose_directory_is_gone_is_listed_as_not_there(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "list")
    shutil.rmtree(models / "first")
    assert [line.endswith("not there") for line in said(capsys, "list").splitlines() if line.startswith("first")] == [
        True
    ]


def test_a_terminal_gets_a_table_with_whole_model_ids(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "ft_sft_" + "x" * 60
    publish_model(models, long)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    table = said(capsys, "list")
    assert long in table
    assert "─" in table


def test_runs_that_are_not_finished_are_told_below_the_models(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = start_run(models, "going", epochs=3)
    (work / "checkpoints" / "checkpoint-150").mkdir(parents=True)
    start_run(models, "second")  # killed after it was published
    (models / ".work/damaged").mkdir()
    (models / ".work/damaged/run.json").write_text("{")
    *table, last = said(capsys, "list").splitlines()
    assert last.startswith("going is not finished: step 0, epoch 0 of 3, last checkpoint at step 150, last sign ")
    assert last.endswith("; the same command with the same model_id resumes")
    assert [line.split()[0] for line in table][:2] == ["MODEL_ID", "second"]
    (progress,) = json.loads(said(capsys, "list", "--json"))["unfinished"]
    assert (progress["model_id"], progress["checkpoint_step"]) == ("going", 150)


def test_an_empty_or_missing_folder_is_said_by_its_full_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "list") == f"no models in {Path.cwd() / 'models'}\n"
    assert json.loads(said(capsys, "list", "--json", "--output_dir", "elsewhere")) == {"models": [], "unfinished": []}
    assert not Path("models").exists()


def test_show_prints_the_entry_and_what_the_manifest_adds(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(maxsplit=1) for line in said(capsys, "show", "first").splitlines())
    assert lines["path"] == "models/first"
    assert lines["fine_tuning_params.tuning_mode"] == "sft"
    assert len(lines["config_hash"]) == 64
    assert "files.adapter_model.safetensors" in lines
    whole = json.loads(said(capsys, "show", "first", "--json"))
    assert whole["manifest"]["configuration"] == {"training": {"epochs": 2, "batchSize": 4}}


def test_show_of_a_hand_made_entry_is_the_entry(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(said(capsys, "show", "by-hand", "--json")) == {
        "entry": {"model_id": "by-hand", "model_type": "external"},
        "manifest": None,
    }


def test_show_of_an_unknown_model_is_one_sentence_with_what_was_meant(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "show", "frist"]) == 64
    error = capsys.readouterr().err
    assert error == f"error: model_id: 'frist' is not in {models.resolve()}; did you mean first?\n"


def test_verify_is_silent_on_whole_models_and_exits_1_on_a_changed_file(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "all as published" in said(capsys, "verify")
    (models / "first" / "adapter_model.safetensors").write_bytes(b"changed")
    assert "first/adapter_model.safetensors: is not the file" in said(capsys, "verify", code=1)
    assert "all as published" in said(capsys, "verify", "second")
    (problem,) = json.loads(said(capsys, "verify", "first", "--json", code=1))["problems"]
    assert problem["where"] == "models/first/adapter_model.safetensors"


def test_rebuild_says_what_came_and_went(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "list")
    shutil.rmtree(models / "first")
    assert said(capsys, "rebuild") == "3 models, 0 added, 1 removed\nremoved  first\n"
    assert json.loads(said(capsys, "rebuild", "--json")) == {"models": 3, "added": [], "removed": []}


@pytest.mark.parametrize("arguments", [["list"], ["verify"], ["rebuild"], ["show", "first"]])
def test_every_action_heals_the_index(models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    said(capsys, *arguments)
    written = json.loads((models / "registry.json").read_text())["models"]
    assert {"by-hand", "first", "second"} <= {model["model_id"] for model in written}


def test_a_corrupt_file_costs_one_line_on_standard_error(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "registry.json").write_text("{")
    assert main(["registry", "list"]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "registry.json was corrupt (not JSON" in error


def test_a_rebuild_says_which_manifest_it_could_not_use(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "list")
    (models / "first" / "model.json").write_text("{")
    assert main(["registry", "rebuild"]) == 1
    assert "models/first/model.json: is not a valid model.json" in capsys.readouterr().err


def test_a_registry_that_is_a_folder_is_bad_input(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "registry.json").unlink()
    (models / "registry.json").mkdir()
    assert main(["registry", "list"]) == 64
    assert "registry.json: cannot be read (Is a directory)" in capsys.readouterr().err


def test_an_unknown_action_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "delete"]) == 64
    assert "must be one of list, show, verify, rebuild, got 'delete'" in capsys.readouterr().err
