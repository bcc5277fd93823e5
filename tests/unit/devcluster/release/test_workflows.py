"""The workflows have never run; what can be known of them without running is known: what they call exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.release.running import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
EVERY = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
PINNED = re.compile(r"[\w.-]+/[\w.-]+@v\d+(\.\d+\.\d+)?")


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(path.read_text())["jobs"])


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


def commands(path: Path) -> str:
    return "\n".join(step.get("run", "") for step in steps(path)).replace("\\\n", " ")


@EVERY
def test_it_says_first_that_it_has_not_run(path: Path) -> None:
    assert path.read_text().startswith("# NOT RUN YET: ")


@EVERY
def test_actions_are_named_by_version(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    assert [name for name in used if not PINNED.fullmatch(name)] == []


@EVERY
def test_a_job_may_only_read_unless_it_says_more(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    writing = {name for name, job in jobs(path).items() if "write" in job.get("permissions", {}).values()}
    assert writing <= {"publish"}


@EVERY
def test_make_targets_and_programs_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = set(re.findall(r"\bmake ([\w-]+)", commands(path)))
    assert called
    assert called <= targets
    assert set(re.findall(r"-m devcluster.release (\w+)", commands(path))) <= {"check", "images", "version", "helm"}


@EVERY
def test_nothing_of_an_event_is_put_into_a_command(path: Path) -> None:
    assert "${{" not in commands(path)  # a branch's name could be a command; variables of the environment are quoted


def test_the_registry_is_a_setting() -> None:
    [path] = [path for path in WORKFLOWS if path.name == "release.yaml"]
    text = path.read_text()
    assert "${{ vars.REGISTRY }}" in text
    assert re.findall(r"\b(?:[\w-]+\.)+(?:io|com|org|dev|net)\b", text) == []


def test_what_is_published_was_built_scanned_and_is_signed_in_this_order() -> None:
    [path] = [path for path in WORKFLOWS if path.name == "release.yaml"]
    said = [f"{step.get('uses', '')} {step.get('run', '')}" for step in jobs(path)["publish"]["steps"]]
    order = [
        next(number for number, text in enumerate(said) if word in text)
        for word in ("make release-check", "release images", "scan-action", "docker push", "helm push", "gh release")
    ]
    assert order == sorted(order)
    for push in ("docker push", "helm push"):
        [text] = [text for text in said if push in text]
        assert "cosign sign" in text[text.index(push) :]
    assert yaml.safe_load(path.read_text())["defaults"]["run"]["shell"] == "bash"  # that one stops at a failed pipe
