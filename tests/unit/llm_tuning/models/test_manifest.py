"""What a manifest keeps, and which settings make another model of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import DatasetSpec, LoraSpec, ModelSpec, PpoSpec, TrainingSpec, TuningConfig
from llm_tuning.errors import InputError
from llm_tuning.models.manifest import config_hash, file_hashes, read_manifest, read_model, write_manifest
from tests.support.models import make_manifest


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = make_manifest("a")
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_fields_of_a_newer_version_survive_reading_and_writing(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest("a"))
    path = tmp_path / "model.json"
    newer = json.loads(path.read_text()) | {"lineage": ["x"]}
    newer["base"]["revision"] = "r2"
    path.write_text(json.dumps(newer))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    write_manifest(tmp_path, manifest)
    assert json.loads(path.read_text()) == newer


def test_a_manifest_of_an_older_version_is_read_without_its_later_fields(tmp_path: Path) -> None:
    base = {"path": "base/tiny", "name": "tiny", "weight_hash": "00"}
    (tmp_path / "model.json").write_text(json.dumps({"model_id": "a", "mode": "sft", "base": base}))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.files == {}
    assert manifest.weight_hash == ""


def test_names_on_disk_are_snake_case_but_for_the_configuration(tmp_path: Path) -> None:
    config = TuningConfig.parse({"model": {"path": "b"}, "dataset": {"path": "d"}})
    write_manifest(tmp_path, make_manifest("a", configuration=config.model_dump(mode="json", by_alias=True)))
    on_disk = json.loads((tmp_path / "model.json").read_text())
    assert {"model_id", "config_hash", "library_versions"} <= on_disk.keys()
    assert on_disk["configuration"]["training"]["batchSize"] == 8
    assert TuningConfig.parse(on_disk["configuration"]) == config


def test_an_infinite_metric_is_null_on_disk_and_not_broken_json(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest("a", metrics={"tuned": {"loss": float("inf"), "kl": float("nan")}}))
    text = (tmp_path / "model.json").read_text()
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["metrics"] == {"tuned": {"loss": None, "kl": None}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model_id": "a", "mo', "EOF"),
        ("", "EOF"),
        ('{"model_id": "a", "mode": "sft"}', "base"),
        ("[]", "object"),
        (b"\xff\xfe", "model.json"),
    ],
)
def test_a_broken_manifest_is_refused_in_one_sentence(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "model.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "model.json") in str(caught.value)


def test_a_directory_or_file_without_manifest_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "file") is None
    assert read_manifest(tmp_path / "nothing") is None


def test_a_copy_under_another_name_is_not_taken_for_the_model(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    write_manifest(tmp_path / "copy", make_manifest("original"))
    with pytest.raises(
        InputError, match=r"copy: model.json says model_id original, but .*; rename the folder to original"
    ):
        read_model(tmp_path / "copy")


def test_file_hashes_go_into_folders_and_leave_the_manifest_out(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "model.json").write_bytes(b"{}")
    assert file_hashes(tmp_path) == {
        "a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # FIPS 180-2, appendix B.1
        "inner/b": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }


def make_config(mode: str = "sft", **groups: dict[str, Any]) -> TuningConfig:
    return TuningConfig.parse({"mode": mode, "model": {"path": "b"}, "dataset": {"path": "d"}} | groups)


def hash_of(config: TuningConfig, **parts: Any) -> str:
    defaults: dict[str, Any] = {
        "base_weight_hash": "base",
        "data_hash": "data",
        "template_hash": "template",
        "start_adapter_weight_hash": None,
        "devices": 1,
    }
    return config_hash(config, **(defaults | parts))


OTHER_TRAINING: dict[str, Any] = {
    "epochs": 2,
    "max_steps": 7,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 0.5,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_length": 512,
    "max_tokens_per_pass": 64,
    "gradient_checkpointing": True,
    "sharding": "full",
    "precision": "fp32",
    "learn": "last",
    "learn_reasoning": False,
    "eval_fraction": 0.1,
    "eval_steps": 3,
    "save_steps": 3,
    "seed": 1,
}
OTHER_LORA: dict[str, Any] = {"rank": 8, "alpha": 8, "dropout": 0.1, "target_modules": "q_proj"}
KNOWN_HASHES = {
    "sft": "38a0c0984633e78ed232549450f5fe50b22481f8904f95855d9d3e5a9ffb9b38",
    "ppo": "193dc0ebbe050ddf060d60437aba872bc8e2f487715d40b54678d68011e07ed2",
}
"""Of `make_config(mode)`, as they were before any later field."""
NEVER_DECIDES = {"max_tokens_per_pass", "gradient_checkpointing", "sharding", "save_steps"}


def test_every_field_of_a_group_has_a_case_here() -> None:
    """A new field must be decided upon in config_hash; this is where its author notices."""
    assert OTHER_TRAINING.keys() == TrainingSpec.model_fields.keys()
    assert OTHER_LORA.keys() == LoraSpec.model_fields.keys()
    assert {"path", "adapter", "quantization"} == ModelSpec.model_fields.keys()
    assert {"path", "evaluation", "columns", "skip_invalid_rows"} == DatasetSpec.model_fields.keys()


@pytest.mark.parametrize("mode", ["sft", "ppo"])
@pytest.mark.parametrize("field", OTHER_TRAINING)
def test_a_training_field_counts_when_it_decides_the_weights(mode: str, field: str) -> None:
    changed = hash_of(make_config(mode, training={field: OTHER_TRAINING[field]}))
    decides = field not in NEVER_DECIDES and (field != "eval_steps" or mode == "ppo")
    assert (changed != hash_of(make_config(mode))) == decides


@pytest.mark.parametrize("mode", ["sft", "ppo"])
@pytest.mark.parametrize("field", OTHER_LORA)
def test_a_lora_field_counts_except_dropout_in_ppo(mode: str, field: str) -> None:
    changed = hash_of(make_config(mode, lora={field: OTHER_LORA[field]}))
    assert (changed != hash_of(make_config(mode))) == (field != "dropout" or mode == "sft")


@pytest.mark.parametrize("field", PpoSpec.model_fields)
def test_every_ppo_field_counts_in_ppo(field: str) -> None:
    assert hash_of(make_config("ppo", ppo={field: 0.07})) != hash_of(make_config("ppo"))


@pytest.mark.parametrize(
    "part",
    [
        {"base_weight_hash": "x"},
        {"data_hash": "x"},
        {"template_hash": "x"},
        {"start_adapter_weight_hash": "x"},
        {"evaluation_hash": "x"},
        {"devices": 2},
    ],
)
def test_the_hash_covers_base_data_template_start_and_rows_a_step(part: dict[str, Any]) -> None:
    assert hash_of(make_config(), **part) != hash_of(make_config())


def test_the_columns_count_and_the_place_of_the_evaluation_rows_does_not() -> None:
    def of(**dataset: Any) -> str:
        return hash_of(make_config(dataset={"path": "d", **dataset}))

    assert len({of(), of(columns={"prompt": "a"}), of(columns={"prompt": "b"}), of(columns={"output": "a"})}) == 4
    assert of(columns={"prompt": "a", "output": "b"}) == of(columns={"output": "b", "prompt": "a"})
    assert of(evaluation="here") == of(evaluation="there")


@pytest.mark.parametrize(("mode", "known"), KNOWN_HASHES.items())
def test_a_run_of_before_keeps_its_hash(mode: str, known: str) -> None:
    """A finished run is found again by the next version: fields that came later do not count at their defaults."""
    assert hash_of(make_config(mode)) == known


def test_the_mode_and_the_quantization_of_the_base_count() -> None:
    assert hash_of(make_config("ppo")) != hash_of(make_config("sft"))
    assert hash_of(make_config(model={"path": "b", "quantization": "4bit"})) != hash_of(make_config())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"training": {"learning_rate": 2e-4, "epochs": 1, "batch_size": 8}}),
        ({}, {"lora": {"target_modules": "all-linear"}}),
        ({}, {"model": {"path": "elsewhere/b"}, "dataset": {"path": "elsewhere/d", "skip_invalid_rows": True}}),
        ({}, {"tracking": {"uri": "http://127.0.0.1:5000", "experiment_name": "other"}}),
        ({"lora": {"target_modules": "q_proj,v_proj"}}, {"lora": {"target_modules": "v_proj,q_proj"}}),
        ({"training": {"batch_size": 8}}, {"training": {"batch_size": 1, "gradient_accumulation_steps": 8}}),
    ],
)
def test_the_same_training_in_other_words_has_the_same_hash(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert hash_of(make_config(**one)) == hash_of(make_config(**other))


def test_the_default_learning_rate_of_ppo_is_its_own() -> None:
    assert hash_of(make_config("ppo")) == hash_of(make_config("ppo", training={"learning_rate": 5e-5}))


def test_batch_8_on_one_device_is_batch_4_on_two() -> None:
    half = make_config(training={"batch_size": 4})
    assert hash_of(make_config(), devices=1) == hash_of(half, devices=2)
    assert hash_of(make_config(), devices=1) != hash_of(half, devices=1)


def test_the_hash_is_the_same_in_every_version() -> None:
    """Pinned: a finished model_id started again after an upgrade must still be recognised."""
    assert hash_of(make_config()) == "38a0c0984633e78ed232549450f5fe50b22481f8904f95855d9d3e5a9ffb9b38"
    assert hash_of(make_config("ppo")) == "193dc0ebbe050ddf060d60437aba872bc8e2f487715d40b54678d68011e07ed2"
