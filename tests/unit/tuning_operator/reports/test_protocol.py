"""Bodies of the Kubeflow status protocol: what is kept, what is left out, what is refused and how it is said."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from llm_tuning.api.tuning_job import Progress
from llm_tuning.core.figures import LOSS, ON_THE_WIRE, wire_name
from llm_tuning.errors import InputError
from llm_tuning.progress.endpoint import status_message
from llm_tuning.progress.snapshot import Snapshot
from tuning_operator.pods.trouble import Trouble
from tuning_operator.reports.protocol import RANGES, parse_reported, parse_status

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def body(values: dict[str, str] | None = None, **status: Any) -> bytes:
    fields = {"progressPercentage": 7, "lastUpdatedTime": "2026-03-01T11:59:58Z"} | status
    if values is not None:
        fields["metrics"] = [{"name": name, "value": value} for name, value in values.items()]
    return json.dumps({"trainerStatus": {name: value for name, value in fields.items() if value != "absent"}}).encode()


def test_what_the_trainer_sends_is_understood() -> None:
    now = Snapshot(
        stage="training",
        step=30,
        total_steps=120,
        epoch=0.75,
        tokens_per_second=1234.56,
        remaining_seconds=90.4,
        metrics={"train/loss": 2.125, "eval/loss": 2.5, "train/grad_norm": 0.1},
    )
    later = datetime.now(UTC).replace(year=2100)
    progress = parse_status(json.dumps(status_message(now)).encode(), later)
    assert progress.model_dump(exclude={"last_update_time"}) == {
        "percent": 25,
        "bytes": None,
        "total_bytes": None,
        "bytes_per_second": None,
        "step": 30,
        "total_steps": 120,
        "epoch": 0.75,
        "loss": 2.125,
        "tokens_per_second": 1234.6,
        "remaining_seconds": 90,
    }


def test_what_a_fetch_sends_is_understood() -> None:
    now = Snapshot(
        bytes=2**31,
        total_bytes=2**33,
        bytes_per_second=1e8,
        remaining_seconds=64,
        words={"model_revision": "a1b2", "waiting_reason": "RateLimited", "waiting_message": "spec.model.uri: 20 s"},
    )
    told = parse_reported(json.dumps(status_message(now)).encode(), NOW)
    progress = told.progress
    assert (progress.bytes, progress.total_bytes, progress.bytes_per_second) == (2**31, 2**33, 1e8)
    assert (progress.percent, progress.remaining_seconds) == (25, 64)
    assert told.revisions == {"model": "a1b2"}
    assert told.waiting == Trouble("RateLimited", "spec.model.uri: 20 s")


@pytest.mark.parametrize("sent", [{"model_revision": "a/b"}, {"model_revision": "x" * 200}, {"waiting_reason": "a b"}])
def test_words_that_do_not_look_as_they_have_to_are_dropped(sent: dict[str, str]) -> None:
    told = parse_reported(body(sent), NOW)
    assert (told.revisions, told.waiting) == ({}, None)


@pytest.mark.parametrize(("percent", "left"), [(99, None), (100, 0)])
def test_no_time_left_is_said_of_a_run_that_is_done_only(percent: int, left: int | None) -> None:
    sent = body(progressPercentage=percent, estimatedRemainingSeconds=0)
    assert parse_status(sent, NOW).remaining_seconds == left


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_moment_before_the_end_is_a_second(seconds: float) -> None:
    now = Snapshot(step=9, total_steps=10, remaining_seconds=seconds)
    assert now.progress().remaining_seconds == 1


def test_the_least_is_a_percentage() -> None:
    progress = parse_status(b'{"trainerStatus": {"progressPercentage": 0}}', NOW)
    assert (progress.percent, progress.step, progress.loss) == (0, 0, None)
    assert progress.last_update_time == "2026-03-01T12:00:00Z"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("2026-03-01T11:59:58Z", "2026-03-01T11:59:58Z"),
        ("2026-03-01T13:59:58.123456+02:00", "2026-03-01T11:59:58Z"),
        ("2031-01-01T00:00:00Z", "2026-03-01T12:00:00Z"),
    ],
)
def test_the_time_is_the_senders_but_never_ahead(sent: str, kept: str) -> None:
    assert parse_status(body(lastUpdatedTime=sent), NOW).last_update_time == kept


@pytest.mark.parametrize("loss", ["nan", "NaN", "inf", "-inf", "-Infinity", "1e300", "1e9999"])
def test_a_loss_that_diverged_is_left_out_and_the_rest_kept(loss: str) -> None:
    progress = parse_status(body({"loss": loss, "current_step": "12"}), NOW)
    assert (progress.loss, progress.step, progress.percent) == (None, 12, 7)


@pytest.mark.parametrize("speed", ["-1", "nan", "1e13"])
def test_an_impossible_speed_is_left_out(speed: str) -> None:
    assert parse_status(body({"tokens_per_second": speed}), NOW).tokens_per_second is None


def test_nothing_but_the_known_metrics_is_kept() -> None:
    progress = parse_status(body({"secret": "row 7: my password", "learning_rate": "0.1"}, note="x"), NOW)
    assert "password" not in progress.model_dump_json()


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"[" * 60_000, "the body is not JSON"),
        (b'{"trainerStatus": {"progressPercentage": NaN}}', "the body is not JSON"),
        (b'{"trainerStatus": {"progressPercentage": ' + b"9" * 5000 + b"}}", "the body is not JSON"),
        (b"[]", "trainerStatus: must be a mapping"),
        (b"{}", "trainerStatus: must be a mapping"),
        (b'{"trainerStatus": 7}', "trainerStatus: must be a mapping"),
        (body(progressPercentage="absent"), "trainerStatus.progressPercentage: is required"),
        (body(progressPercentage=101), "trainerStatus.progressPercentage: must be a whole number from 0 to 100"),
        (body(progressPercentage=-1), "trainerStatus.progressPercentage: must be a whole number from 0 to 100"),
        (body(progressPercentage=1.5), "trainerStatus.progressPercentage: must be a whole number from 0 to 100"),
        (body(progressPercentage=True), "trainerStatus.progressPercentage: must be a whole number from 0 to 100"),
        (body(progressPercentage="7"), "trainerStatus.progressPercentage: must be a whole number from 0 to 100"),
        (body(estimatedRemainingSeconds=-1), "trainerStatus.estimatedRemainingSeconds: must be a whole number"),
        (body(estimatedRemainingSeconds=2**31), "trainerStatus.estimatedRemainingSeconds: must be a whole number"),
        (body(lastUpdatedTime="yesterday"), "trainerStatus.lastUpdatedTime: must be a time"),
        (body(lastUpdatedTime="2026-03-01T12:00:00"), "trainerStatus.lastUpdatedTime: must be a time"),
        (body(lastUpdatedTime="0001-01-01T00:00:00+23:59"), "trainerStatus.lastUpdatedTime: must be a time"),
        (body(lastUpdatedTime=7), "trainerStatus.lastUpdatedTime: must be a time"),
        (body(metrics="loss"), "trainerStatus.metrics: must be a list of at most 200"),
        (body({f"m{n}": "1" for n in range(201)}), "trainerStatus.metrics: must be a list of at most 200"),
        (body(metrics=[{"name": "loss", "value": 2.0}]), "trainerStatus.metrics[0]: must be"),
        (body(metrics=["loss"]), "trainerStatus.metrics[0]: must be"),
        (body({"loss": "low"}), "trainerStatus.metrics[0].value: must be a number: it is the loss"),
        (body({"current_step": "1_000"}), "trainerStatus.metrics[0].value: must be a number: it is the current_step"),
        (body({"loss": "\u0661"}), "trainerStatus.metrics[0].value: must be a number: it is the loss"),
    ],
)
def test_a_wrong_body_is_refused_with_the_field(raw: bytes, problem: str) -> None:
    with pytest.raises(InputError) as error:
        parse_status(raw, NOW)
    assert str(error.value).startswith(problem)


def test_every_problem_is_said_and_no_value_is_quoted() -> None:
    with pytest.raises(InputError) as error:
        parse_status(body({"loss": "my password"}, progressPercentage="canary", lastUpdatedTime="canary"), NOW)
    assert len(error.value.problems) == 3
    assert "canary" not in str(error.value)
    assert "password" not in str(error.value)


def test_what_travels_as_a_metric_is_a_field_of_the_status_with_a_range() -> None:
    assert set(ON_THE_WIRE) == set(RANGES)
    assert set(ON_THE_WIRE) <= set(Progress.model_fields)
    assert wire_name(LOSS) == ON_THE_WIRE["loss"]
