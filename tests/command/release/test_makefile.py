"""make's targets run what they say: a variable that is not there leaves a line that make ignores the failure of."""

from __future__ import annotations

import re

import pytest

from devcluster.release.running import ROOT, run

VARIABLE = re.compile(r"\$\((\w+)\)")
OF_MAKE = {"CURDIR"}


def test_every_variable_of_the_makefile_has_a_value_or_may_be_given() -> None:
    text = (ROOT / "Makefile").read_text()
    defined = set(re.findall(r"^(?:export )?(\w+) \??:?= ?", text, re.MULTILINE))
    may_be_given = set(re.findall(r"\$\(if \$\((\w+)\)", text))
    assert set(VARIABLE.findall(text)) <= defined | may_be_given | OF_MAKE


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        (["lock"], ["uv pip compile"]),
        (["images"], ["-m devcluster.release images"]),
        (["images", "ENGINE=podman"], ["-m devcluster.release images --engine podman"]),
        (["gpu-check"], ["-m tests.gpu.check --device cuda --budget 540 --out build/gpu-check"]),
        (["gpu-check", "DEVICE=cpu"], ["-m tests.gpu.check --device cpu"]),
        (["release-check"], ["-m devcluster.release check"]),
        (["release-check", "TAG=v1.0.0"], ["-m devcluster.release check --tag v1.0.0"]),
    ],
)
def test_a_target_runs_its_program(arguments: list[str], commands: list[str]) -> None:
    lines = [line.strip() for line in run("make", "--dry-run", *arguments, cwd=ROOT).splitlines()]
    for command in commands:
        assert [line for line in lines if command in line]


def test_help_lists_every_target() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = [line.split(maxsplit=1) for line in run("make", "--no-print-directory", "help", cwd=ROOT).splitlines()]
    assert sorted(name for name, _ in listed) == sorted(targets.split())
