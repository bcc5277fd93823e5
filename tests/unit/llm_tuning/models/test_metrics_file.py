"""metrics.jsonl: what is written stays, what is torn or taken again is not there twice."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import pytest

from llm_tuning.models.metrics_file import operations_per_second
from llm_tuning.tracking import MetricsFile, read_metrics, summarise
from llm_tuning.tracking.outbox import SenderState, Tail


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.jsonl")


def losses(path: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["train/loss"]) for line in read_metrics(path) if "train/loss" in line]


def write_steps(metrics: MetricsFile, first: int, last: int, *, loss: float = 1.0) -> None:
    for step in range(first, last + 1):
        metrics.log(step, {"train/loss": loss, "train/grad_norm": 1.0, "train/tokens": 10})


def test_a_line_is_on_disk_when_log_returns(metrics: MetricsFile) -> None:
    metrics.log(3, {"train/loss": 2.5})
    line = json.loads(metrics.path.read_text())
    assert (line["step"], line["train/loss"]) == (3, 2.5)
    assert line["time"] > 1e9


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_json_lacks_survive_as_strict_json(metrics: MetricsFile, value: float) -> None:
    metrics.log(1, {"train/loss": value})
    json.loads(metrics.path.read_text(), parse_constant=pytest.fail)
    assert str(losses(metrics.path)[0][1]) == str(value)


def test_resume_cuts_the_steps_that_come_again(metrics: MetricsFile) -> None:
    write_steps(metrics, 1, 7)
    again = MetricsFile(metrics.path)
    again.resume(5)
    write_steps(again, 6, 9, loss=2.0)
    assert losses(metrics.path) == [(s, 1.0) for s in range(1, 6)] + [(s, 2.0) for s in range(6, 10)]


def test_resume_from_the_beginning_empties_the_file(metrics: MetricsFile) -> None:
    write_steps(metrics, 1, 3)
    metrics.resume(0)
    assert metrics.path.read_bytes() == b""


def test_what_is_logged_again_at_a_kept_step_is_not_there_twice(metrics: MetricsFile) -> None:
    metrics.log(0, {"train/reference_forwards": 12})
    write_steps(metrics, 1, 4)
    metrics.log(4, {"eval/loss": 1.5})

    again = MetricsFile(metrics.path)
    again.log(0, {"train/reference_forwards": 0})  # before the recipe knows where it goes on
    again.resume(4)
    again.log(4, {"eval/loss": 1.5})
    lines = list(read_metrics(metrics.path))
    assert [line["train/reference_forwards"] for line in lines if "train/reference_forwards" in line] == [12]
    assert sum("eval/loss" in line for line in lines) == 1


@pytest.mark.parametrize("torn", [b'{"step":4,"ti', b'{"step":4,"time":1.0,"train/loss":1.0}'])
def test_a_torn_last_line_is_cut(metrics: MetricsFile, torn: bytes) -> None:
    write_steps(metrics, 1, 3)
    with metrics.path.open("ab") as stream:
        stream.write(torn)
    assert [step for step, _ in losses(metrics.path)] == [1, 2, 3]
    write_steps(MetricsFile(metrics.path), 4, 4)
    assert [step for step, _ in losses(metrics.path)] == [1, 2, 3, 4]


def test_a_file_that_cannot_be_written_costs_the_metrics_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricsFile(tmp_path / "missing" / "metrics.jsonl")
    metrics.resume(0)
    write_steps(metrics, 1, 3)
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text


def test_a_full_disk_costs_the_metrics_and_not_the_run(metrics: MetricsFile, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        write_steps(metrics, 1, 9)
        metrics.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caplog.records) == 1
    assert [step for step, _ in losses(metrics.path)] == [1], "the whole lines can be read"


def test_the_summary_counts_every_start(metrics: MetricsFile) -> None:
    for step in (1, 2):
        values = {"train/tokens": 100, "train/step_seconds": 0.5, "train/epoch": step / 4}
        metrics.log(step, values)
    metrics.log(2, {"eval/loss": 1.0})
    again = MetricsFile(metrics.path)
    again.resume(2)
    again.log(3, {"train/tokens": 50, "train/step_seconds": 1.5, "train/epoch": 0.75})
    summary = summarise(metrics.path)
    assert (summary.steps, summary.tokens, summary.seconds, summary.epochs) == (3, 250, 2.5, 0.75)
    assert summarise(metrics.path.with_name("missing")).steps == 0


def test_operations_a_second_are_those_of_the_steps_whose_time_is_known(metrics: MetricsFile) -> None:
    assert operations_per_second(metrics.path) is None
    metrics.log(1, {"train/operations": 900.0, "train/step_seconds": 60.0})
    metrics.log(2, {"train/operations": 100.0, "train/step_seconds": 9.0, "train/busy_seconds": 2.0})
    metrics.log(3, {"train/operations": 300.0, "train/step_seconds": 2.0, "train/busy_seconds": 2.0})
    assert operations_per_second(metrics.path) == 100.0


def test_tail_hands_out_again_what_was_not_sent(metrics: MetricsFile) -> None:
    tail = Tail(metrics.path)
    write_steps(metrics, 1, 700)
    first = next(tail.batches(SenderState()))
    assert len(first) == 500, "1,000 values of two names"
    assert next(tail.batches(SenderState())) == first, "it was not advanced over"
    handed = []
    for batch in tail.batches(SenderState()):
        handed += batch
        tail.advance()
    assert [line["step"] for line in handed] == list(range(1, 701))
    assert list(tail.batches(SenderState())) == []


def test_the_bookkeeping_of_the_summary_stays_in_the_file(metrics: MetricsFile) -> None:
    metrics.log(1, {"train/loss": 1.0, "train/tokens": 10, "train/step_seconds": 0.5, "train/epoch": 0.1})
    metrics.log(2, {"train/tokens": 10})
    [[line]] = Tail(metrics.path).batches(SenderState())
    assert set(line) == {"step", "time", "train/loss"}
    sent = SenderState().after([line])
    assert all(sent.is_sent(line) for line in read_metrics(metrics.path))


def test_tail_waits_for_the_end_of_a_line(metrics: MetricsFile) -> None:
    tail = Tail(metrics.path)
    assert list(tail.batches(SenderState())) == [], "there is no file yet"
    with metrics.path.open("wb", buffering=0) as stream:
        stream.write(b'{"step":1,"time":1.0,')
        assert list(tail.batches(SenderState())) == []
        stream.write(b'"train/loss":2.0}\n')
        [[line]] = tail.batches(SenderState())
        assert line == {"step": 1, "time": 1.0, "train/loss": 2.0}


def test_tail_follows_a_replaced_file_and_skips_what_was_sent(metrics: MetricsFile) -> None:
    tail, state = Tail(metrics.path), SenderState()
    write_steps(metrics, 1, 5)
    for batch in tail.batches(state):
        state = state.after(batch)
        tail.advance()
    metrics.resume(3)
    write_steps(metrics, 4, 7)
    [again] = tail.batches(state)
    assert [line["step"] for line in again] == [6, 7]
