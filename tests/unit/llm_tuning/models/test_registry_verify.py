"""What `verify` finds wrong with models, bases and the index."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_tuning.models.registry import Registry
from tests.support.models import index_of, make_light_base, publish_model, write_index


def spoil_weights(models: Path) -> None:
    (models / "a" / "adapter_model.safetensors").write_bytes(b"w3ights")


def spoil_file(models: Path) -> None:
    (models / "a" / "adapter_config.json").unlink()


def spoil_manifest(models: Path) -> None:
    (models / "a" / "model.json").write_text("{")


def spoil_entry(models: Path) -> None:
    document = index_of(models)
    document["models"][1]["size"] = 7
    write_index(models, document)


def spoil_base_reference(models: Path) -> None:
    document = index_of(models)
    document["models"].append({"model_id": "x", "base_model_id": "nobody"})
    write_index(models, document)


def double_entry(models: Path) -> None:
    document = index_of(models)
    document["models"].append(document["models"][1])
    write_index(models, document)


def remove_directory(models: Path) -> None:
    shutil.rmtree(models / "a")


def remove_manifest(models: Path) -> None:
    (models / "a" / "model.json").unlink()


def rename_directory(models: Path) -> None:
    (models / "a").rename(models / "c")


def name_nothing(models: Path) -> None:
    document = index_of(models)
    document["models"].append({"name": "x"})
    write_index(models, document)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_weights, ["a/adapter_model.safetensors: is not the file that was published"]),
        (spoil_file, ["a/adapter_config.json: cannot be read (No such file or directory)"]),
        (spoil_manifest, ["a/model.json: is not a valid model.json"]),
        (spoil_entry, ["a: size is 7 in registry.json and 9 by the manifest; run `registry rebuild`"]),
        (spoil_base_reference, ["x: belongs to base 'nobody', which is not in registry.json"]),
        (double_entry, ["a: is in registry.json 2 times"]),
        (remove_directory, ["a: is in registry.json, but its directory is gone"]),
        (remove_manifest, ["a: has no model.json: it is not whole and is never served"]),
        (
            rename_directory,
            [
                "c: model.json says model_id a, but the folder has another name",
                "a: is in registry.json, but its directory is gone",
            ],
        ),
        (name_nothing, ["registry.json: has 1 entries without a model_id"]),
    ],
)
def test_verify_finds(models: Path, spoil: Callable[[Path], None], words: list[str]) -> None:
    base = make_light_base(models.parent / "base" / "tiny")
    publish_model(models, "a", base=base)
    publish_model(models, "b", base=base)
    registry = Registry(models)
    assert registry.verify() == []
    spoil(models)
    problems = [str(problem) for problem in registry.verify()]
    assert len(problems) == len(words), problems
    assert all(any(word in problem for problem in problems) for word in words), problems
    assert registry.verify("b") == []


def test_verify_reports_a_missing_base_once_for_all_its_models(models: Path) -> None:
    for model_id in ("a", "b", "c"):
        publish_model(models, model_id)
    (problem,) = Registry(models).verify()
    assert "base/tiny" in str(problem)
    assert "does not exist (needed by a and 2 more)" in str(problem)


def test_verify_reports_a_base_whose_weights_are_others_now(models: Path) -> None:
    base = make_light_base(models.parent / "base" / "tiny")
    publish_model(models, "a", base=base.model_copy(update={"weight_hash": "0" * 64}))
    (problem,) = Registry(models).verify()
    assert f"base/tiny: has other weights ({base.weight_hash[:12]}) than at training (000000000000" in str(problem)


def test_a_base_beside_the_models_is_found_from_elsewhere(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_light_base(models.parent / "base" / "tiny")
    publish_model(models, "a", base=base.model_copy(update={"path": "base/tiny"}))
    (models.parent / "elsewhere").mkdir()
    monkeypatch.chdir(models.parent / "elsewhere")
    assert Registry(models).verify() == []
