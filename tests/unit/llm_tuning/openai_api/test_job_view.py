"""A TuningJob as OpenAI's job."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.client.objects import TuningJobView
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.job_request import build_job, find_start
from llm_tuning.openai_api.job_view import status_of, view
from llm_tuning.openai_api.wire import CreateJob, FineTuningJob
from tests.support.openai_world import CHECKING, SETTINGS, SUCCEEDED, TRAINING, condition, failed

FILE, OTHER = "file-" + "0" * 24, "file-" + "1" * 24
UPLOADS = "datasets/uploads"
USED = Settings.parse(SETTINGS)
CANCELLED = {"openai.tuning.llmtuning.dev/cancelled": "2026-11-29T08:04:00Z"}


def made(status: dict[str, Any] | None = None, *, suspend: bool = False, **given: Any) -> TuningJobView:
    """The TuningJob of a request."""
    asked = CreateJob.model_validate({"model": "gpt-4.1-mini", "training_file": FILE} | given)
    body = build_job(asked, find_start(asked, USED, []), USED, job_id="ftjob-1", key="alice")
    body["metadata"] |= {"namespace": "team", "uid": "u", "creationTimestamp": "2026-11-29T08:00:00Z"}
    body["spec"]["suspend"] = suspend
    return TuningJobView.of(body | ({"status": status} if status else {}))


def of_kubectl(spec: dict[str, Any], status: dict[str, Any] | None = None) -> TuningJobView:
    """A TuningJob that somebody has applied."""
    metadata = {"name": "faq", "namespace": "team", "uid": "u", "creationTimestamp": "2026-11-29T08:00:00Z"}
    whole = {"volume": {"claimName": "tuning"}, "model": {"path": "base/tiny"}, **spec}
    return TuningJobView.of({"metadata": metadata, "spec": whole} | ({"status": status} if status else {}))


def waiting(reason: str, *, valid: bool = True, stalled: bool = False) -> dict[str, Any]:
    """A status under way."""
    return {
        "conditions": [
            condition("DatasetValid", "True" if valid else "Unknown", "DatasetValid" if valid else reason),
            condition("Reconciling", "True", reason),
            condition("Stalled", "True" if stalled else "False", "Unschedulable" if stalled else "NotStalled"),
        ]
    }


SUSPENDED = [condition("Suspended", "True", "Suspended"), condition("Reconciling", "True", "Suspended")]


@pytest.mark.parametrize(
    ("status", "suspend", "annotations", "word"),
    [
        (None, False, {}, "queued"),
        (waiting("Pending", valid=False), False, {}, "queued"),
        (waiting("Fetching", valid=False), False, {}, "validating_files"),
        (CHECKING, False, {}, "validating_files"),
        (waiting("Queued", valid=False), False, {}, "queued"),
        (waiting("Checking", valid=False, stalled=True), False, {}, "queued"),
        (waiting("Queued"), False, {}, "queued"),
        (waiting("Starting"), False, {}, "queued"),
        (waiting("Starting", stalled=True), False, {}, "queued"),
        (TRAINING, False, {}, "running"),
        (SUCCEEDED, False, {}, "succeeded"),
        (failed("DatasetInvalid", "x"), False, {}, "failed"),
        (TRAINING, True, {}, "paused"),
        (None, True, {}, "paused"),
        ({**TRAINING, "conditions": [*TRAINING["conditions"][:2], *SUSPENDED]}, True, {}, "paused"),
        ({**TRAINING, "conditions": [*TRAINING["conditions"][:2], *SUSPENDED]}, False, {}, "queued"),
        (TRAINING, True, CANCELLED, "cancelled"),
        (failed("RetriesExhausted", "x"), True, CANCELLED, "cancelled"),
        (SUCCEEDED, True, CANCELLED, "succeeded"),
    ],
)
def test_the_status_follows_the_conditions(
    status: dict[str, Any] | None, suspend: bool, annotations: dict[str, str], word: str
) -> None:
    job = made(status, suspend=suspend)
    job.metadata["annotations"] |= annotations
    assert status_of(job) == word


def test_a_run_that_stalls_for_a_while_is_still_running() -> None:
    stalled = condition("Stalled", "True", "TrainerFailing")
    assert status_of(made({**TRAINING, "conditions": [*TRAINING["conditions"], stalled]})) == "running"


def test_a_finished_job_has_its_model_its_tokens_and_numbers_for_auto() -> None:
    answer = view(made(SUCCEEDED, suffix="faq", metadata={"a": "b"}), USED, trained_tokens=1234)
    assert answer.fine_tuned_model is not None
    assert answer.fine_tuned_model.startswith("ft:gpt-4.1-mini:acme:faq:")
    assert (answer.trained_tokens, answer.metadata, answer.organization_id) == (1234, {"a": "b"}, "acme")
    assert answer.finished_at is not None
    assert answer.finished_at - answer.created_at == 300
    assert answer.hyperparameters.model_dump() == {"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert answer.method is not None
    assert answer.method.supervised is not None
    assert answer.method.supervised.hyperparameters == answer.hyperparameters


def test_epochs_are_null_where_steps_say_how_long_it_trains() -> None:
    spec = {"mode": "sft", "dataset": {"path": "datasets/faq.json"}, "training": {"epochs": 3, "maxSteps": 10}}
    assert view(of_kubectl(spec, SUCCEEDED), USED).hyperparameters.n_epochs is None


def test_what_is_not_there_yet_is_null_while_it_runs() -> None:
    answer = view(made(TRAINING, suffix="faq"), USED, trained_tokens=1234)
    assert (answer.fine_tuned_model, answer.trained_tokens, answer.finished_at, answer.error) == (None,) * 4
    assert answer.result_files == []
    assert answer.estimated_finish == answer.created_at + 120 + 60


def test_dpo_has_its_beta() -> None:
    answer = view(made(method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3}}}), USED)
    assert answer.method is not None
    assert answer.method.dpo is not None
    assert answer.method.dpo.hyperparameters.beta == 0.3


@pytest.mark.parametrize(
    ("reason", "message", "code", "param", "words"),
    [
        (
            "DatasetInvalid",
            f"spec.dataset.path: {UPLOADS}/{FILE}/data.jsonl: row 3: output is empty",
            "dataset_invalid",
            "training_file",
            f"training_file: {FILE}: row 3: output is empty",
        ),
        (
            "DatasetInvalid",
            f"spec.dataset.path: {UPLOADS}/{FILE}/data.jsonl, row 3, output: is empty (EmptyOutput); give a text or "
            "remove the row; or set spec.dataset.skipInvalidRows to true to train on the other 1,119",
            "dataset_invalid",
            "training_file",
            f"training_file: {FILE}, row 3, output: is empty (EmptyOutput); give a text or remove the row",
        ),
        (
            "DatasetInvalid",
            f"spec.dataset.evaluation: {UPLOADS}/{OTHER}/data.jsonl: row 1: messages is empty",
            "dataset_invalid",
            "validation_file",
            f"validation_file: {OTHER}: row 1: messages is empty",
        ),
        (
            "DatasetInvalid",
            "set spec.mode to dpo, which learns from it",
            "dataset_invalid",
            "training_file",
            "set method.type to dpo, which learns from it",
        ),
        ("DatasetNotFound", "it is gone", "dataset_not_found", "training_file", "it is gone"),
        ("BaseModelNotFound", "spec.model.path: base/x", "base_model_not_found", "model", "model: base/x"),
        ("AdapterNotFound", "x", "adapter_not_found", "model", "x"),
        ("OutOfMemory", "raise it", "out_of_memory", None, "raise it"),
        ("GPUUnavailable", "no GPU", "gpu_unavailable", None, "no GPU"),
    ],
)
def test_an_error_is_in_the_words_of_the_request(
    reason: str, message: str, code: str, param: str | None, words: str
) -> None:
    error = view(made(failed(reason, message), validation_file=OTHER), USED).error
    assert error is not None
    assert (error.code, error.param, error.message) == (code, param, words)


def test_a_job_of_kubectl_is_a_job_too() -> None:
    answer = view(of_kubectl({"dataset": {"path": "datasets/faq.json"}, "training": {"learningRate": 0.0004}}), USED)
    assert (answer.id, answer.model, answer.training_file) == ("faq", "gpt-4.1-mini", "datasets/faq.json")
    assert answer.hyperparameters.learning_rate_multiplier == 2
    assert answer.metadata is None


@pytest.mark.parametrize(
    ("spec", "file", "model"),
    [
        ({"mode": "ppo", "dataset": {"configMap": {"name": "rows", "key": "a.json"}}}, "configmap/rows/a.json", None),
        (
            {"dataset": {"uri": "s3://rows/faq.jsonl"}, "model": {"path": "base/other"}},
            "s3://rows/faq.jsonl",
            "base/other",
        ),
        ({"dataset": {"uri": "s3://rows/faq.jsonl"}, "model": {"uri": "hf://Qwen/Qwen3-8B"}}, None, "qwen3-8b"),
        ({"dataset": {"path": "d"}, "model": {"uri": "hf://Qwen/Other"}}, None, "hf://Qwen/Other"),
    ],
)
def test_what_kubectl_may_give_has_a_name_here(spec: dict[str, Any], file: str | None, model: str | None) -> None:
    answer = view(of_kubectl(spec, SUCCEEDED), USED, route="faq-live")
    assert isinstance(answer, FineTuningJob)
    assert answer.fine_tuned_model == "faq-live"
    assert file in (None, answer.training_file)
    assert model in (None, answer.model)
    assert (answer.method is None) == (spec.get("mode") == "ppo")


def test_an_annotation_that_somebody_has_spoiled_makes_it_a_job_of_kubectl() -> None:
    job = made(SUCCEEDED)
    job.metadata["annotations"]["openai.tuning.llmtuning.dev/request"] = '{"model": 3}'
    answer = view(job, USED)
    assert (answer.model, answer.fine_tuned_model) == ("gpt-4.1-mini", None)
