"""Figures, checkpoints and tokens of runs as they lie in `models/`."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest

from llm_tuning.models.layout import CHECKPOINTS, METRICS
from llm_tuning.openai_api.run_files import Point, RunFiles, read_points, to_csv
from tests.support.openai_api import make_run, make_work

LINES = [
    (1, {"train/loss": 2.5, "train/tokens": 100.0, "train/grad_norm": 1.0}),
    (2, {"train/loss": 2.25}),
    (2, {"eval/loss": 2.0, "eval/perplexity": 7.4, "eval/token_accuracy": 0.5}),
    (3, {"train/loss": 1.123456789}),
]
HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,valid_accuracy"


def test_a_result_file_has_a_line_for_each_step_with_what_was_measured_there(tmp_path: Path) -> None:
    make_run(tmp_path, "faq_sft", LINES)
    figures = RunFiles(tmp_path / "models").metrics_csv("faq_sft")
    assert figures is not None
    assert figures.decode().splitlines() == [HEADER, "1,2.5,,,,", "2,2.25,,2,0.5,", "3,1.12346,,,,"]
    assert RunFiles(tmp_path / "models").csv_bytes("faq_sft") == len(figures)


def test_a_run_of_dpo_has_the_share_of_pairs_that_it_ranks_as_given(tmp_path: Path) -> None:
    make_run(
        tmp_path,
        "faq_dpo",
        [(1, {"train/loss": 0.69, "train/reward_accuracy": 0.75}), (1, {"eval/reward_accuracy": 0.8})],
    )
    figures = RunFiles(tmp_path / "models").metrics_csv("faq_dpo")
    assert figures is not None
    (row,) = csv.DictReader(io.StringIO(figures.decode()))
    assert (row["train_accuracy"], row["valid_accuracy"]) == ("0.75", "0.8")


def test_what_is_no_number_is_an_empty_place() -> None:
    points = read_points(
        [{"step": 1, "train/loss": float("nan"), "eval/loss": float("inf")}, {"step": 2, "eval/loss": 1.0}]
    )
    assert points == (Point(step=2, time=0.0, valid_loss=1.0),)
    assert to_csv(points).decode().splitlines()[1] == "2,,,1,,"


def test_a_run_under_way_has_its_figures_and_those_of_the_finished_one_come_after(tmp_path: Path) -> None:
    runs = RunFiles(tmp_path / "models")
    work = make_work(tmp_path, "faq_sft", LINES[:1], [])
    assert [point.step for point in runs.points("faq_sft")] == [1]
    with (work / METRICS).open("ab") as stream:
        stream.write(b'{"step": 2, "time": 5.5, "train/loss": 2.25}\n{"step": 3, "time": 6')
    assert [(point.step, point.train_loss) for point in runs.points("faq_sft")] == [(1, 2.5), (2, 2.25)]
    assert runs.points("faq_sft")[1].time == 5.5
    assert not runs.has_metrics("faq_sft"), "a result is of a finished adapter"
    make_run(tmp_path, "faq_sft", LINES)
    assert [point.step for point in runs.points("faq_sft")] == [1, 2, 3]
    assert runs.has_metrics("faq_sft")


def test_a_run_has_the_checkpoints_that_it_has_kept_with_the_figures_of_their_steps(tmp_path: Path) -> None:
    work = make_work(tmp_path, "faq_sft", LINES, [3, 2])
    for name in (".saving-4", ".removed-checkpoint-1", "checkpoint-x"):
        (work / CHECKPOINTS / name).mkdir()
    os.utime(work / CHECKPOINTS / "checkpoint-2", (1000, 1000))
    first, second = RunFiles(tmp_path / "models").checkpoints("faq_sft")
    assert (first.step, first.created_at, first.is_published) == (2, 1000, False)
    assert (first.figures.train_loss, first.figures.valid_loss) == (2.25, 2.0)
    assert (second.step, second.figures.train_loss, second.figures.valid_loss) == (3, 1.123456789, None)


def test_a_finished_run_has_one_checkpoint_its_adapter_with_the_scores_of_all_held_out_rows(tmp_path: Path) -> None:
    scores = {"tuned": {"loss": 1.5, "token_accuracy": 0.625, "rows": 9}, "base": {"loss": 3.0}}
    make_run(tmp_path, "faq_sft", LINES, metrics=scores)
    make_work(tmp_path, "faq_sft", LINES, [2])  # a kill between the rename and the removal has left it
    (kept,) = RunFiles(tmp_path / "models").checkpoints("faq_sft")
    assert (kept.step, kept.created_at, kept.is_published) == (3, 1796119200, True)
    assert (kept.figures.valid_loss, kept.figures.valid_mean_token_accuracy) == (1.5, 0.625)
    assert kept.figures.train_loss == 1.123456789


def test_the_tokens_of_a_finished_run_are_those_of_its_manifest(tmp_path: Path) -> None:
    make_run(tmp_path, "faq_sft", LINES)
    assert RunFiles(tmp_path / "models").trained_tokens("faq_sft") == 1234


@pytest.mark.parametrize("name", [None, "", "..", ".work", "../models/faq_sft", "/etc", "a/b", "missing"])
def test_a_name_that_no_run_has_leads_nowhere(tmp_path: Path, name: str | None) -> None:
    make_run(tmp_path, "faq_sft", LINES)
    runs = RunFiles(tmp_path / "models")
    assert runs.points(name) == ()
    assert runs.checkpoints(name) == []
    assert (runs.trained_tokens(name), runs.metrics_csv(name), runs.csv_bytes(name)) == (None, None, None)


def test_what_is_no_file_in_the_place_of_one_hangs_nobody(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "faq_sft", LINES)
    for name in (METRICS, "model.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    runs = RunFiles(tmp_path / "models")
    assert runs.points("faq_sft") == ()
    assert runs.trained_tokens("faq_sft") is None
    assert runs.checkpoints("faq_sft") == []


def test_a_manifest_that_cannot_be_read_costs_what_it_would_say(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "faq_sft", LINES)
    (folder / "model.json").write_text("{")
    runs = RunFiles(tmp_path / "models")
    assert runs.trained_tokens("faq_sft") is None
    assert len(runs.points("faq_sft")) == 3
