"""The examples of docs/datasets.md go through the real check, the wrong ones with the very words that are shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_tuning.codes.tune_llm import main
from llm_tuning.errors import EXIT_INPUT, EXIT_OK
from llm_tuning.modes import MODES
from tests.support.pages import ROOT

PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(
    r"^`(?P<name>[\w.-]+)` \((?P<mode>\w+)\)[^\n]*:\n\n"
    r"```json\n(?P<rows>.*?)^```\n(?:\n```text\n(?P<errors>.*?)^```\n)?",
    flags=re.MULTILINE | re.DOTALL,
)
"""A line that names file and mode, the rows, and right below them what the check says."""


@dataclass(frozen=True)
class Example:
    """A file that the page shows, and the refusal that it shows below it."""

    name: str
    mode: str
    rows: str
    errors: str


EXAMPLES = [
    Example(**{key: value or "" for key, value in found.groupdict().items()}) for found in EXAMPLE.finditer(PAGE)
]


def test_no_example_is_missed() -> None:
    assert len(EXAMPLES) == PAGE.count("```json\n")
    assert sum(bool(example.errors) for example in EXAMPLES) == PAGE.count("```text\n")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_check_says_what_the_page_says(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    Path(example.name).write_text(example.rows)
    code = main(["validate", "--dataset_path", example.name, "--tuning_mode", example.mode])
    assert capsys.readouterr().err == example.errors
    assert code == (EXIT_INPUT if example.errors else EXIT_OK)


def test_every_shape_of_every_mode_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    shown = set()
    for example in EXAMPLES:
        if example.errors:
            continue
        Path(example.name).write_text(example.rows)
        main(["validate", "--dataset_path", example.name, "--tuning_mode", example.mode])
        shown |= {(example.mode, shape) for shape in re.findall(r"rows are ([\w/.]+)", capsys.readouterr().out)}
    assert {mode for mode, _ in shown} == set(MODES)
    for mode in MODES.values():
        missing = {shape.name for shape in mode.rows.shapes} - {name for of, name in shown if of == mode.name}
        assert missing <= {"prompt/completion"}, "which sft has, and the text names"
