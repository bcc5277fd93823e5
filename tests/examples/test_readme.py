"""What README and docs tell people to type is what the programs understand."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from llm_tuning.api import TuningConfig, TuningJob
from llm_tuning.api.flags import config_flags, option_flags
from llm_tuning.api.inference_service import InferenceService
from llm_tuning.api.yaml import load_yaml_mapping
from llm_tuning.codes.tune_llm import SUBCOMMANDS, _Parser, _run_parser, build

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDER = re.compile(r"<\w+>|\[\w+\]|\.\.\.")


def _blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def _command_lines(page: Path) -> list[str]:
    """Lines of the shell blocks, continued ones joined, without `cd X &&` and comments; usage lines left out."""
    text = "\n".join(_blocks(page, "", "sh", "bash", "shell", "console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").split(" && ")[-1].strip() for line in text.splitlines()]
    return [line for line in lines if line and not PLACEHOLDER.search(line)]


def _starting_with(*starts: str) -> list[object]:
    return [
        pytest.param(line, id=f"{page.name}: {line[:60]}")
        for page in PAGES
        for line in _command_lines(page)
        if line.startswith(starts)
    ]


@pytest.mark.parametrize("line", _starting_with("tune-llm ", "python codes/tune_llm.py "))
def test_every_tune_llm_line_parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[2:] if words[0] == "python" else words[1:]
    if words and words[0] in SUBCOMMANDS:
        parser: argparse.ArgumentParser = _Parser(prog="tune-llm")
        importlib.import_module(f"llm_tuning.commands.{words[0]}").add_arguments(parser)
        parser.add_argument("--debug", action="store_true")
        parser.parse_args(words[1:])
        return
    if words == ["--help"]:
        return
    given = vars(_run_parser().parse_args(words))
    given.pop("debug")
    if given.pop("config", None) is not None:  # its file is the reader's
        given = {"llm_path": "base", "dataset_path": "data.json"} | given
    build(given, config=None)


@pytest.mark.parametrize("line", _starting_with("bash "))
def test_every_launcher_line_names_the_script_and_three_or_four_arguments(line: str) -> None:
    _, script, *arguments = shlex.split(line, comments=True)
    assert any((folder / script).is_file() for folder in (ROOT, ROOT / "llm_tuning"))
    assert len(arguments) in (3, 4)


@pytest.mark.parametrize("line", _starting_with("make "))
def test_every_make_target_exists(line: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(shlex.split(line, comments=True)[1:]) <= set(targets)


def test_the_readme_has_lines_to_test() -> None:
    lines = _command_lines(ROOT / "README.md")
    for start in ("tune-llm --", "tune-llm validate", "tune-llm report", "tune-llm registry", "tune-llm prove"):
        assert [line for line in lines if line.startswith(start)], start
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in lines}


KINDS: dict[str | None, type[TuningConfig | TuningJob | InferenceService]] = {
    None: TuningConfig,
    "TuningJob": TuningJob,
    "InferenceService": InferenceService,
}


def test_yaml_in_the_readme_is_a_configuration_or_a_custom_resource(tmp_path: Path) -> None:
    blocks = _blocks(ROOT / "README.md", "yaml")
    assert blocks
    for block in blocks:
        (tmp_path / "block.yaml").write_text(block)
        values = load_yaml_mapping(tmp_path / "block.yaml")
        KINDS[values.get("kind")].parse(values)


def test_keywords_of_run_tuning_in_the_readme_are_flags() -> None:
    calls = [
        call for block in _blocks(ROOT / "README.md", "python") for call in re.findall(r"run_tuning\((.*)\)", block)
    ]
    names = {flag.name for flag in config_flags() + option_flags()} | {"config"}
    assert calls
    assert {name for call in calls for name in re.findall(r"(\w+)=", call)} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_folders_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    if page.name == "README.md":
        places = re.findall(r"^((?:llm_tuning|docs|examples|tests)/\S*)  ", text, flags=re.MULTILINE)
        assert len(places) > 5
        assert [place for place in places if not (ROOT / place).exists()] == []
