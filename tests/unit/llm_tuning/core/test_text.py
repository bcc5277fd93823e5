"""Names of files and rows do not command the terminal that they are shown on."""

from __future__ import annotations

import logging
import sys

import pytest

from llm_tuning.core.console import set_up_logging
from llm_tuning.core.text import one_line, printable, shown_bytes

NAME = "na\nme\t\x1b[31m\r\x07\x7f\x9b\u2028\u202e.jsonl"


def test_commands_are_shown_and_not_sent() -> None:
    assert printable(NAME) == "na\nme\t\\x1b[31m\\x0d\\x07\\x7f\\x9b\\u2028\\u202e.jsonl"
    assert one_line(NAME) == printable(NAME).replace("\n", "\\n").replace("\t", "\\t")
    assert printable("é 你好 🙂") == one_line("é 你好 🙂") == "é 你好 🙂"


def test_a_size_is_said_in_the_unit_that_shows_it() -> None:
    sizes = (0, 86_400, 999_949, 9_412_000, 1_520_000_000)
    assert [shown_bytes(size) for size in sizes] == ["0.0 kB", "86.4 kB", "999.9 kB", "9.4 MB", "1.52 GB"]


def test_neither_does_a_log_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("llm_tuning")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    set_up_logging()
    logger.info("read %s", NAME)
    sys.stderr.flush()
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\\x1b[31m" in err
