"""The rows on the pages go through the real check, the wrong ones with the very words that are shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_tuning.codes.tune_llm import main
from llm_tuning.errors import EXIT_INPUT, EXIT_OK
from llm_tuning.modes import MODES
from tests.support.pages import ROOT

PAGES = {
    page: (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("datasets.md", "tools.md", "dpo.md", "kto.md")
}
EXAMPLE = re.compile(
    r"^`(?P<name>[\w.-]+)` \((?P<mode>\w+)\)[^\n]*:\n\n"
    r"```json\n(?P<rows>.*?)^```\n(?:\n```text\n(?P<errors>.*?)^```\n)?",
    flags=re.MULTILINE | re.DOTALL,
)
"""A line that names file and mode, the rows, and right below them what the check says."""


@dataclass(frozen=True)
class Example:
    """A file that a page shows, and the refusal that it shows below it."""

    page: str
    name: str
    mode: str
    rows: str
    errors: str


EXAMPLES = [
    Example(page, **{key: value or "" for key, value in found.groupdict().items()})
    for page, text in PAGES.items()
    for found in EXAMPLE.finditer(text)
]


@pytest.mark.parametrize("page", PAGES)
def test_no_example_is_missed(page: str) -> None:
    shown = [example for example in EXAMPLES if example.page == page]
    assert len(shown) == PAGES[page].count("```json\n")
    assert sum(bool(example.errors) for example in shown) == len(re.findall("```text\nerror: ", PAGES[page]))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.page}: {example.name}")
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
