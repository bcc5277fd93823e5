"""Log lines: an event, then its keys, on one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tuning_operator.core.logs import set_up_logging


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of the operator's; what pytest has set up is put back."""
    root, ours = logging.getLogger(), logging.getLogger("tuning_operator")
    before = root.handlers[:], root.level, ours.level
    root.handlers.clear()
    try:
        yield logging.getLogger("tuning_operator.tuning_job.reconciler")
    finally:
        root.handlers[:], root.level = before[0], before[1]
        ours.setLevel(before[2])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]


def test_the_event_comes_first_then_its_keys(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    log.info("job created", extra={"keys": {"job": "team/faq", "gpus": 2, "why": "it was not there"}})
    assert lines(capsys) == ["INFO job created job=team/faq gpus=2 why='it was not there'"]


def test_the_keys_stand_before_a_traceback(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    try:
        raise KeyError("a bug")
    except KeyError:
        log.exception("pass failed", extra={"keys": {"job": "team/faq"}})
    err = capsys.readouterr().err.splitlines()
    assert err[0].endswith("ERROR pass failed job=team/faq")
    assert err[-1] == "KeyError: 'a bug'"


def test_a_value_makes_no_further_line(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    log.info("refused", extra={"keys": {"name": "x\nforged", "empty": ""}})
    assert lines(capsys) == ["INFO refused name='x\\nforged' empty=''"]


def test_libraries_speak_up_from_warnings_on(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    logging.getLogger("kopf").info("chatter")
    logging.getLogger("kopf").warning("trouble")
    assert lines(capsys) == ["WARNING trouble"]
