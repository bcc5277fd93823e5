"""What docs/install.md tells people to type and to write is what the chart takes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, IMAGES, Chart
from tuning_operator.core.constants import LEASE_NAME
from tuning_operator.reports.tls import SECRET_NAME

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "install.md").read_text()
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
YAML = [text for language, text in BLOCKS if language == "yaml"]
COMMANDS = [
    shlex.split(line) for language, text in BLOCKS if not language for line in text.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.split(":")[0])
def test_every_file_of_values_is_taken(chart: Chart, block: str) -> None:
    assert chart.objects("Deployment", **(IMAGES | yaml.safe_load(block)))


def test_there_is_one_for_each_part() -> None:
    shown = {name for block in YAML for name in yaml.safe_load(block)}
    assert shown >= {"images", "watchNamespaces", "defaults", "tls", "networkPolicy", "metrics"}


def test_the_first_command_installs(chart: Chart) -> None:
    [install] = [command for command in COMMANDS if command[:2] == ["helm", "install"]]
    sets = [part for at, word in enumerate(install) if word == "--set" for part in install[at : at + 2]]
    assert len(sets) == 6
    done = chart.template(*sets)
    assert done.returncode == 0, done.stderr
    created = next(command[3] for command in COMMANDS if command[:3] == ["kubectl", "create", "namespace"])
    assert f"watchNamespaces={{{created}}}" in sets


def test_every_value_of_the_table_exists() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Za-z.]+)`", row)}
    assert {path.split(".")[0] for path in named} == SCHEMA["properties"].keys() - {"global"}
    for path in named:
        schema: dict[str, Any] = SCHEMA
        for part in path.split("."):
            assert part in schema["properties"], path
            schema = schema["properties"][part]


def test_uninstalling_removes_what_is_left_in_each_tls_mode_and_nothing_else(chart: Chart) -> None:
    own, crds = [command for command in COMMANDS if command[0] == "kubectl" and "delete" in command]
    by_cert_manager = chart.objects(tls={"certManager": {"enabled": True}})
    left = {f"lease/{LEASE_NAME}", f"secret/{SECRET_NAME}"}
    left |= {f"secret/{each['spec']['secretName']}" for each in by_cert_manager if each["kind"] == "Certificate"}
    hooks = [each for each in by_cert_manager if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    left |= {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in hooks}
    assert set(own[own.index("--ignore-not-found") + 1 :]) == left
    kept = [each for each in by_cert_manager if "helm.sh/resource-policy" in each["metadata"].get("annotations", {})]
    assert set(crds[crds.index("crd") + 1 :]) == {each["metadata"]["name"] for each in kept}


def test_links_within_the_page_and_to_it_have_their_heading() -> None:
    headings = {
        re.sub(r"[^a-z -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    others = ((CHART.parents[1] / "docs") / "operator.md").read_text()
    linked = re.findall(r"\]\(#([^)]+)\)", PAGE) + re.findall(r"\]\(install.md#([^)]+)\)", others)
    assert len(linked) > 5
    assert set(linked) <= headings
