"""What the reporter measures and where it goes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.progress import Progress
from llm_tuning.progress.lines import JsonLines
from llm_tuning.run import reporter as reporting
from llm_tuning.run.context import Reporter
from llm_tuning.run.reporter import Pace, RunReporter, SilentReporter
from llm_tuning.tracking import MetricsFile, read_metrics


def as_reporter(reporter: Reporter) -> Reporter:
    """The type checker and this test say that both are reporters."""
    return reporter


@pytest.fixture
def stream() -> StringIO:
    return StringIO()


def make_reporter(path: Path, stream: StringIO) -> RunReporter:
    return RunReporter(Progress([JsonLines(stream, interval_seconds=3600)]), MetricsFile(path / "metrics.jsonl"))


def shown(stream: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_run_is_kept_and_shown(tmp_path: Path, stream: StringIO) -> None:
    reporter = make_reporter(tmp_path, stream)
    as_reporter(reporter).stage("loading")
    reporter.start(4, 0)
    for step in (1, 2, 3, 4):
        reporter.step(step, step / 4, {"train/loss": 1 / step}, tokens=100)
    reporter.stage("evaluating")
    reporter.metrics(4, {"eval/loss": 0.5})
    reporter.close(done=True)
    reporter.close(done=False)

    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert lines[1]["train/tokens"] == 100
    assert lines[1]["train/epoch"] == 0.5
    assert lines[1]["train/tokens_per_second"] > 0
    assert lines[1]["train/step_seconds"] > 0
    assert lines[-1]["eval/loss"] == 0.5
    last = shown(stream)[-1]
    assert (last["stage"], last["percent"], last["step"], last["loss"], last["evalLoss"]) == ("done", 100, 4, 0.25, 0.5)


def test_operations_are_kept_and_not_shown_and_the_first_step_warms_up(tmp_path: Path, stream: StringIO) -> None:
    reporter = make_reporter(tmp_path, stream)
    reporter.start(3, 0)
    for step in (1, 2, 3):
        reporter.step(step, 0.1, {"train/loss": 1.0, "train/operations": 5e9}, tokens=100)
        reporter.stage("evaluating")
        if step == 1:
            reporter.metrics(step, {"eval/loss": 0.5})
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert [line["train/operations"] for line in lines] == [5e9] * 3
    assert ["train/busy_seconds" in line for line in lines] == [False, True, False], "how long it evaluated is unknown"
    assert "train/operations" not in reporter._now.metrics


def test_a_resumed_run_shows_its_place_and_repeats_no_step(tmp_path: Path, stream: StringIO) -> None:
    killed = make_reporter(tmp_path, StringIO())
    killed.start(10, 0)
    for step in range(1, 8):
        killed.step(step, 0.1, {"train/loss": 1.0}, tokens=1)
    resumed = make_reporter(tmp_path, stream)
    resumed.start(10, 5)
    for step in range(6, 9):
        resumed.step(step, 0.1, {"train/loss": 2.0}, tokens=1)
    resumed.close()
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, 9))
    assert shown(stream)[-1]["percent"] == 80, "it did not end"


def test_a_reporter_that_never_started_closes_quietly(tmp_path: Path, stream: StringIO) -> None:
    make_reporter(tmp_path, stream).close()
    assert stream.getvalue() == ""


def test_a_silent_reporter_is_a_reporter() -> None:
    reporter = as_reporter(SilentReporter())
    reporter.start(1, 0)
    reporter.step(1, 0.1, {}, 0)
    reporter.metrics(1, {})
    reporter.stage("saving")


def test_tokens_a_second_are_those_of_the_last_steps() -> None:
    pace = Pace(1000, 0, now=0.0)
    assert pace.tokens_per_second is None
    for step in range(1, 11):
        pace.step(step, 100, now=float(step))
    assert pace.tokens_per_second == pytest.approx(100)
    for step in range(1, 1 + reporting.WINDOW_STEPS):
        pace.step(10 + step, 100, now=10 + step / 2)
    assert pace.tokens_per_second == pytest.approx(200)


def test_an_evaluation_between_two_steps_is_no_part_of_the_speed_but_of_the_time_left() -> None:
    pace = Pace(4, 0, now=0.0)
    pace.step(1, 100, now=1.0)
    pace.interrupted(1.0)
    pace.resumed(9.0)
    assert pace.step(2, 100, now=10.0) == 9.0
    assert pace.tokens_per_second == pytest.approx(100)
    assert pace.remaining_seconds == pytest.approx(10.0)


def test_a_step_whose_beginning_nobody_knows_says_nothing_about_speed() -> None:
    pace = Pace(4, 0, now=0.0)
    pace.step(1, 100, now=1.0)
    pace.interrupted(1.0)
    pace.step(2, 100, now=100.0)
    assert pace.tokens_per_second == pytest.approx(100)
    pace.step(3, 100, now=101.0)
    assert pace.tokens_per_second == pytest.approx(100)


def test_time_left_counts_from_the_resumed_step() -> None:
    pace = Pace(100, 90, now=50.0)
    assert pace.remaining_seconds is None
    pace.step(92, 1, now=54.0)
    assert pace.remaining_seconds == pytest.approx(16.0)


def test_nothing_is_said_of_the_time_left_after_the_last_step_while_an_evaluation_goes_on() -> None:
    pace = Pace(3, 0, now=0.0)
    pace.step(2, 1, now=2.0)
    assert pace.remaining_seconds == pytest.approx(1.0)
    pace.step(3, 1, now=3.0)
    pace.interrupted(3.0)
    assert pace.remaining_seconds is None
