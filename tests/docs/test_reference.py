"""docs/reference is what the code says now."""

from __future__ import annotations

import pytest
import yaml

from docs.tools import reference
from docs.tools.reference import FOLDER, PAGES, ROOT, main, read_troubles, render
from llm_tuning.api.flags import config_flags, option_flags

VALUES = """\
# A group.
group:
  # helm-docs' form
  # -- on two lines.
  name: ""
  list: [a, b] # not this

# Far above, and of nobody.

plain: 1
"""


def test_no_page_differs_and_no_other_is_there() -> None:
    assert main(["--check"]) == 0
    assert {path.name for path in (ROOT / FOLDER).iterdir()} == set(PAGES)


def test_the_table_of_the_readme_is_made_from_the_code() -> None:
    block = reference.render_block(ROOT / "README.md", reference.readme_table())
    assert block == (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n| `{messages}` | every answer is learned |" in block


def test_a_page_that_differs_is_told(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    assert main(["--check"]) == 1
    assert capsys.readouterr().out.count("differs from the code") == len(PAGES) + 1, "and the values of the API's chart"
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_every_field_flag_and_value_is_there() -> None:
    job, cli, values = render("tuningjob.md"), render("cli.md"), render("helm-values.md")
    assert "| `maxTokensPerPass` | integer |" in job
    assert "### `spec.training`" in job
    assert "### `status.progress`" in job
    assert [flag.name for flag in config_flags() + option_flags() if f"`--{flag.name}" not in cli] == []
    assert "| `images.operator` |" in values


def test_comments_above_a_value_are_its_text() -> None:
    node = yaml.compose(VALUES)
    assert isinstance(node, yaml.MappingNode)
    assert list(reference._values(node, VALUES.splitlines(), "")) == [
        ("`group`", "", "A group."),
        ("`group.name`", "`''`", "helm-docs' form on two lines."),
        ("`group.list`", "`[a, b]`", ""),
        ("`plain`", "`1`", ""),
    ]


def test_a_reason_told_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="told twice: Busy"):
        read_troubles("### Busy\n\nOne.\n\n| `Busy` | two |\n")


def test_a_reason_without_an_entry_is_named() -> None:
    with pytest.raises(ValueError, match=r"docs/troubleshooting\.md has no entry for Lost, Found"):
        list(reference._reasons(["Busy", "Lost", "Found"], {"Busy": "One."}, ""))


def test_what_would_break_a_table_is_written_otherwise() -> None:
    (_, _, row, _) = reference.table(("A", "B"), [("a|b <c>", "`<d>`")])
    assert row == "| a\\|b \\<c> | `<d>` |"
