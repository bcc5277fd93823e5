"""Our fields are those of OpenAI's SDK, no more and no fewer, and each says what it is worth here."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest
from openai.pagination import AsyncCursorPage, AsyncPage
from openai.types import FileDeleted, FileObject, Model, ModelDeleted, file_create_params, file_list_params
from openai.types.fine_tuning import (
    FineTuningJob,
    FineTuningJobEvent,
    dpo_hyperparameters_param,
    dpo_method_param,
    fine_tuning_job,
    job_create_params,
    job_list_events_params,
    job_list_params,
    supervised_hyperparameters_param,
    supervised_method_param,
)
from openai.types.fine_tuning.dpo_hyperparameters import DpoHyperparameters
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint, fine_tuning_job_checkpoint
from openai.types.shared import ErrorObject
from pydantic import BaseModel, ValidationError

from docs.tools.openai_api import TABLES, conformance_of
from llm_tuning.openai_api import wire
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.routes.files import FORM
from llm_tuning.openai_api.upload import FIELDS

ANSWERS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (wire.Listed, AsyncPage),
    (wire.FileObject, FileObject),
    (wire.Deleted, FileDeleted),
    (wire.Deleted, ModelDeleted),
    (wire.FineTuningJob, FineTuningJob),
    (wire.JobError, fine_tuning_job.Error),
    (wire.UsedMethod, fine_tuning_job.Method),
    (wire.UsedHyperparameters, fine_tuning_job.Hyperparameters),
    (wire.UsedDpoHyperparameters, DpoHyperparameters),
    (wire.JobEvent, FineTuningJobEvent),
    (wire.JobCheckpoint, FineTuningJobCheckpoint),
    (wire.CheckpointMetrics, fine_tuning_job_checkpoint.Metrics),
    (wire.Model, Model),
]
REQUESTS: list[tuple[type[BaseModel], Any]] = [
    (wire.CreateJob, job_create_params.JobCreateParams),
    (wire.Method, job_create_params.Method),
    (wire.Hyperparameters, job_create_params.Hyperparameters),
    (wire.Hyperparameters, supervised_hyperparameters_param.SupervisedHyperparametersParam),
    (wire.SupervisedMethod, supervised_method_param.SupervisedMethodParam),
    (wire.DpoMethod, dpo_method_param.DpoMethodParam),
    (wire.DpoHyperparameters, dpo_hyperparameters_param.DpoHyperparametersParam),
    (wire.Integration, job_create_params.Integration),
    (wire.FileForm, file_create_params.FileCreateParams),
    (wire.FileExpiry, file_create_params.ExpiresAfter),
    (wire.FileQuery, file_list_params.FileListParams),
    (wire.EventQuery, job_list_events_params.JobListEventsParams),
]


def _of_openai(model: type[BaseModel]) -> set[str]:
    """Its fields but those of ours that OpenAI has not."""
    return {name for name, said in conformance_of(model).items() if "not OpenAI's" not in said.note}


@pytest.mark.parametrize(("ours", "theirs"), ANSWERS, ids=lambda model: model.__name__)
def test_an_answer_has_every_field_of_openais_and_no_other(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    assert _of_openai(ours) == set(ours.model_fields) == set(theirs.model_fields)


def test_a_page_has_what_the_sdk_reads_of_it_and_the_word_list() -> None:
    assert set(wire.Page.model_fields) == set(AsyncCursorPage.model_fields) | {"object"}


def test_an_error_has_every_field_of_openais_but_the_one_of_its_own_guard() -> None:
    assert set(wire.ErrorObject.model_fields) == set(ErrorObject.model_fields) - {"misalignment"}
    assert ApiError(400, "no").body() == {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    }


def test_the_parts_of_an_upload_are_those_of_the_table() -> None:
    parts = set(wire.FileForm.model_fields) - {"expires_after"}
    parts |= {f"expires_after[{name}]" for name in wire.FileExpiry.model_fields}
    assert set(FIELDS) == set(FORM["properties"]) == parts


@pytest.mark.parametrize(("ours", "theirs"), REQUESTS, ids=lambda model: model.__name__)
def test_a_request_has_every_field_of_openais(ours: type[BaseModel], theirs: Any) -> None:
    assert _of_openai(ours) == set(get_type_hints(theirs))


def test_a_list_of_jobs_takes_openais_query() -> None:
    """`metadata` is read by hand: a query is flat text."""
    assert _of_openai(wire.PageQuery) | {"metadata"} == set(get_type_hints(job_list_params.JobListParams))


def test_every_object_of_the_wire_is_in_the_table() -> None:
    told = {model for objects in TABLES.values() for model in objects.values()}
    bases = {wire.Answer, wire.Request, wire.Query}
    models = {each for _, each in inspect.getmembers(wire, inspect.isclass) if issubclass(each, BaseModel)}
    ours = {model for model in models if model.__module__ == wire.__name__} - bases
    assert {model.__name__ for model in ours - told} == {"UsedSupervised", "UsedDpo"}  # one group each


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [("auto", True), (1, True), (1000, True), (0, False), (1001, False), (True, False), ("1", False), (1.5, False)],
)
def test_a_number_or_auto(value: object, is_taken: bool) -> None:
    try:
        taken = wire.Hyperparameters.model_validate({"n_epochs": value}).n_epochs
    except ValidationError:
        assert not is_taken
    else:
        assert is_taken
        assert taken == value
