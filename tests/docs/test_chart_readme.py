"""The README of the chart: commands as in docs/install.md, values and their defaults as in values.yaml."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.support.chart import CHART
from tests.support.pages import ROOT, command_lines

README = CHART / "README.md"
ROWS = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", README.read_text(), flags=re.MULTILINE)


def test_its_commands_are_those_of_the_install_page_which_are_tried() -> None:
    commands = command_lines(README)
    assert [line.split()[1] for line in commands if line.startswith("helm")] == [
        "install",
        "test",
        "upgrade",
        "uninstall",
    ]
    assert [line for line in commands if line not in command_lines(ROOT / "docs" / "install.md")] == []


def test_every_value_of_its_table_has_the_default_that_is_shown() -> None:
    assert len(ROWS) == 11
    for path, shown in ROWS:
        value: Any = yaml.safe_load((CHART / "values.yaml").read_text())
        for name in path.split("."):
            value = value[name]
        assert yaml.safe_load(shown) == value, path


def test_no_row_is_of_another_form() -> None:
    assert len(re.findall(r"^\| `", README.read_text(), flags=re.MULTILINE)) == len(ROWS)


def test_the_versions_that_it_asks_for_are_the_charts() -> None:
    least = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert f"Kubernetes {re.findall(r'[0-9]+[.][0-9]+', least)[0]} or newer" in README.read_text()
