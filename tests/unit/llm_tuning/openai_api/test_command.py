"""The settings that `tune-llm api` makes of its flags."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from llm_tuning.errors import InputError
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.command import add_arguments, root_of, settings_of


def _settings(*flags: str) -> tuple[Path, Settings]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(flags)
    root = root_of(args)
    return root, settings_of(args, root)


@pytest.fixture
def bases(tmp_path: Path) -> Path:
    """A folder of two, and something else."""
    for name in ("qwen", "tiny"):
        (tmp_path / "base" / name).mkdir(parents=True)
        (tmp_path / "base" / name / "config.json").write_text("{}")
    (tmp_path / "base" / "notes").mkdir()
    return tmp_path / "base"


def test_each_base_has_its_folders_name_and_the_folder_above_has_the_rest(bases: Path) -> None:
    root, settings = _settings("--gpus", "0")
    assert root == bases.parent.resolve()
    assert {name: base.path for name, base in settings.bases.items()} == {"qwen": "base/qwen", "tiny": "base/tiny"}
    assert settings.bases["qwen"].resources.gpus == 0


def test_a_base_may_have_another_name_besides(bases: Path) -> None:
    _, settings = _settings("--base", "gpt-4.1-mini=base/qwen")
    assert settings.bases["gpt-4.1-mini"].path == settings.bases["qwen"].path == "base/qwen"


def test_a_file_of_settings_takes_the_place_of_the_flags(bases: Path, tmp_path: Path) -> None:
    (tmp_path / "api.yaml").write_text("organization: acme\nbases: {x: {path: base/tiny, training: {epochs: 2}}}\n")
    _, settings = _settings("--settings", "api.yaml")
    assert (settings.organization, list(settings.bases), settings.claim_name) == ("acme", ["x"], "local")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--models", "none"), "is no folder"),
        (("--models", "base/notes"), "has no base model"),
        (("--base", "qwen"), "must be NAME=FOLDER"),
        (("--base", "x=base/notes"), "is no base model: it has no config.json"),
        (("--base", "a b=base/qwen"), "letters, digits"),
        (("--folder", "elsewhere"), "give --folder as a folder that has both"),
    ],
)
def test_what_is_no_base_is_refused(bases: Path, flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _settings(*flags)


def test_a_base_that_has_to_be_fetched_is_refused(bases: Path, tmp_path: Path) -> None:
    (tmp_path / "api.yaml").write_text("bases: {x: {uri: 'hf://Qwen/Qwen3-8B'}}\n")
    with pytest.raises(InputError, match="tune-llm sources fetch"):
        _settings("--settings", "api.yaml")
