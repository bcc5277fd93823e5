"""A request for a job, and the TuningJob that it makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.client.specs import checked
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.job_request import build_job, find_start, request_hash
from llm_tuning.openai_api.wire import CreateJob
from tests.support.openai_world import SETTINGS

FILE, OTHER = "file-" + "0" * 24, "file-" + "1" * 24
BASIS = {"model": "gpt-4.1-mini", "training_file": FILE}
JOB_ID = "ftjob-00000000000000000000"


def _job(settings: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    used = Settings.parse(settings or SETTINGS)
    asked = CreateJob.model_validate(BASIS | given)
    return checked(build_job(asked, find_start(asked, used, []), used, job_id=JOB_ID, key="alice"))


def _spec(settings: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    spec: dict[str, Any] = _job(settings, **given)["spec"]
    return spec


def _refusal(settings: dict[str, Any] | None = None, **given: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        _job(settings, **given)
    return caught.value


def test_the_shortest_request_is_a_tuning_job_with_our_defaults() -> None:
    job = _job()
    assert job["metadata"]["name"] == JOB_ID
    assert job["spec"] == {
        "mode": "sft",
        "model": {"path": "base/tiny"},
        "dataset": {"path": f"datasets/uploads/{FILE}/data.jsonl"},
        "volume": {"claimName": "tuning"},
        "resources": {"gpus": 0},
    }


def test_all_that_kubernetes_has_no_field_for_stands_in_one_annotation() -> None:
    metadata = _job(suffix="Support-Bot", metadata={"team": "a"})["metadata"]
    kept = json.loads(metadata["annotations"]["openai.tuning.llmtuning.dev/request"])
    assert kept.pop("fine_tuned_model").startswith("ft:gpt-4.1-mini:acme:support-bot:")
    assert kept == {
        "model": "gpt-4.1-mini",
        "base": "gpt-4.1-mini",
        "learning_rate_multiplier": 1.0,
        "suffix": "Support-Bot",
        "metadata": {"team": "a"},
    }
    assert metadata["labels"]["openai.tuning.llmtuning.dev/key"] == "alice"


@pytest.mark.parametrize(
    "place",
    [
        lambda given: {"hyperparameters": given},
        lambda given: {"method": {"type": "supervised", "supervised": {"hyperparameters": given}}},
        lambda given: {"method": {"type": "supervised"}, "hyperparameters": given},
        lambda given: {
            "method": {"type": "supervised", "supervised": {"hyperparameters": given}},
            "hyperparameters": given,
        },
    ],
)
def test_hyperparameters_are_taken_at_the_old_place_and_the_new(place: Any) -> None:
    spec = _spec(seed=7, **place({"n_epochs": 4, "batch_size": 2, "learning_rate_multiplier": 0.5}))
    assert spec["training"] == {"epochs": 4, "batchSize": 2, "learningRate": 0.0001, "seed": 7}


def test_auto_leaves_what_the_base_or_the_mode_has() -> None:
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert "training" not in _spec(hyperparameters=auto)
    own = {"epochs": 3, "batchSize": 4, "learningRate": 0.0001}
    assert _spec(model="qwen3-8b", hyperparameters=auto)["training"] == own


def test_the_multiplier_is_of_the_bases_own_learning_rate() -> None:
    spec = _spec(model="qwen3-8b", hyperparameters={"learning_rate_multiplier": 2})
    assert spec["training"]["learningRate"] == 0.0002


def test_a_number_of_epochs_or_rows_takes_the_place_of_what_the_base_has_instead() -> None:
    base = {"path": "base/tiny", "training": {"maxSteps": 5, "gradientAccumulationSteps": 4}}
    spec = _spec({**SETTINGS, "bases": {"gpt-4.1-mini": base}}, hyperparameters={"n_epochs": 2, "batch_size": 8})
    assert spec["training"] == {"epochs": 2, "batchSize": 8}


def test_dpo_is_the_mode_dpo() -> None:
    given = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}}
    spec = _spec(method=given)
    assert (spec["mode"], spec["dpo"], spec["training"]) == ("dpo", {"beta": 0.2}, {"epochs": 2})
    given = {"type": "dpo", "dpo": {"hyperparameters": {"beta": "auto"}}}
    assert "dpo" not in _spec(method=given)


def test_the_validation_file_is_all_that_is_held_out() -> None:
    base = {"path": "base/tiny", "training": {"evalFraction": 0.2}}
    settings = {**SETTINGS, "bases": {"gpt-4.1-mini": base}}
    assert _spec(settings)["training"] == {"evalFraction": 0.2}
    spec = _spec(settings, validation_file=OTHER)
    assert spec["dataset"]["evaluation"] == f"datasets/uploads/{OTHER}/data.jsonl"
    assert "training" not in spec


def test_mlflow_is_the_one_integration() -> None:
    given = [{"type": "mlflow", "mlflow": {"experiment": "faq"}}]
    assert _spec(integrations=given)["tracking"] == {"experimentName": "faq"}


def test_a_base_brings_its_queue_its_secret_and_its_tracking() -> None:
    base = {
        "uri": "hf://Qwen/Qwen3-8B",
        "credentialsSecret": {"name": "llm-tuning-hub"},
        "queueName": "team-a",
        "tracking": {"uri": "http://mlflow:5000"},
        "lora": {"rank": 8},
    }
    spec = _spec({**SETTINGS, "bases": {"gpt-4.1-mini": base}})
    assert spec["model"] == {"uri": "hf://Qwen/Qwen3-8B", "credentialsSecret": {"name": "llm-tuning-hub"}}
    assert (spec["queueName"], spec["tracking"], spec["lora"]) == (
        "team-a",
        {"uri": "http://mlflow:5000"},
        {"rank": 8},
    )


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"model": "gpt-4o"}, "model", "there are gpt-4.1-mini, qwen3-8b"),
        ({"model": "ft:gpt-4.1-mini:acme::x"}, "model", "does not exist"),
        ({"suffix": "a b"}, "suffix", "letters, digits, - and _"),
        ({"suffix": "a" * 65}, "suffix", "1 to 64"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type", "mode ppo"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "remove one"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
             "hyperparameters": {"n_epochs": 3}},
            "hyperparameters",
            "remove one",
        ),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations[0].type", "must be 'mlflow'"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1000}},
            "hyperparameters.learning_rate_multiplier",
            "a learning rate of 0.2, which must be between 1e-10 and 0.1",
        ),
    ],
)  # fmt: skip
def test_what_is_not_here_is_refused_by_the_parameters_name(given: dict[str, Any], param: str, words: str) -> None:
    refused = _refusal(**given)
    assert refused.param == param
    assert words in refused.message


def test_the_same_request_has_the_same_hash_and_another_key_another() -> None:
    asked = CreateJob.model_validate(BASIS | {"metadata": {"a": "1", "b": "2"}})
    same = CreateJob.model_validate({"metadata": {"b": "2", "a": "1"}, "seed": None} | BASIS)
    other = CreateJob.model_validate(BASIS | {"seed": 1})
    assert request_hash(asked, "alice") == request_hash(same, "alice")
    assert len({request_hash(each, key) for each, key in ((asked, "alice"), (asked, "bob"), (other, "alice"))}) == 3
