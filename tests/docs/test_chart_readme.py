"""The READMEs of the charts: commands as in docs/install.md, values and their defaults as in values.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import API_CHART, CHART
from tests.support.pages import ROOT, command_lines

README = CHART / "README.md"
ROWS_OF = {CHART: 11, API_CHART: 12}


def rows(chart: Path) -> list[tuple[str, str]]:
    """Values and their defaults."""
    return re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (chart / "README.md").read_text(), flags=re.MULTILINE)


def test_its_commands_are_those_of_the_install_page_which_are_tried() -> None:
    commands = command_lines(README)
    assert [line.split()[1] for line in commands if line.startswith("helm")] == [
        "install",
        "test",
        "upgrade",
        "uninstall",
    ]
    assert [line for line in commands if line not in command_lines(ROOT / "docs" / "install.md")] == []


@pytest.mark.parametrize("chart", ROWS_OF, ids=lambda chart: chart.name)
def test_every_value_of_its_table_has_the_default_that_is_shown(chart: Path) -> None:
    assert len(rows(chart)) == ROWS_OF[chart]
    for path, shown in rows(chart):
        value: Any = yaml.safe_load((chart / "values.yaml").read_text())
        for name in path.split("."):
            value = value[name]
        assert yaml.safe_load(shown) == value, path


@pytest.mark.parametrize("chart", ROWS_OF, ids=lambda chart: chart.name)
def test_no_row_is_of_another_form(chart: Path) -> None:
    text = (chart / "README.md").read_text()
    assert len(re.findall(r"^\| `", text, flags=re.MULTILINE)) == len(rows(chart))


@pytest.mark.parametrize("chart", ROWS_OF, ids=lambda chart: chart.name)
def test_the_versions_that_it_asks_for_are_the_charts(chart: Path) -> None:
    least = yaml.safe_load((chart / "Chart.yaml").read_text())["kubeVersion"]
    text = (chart / "README.md").read_text()
    assert f"Kubernetes {re.findall(r'[0-9]+[.][0-9]+', least)[0]} or newer" in text
