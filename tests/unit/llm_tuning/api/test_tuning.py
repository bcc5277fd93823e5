"""The models: every bound refuses what lies outside it, with the field's path and what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.api import RunOptions, TrainingSpec, TuningConfig
from llm_tuning.api.tuning import BASE_NAME_CHARACTERS, check_model_id, form_model_id
from llm_tuning.errors import InputError

MINIMAL = {"model": {"path": "base"}, "dataset": {"path": "rows.json"}}


def problems_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(InputError) as caught:
        TuningConfig.parse(MINIMAL | values)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({"training": {"learningRate": 0}}, "training.learningRate: must be at least 1e-10, got 0"),
        ({"training": {"learningRate": -1.0}}, "training.learningRate: must be at least 1e-10, got -1.0"),
        ({"training": {"learningRate": float("nan")}}, "training.learningRate: must be a finite number, got nan"),
        ({"training": {"learningRate": 1e9}}, "training.learningRate: must be at most 0.1, got 1000000000.0"),
        ({"training": {"learningRate": "fast"}}, "training.learningRate: must be a valid number, got 'fast'"),
        ({"training": {"epochs": 1.5}}, "training.epochs: must be a valid integer, got 1.5"),
        ({"training": {"epochs": True}}, "training.epochs: must be a valid integer, got True"),
        ({"lora": {"rank": 0}}, "lora.rank: must be at least 1, got 0"),
        ({"lora": {"rank": 513}}, "lora.rank: must be at most 512, got 513"),
        ({"lora": {"targetModules": "q proj"}}, "lora.targetModules: must match pattern"),
        ({"mode": "grpo"}, "mode: must be 'sft', 'ppo', 'dpo' or 'kto', got 'grpo'"),
        ({"mdoe": "sft"}, "mdoe: is not a known field; did you mean mode?"),
        ({"trainning": {}}, "trainning: is not a known field; did you mean training?"),
        (
            {"lora": {"target_module": "all-linear"}},
            "lora.target_module: is not a known field; did you mean targetModules?",
        ),
        ({"lora": {"banana": 1}}, "lora.banana: is not a known field; check the spelling or remove it"),
        ({"ppo": {"klCoef": 0.1}}, "ppo.klCoef: is set but mode is not ppo; set mode: ppo or remove it"),
        ({"model": {}}, "model.path: is required; add it"),
    ],
)
def test_a_bad_value_names_its_field_the_rule_and_the_value(values: dict[str, Any], want: str) -> None:
    assert [problem for problem in problems_of(values) if want in problem], problems_of(values)


def test_all_problems_come_together() -> None:
    found = problems_of({"lora": {"rank": 0, "dropout": 1.0}, "training": {"seed": -1}, "mode": "x"})
    assert len(found) == 4


@pytest.mark.parametrize("model_id", ["a/b", "..", "-x", "a\n", "a\nb", "", "x" * 129, "x" * 300, ".work", "a b", "ä"])
def test_a_model_id_that_is_no_plain_name_is_refused(model_id: str) -> None:
    with pytest.raises(InputError, match=r"model_id|modelId"):
        RunOptions.parse({"model_id": model_id})


@pytest.mark.parametrize("model_id", ["a", "ft_sft_tiny_1_abcdef", "A.b-c_9", "x" * 128])
def test_a_plain_model_id_is_taken(model_id: str) -> None:
    assert RunOptions.parse({"model_id": model_id}).model_id == model_id


@pytest.mark.parametrize("devices", ["gpu", "-1", "0,0", "cpu,0", "0,", "cuda:0", "1.5", "9999"])
def test_unknown_devices_are_refused(devices: str) -> None:
    with pytest.raises(InputError, match="devices"):
        RunOptions.parse({"devices": devices})


def test_both_spellings_of_a_field_are_read_and_camel_case_is_written() -> None:
    config = TuningConfig.parse(MINIMAL | {"training": {"batch_size": 3}})
    assert config == TuningConfig.parse(MINIMAL | {"training": {"batchSize": 3}})
    assert config.model_dump(by_alias=True)["training"]["batchSize"] == 3


def test_derived_numbers() -> None:
    training = TrainingSpec(batch_size=4, gradient_accumulation_steps=3)
    assert training.effective_batch_size(devices=2) == 24
    assert (training.resolved_learning_rate("sft"), training.resolved_learning_rate("ppo")) == (2e-4, 5e-5)
    assert TrainingSpec(learning_rate=1e-3).resolved_learning_rate("ppo") == 1e-3


@pytest.mark.parametrize("base", ["Qwen 3+x", "ä", "b" * 500, ".hidden", "", "two\nlines"])
def test_a_name_is_formed_for_any_base_and_is_a_model_id(base: str) -> None:
    made = form_model_id("sft", base, created=1767323045, digest="666ff6")
    assert check_model_id(made) == made
    assert len(made) <= len("ft_sft__1767323045_666ff6") + BASE_NAME_CHARACTERS
