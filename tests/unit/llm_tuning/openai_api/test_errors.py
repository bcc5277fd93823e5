"""Refusals as OpenAI's SDK reads them."""

from __future__ import annotations

import openai
import pytest
from fastapi import APIRouter

from llm_tuning.client.errors import Conflict, Forbidden, NotFound, Unavailable
from llm_tuning.errors import InputError, Problem
from llm_tuning.openai_api import wire
from llm_tuning.openai_api.app import create_app
from llm_tuning.openai_api.errors import of_cluster, of_input
from tests.support.openai_sdk import sdk

N_EPOCHS = "hyperparameters.n_epochs"


def _client(route: APIRouter) -> openai.AsyncOpenAI:
    return sdk(create_app(None, routers=[route]))  # type: ignore[arg-type] # these routes ask no context


def _route_of_jobs() -> APIRouter:
    router = APIRouter()

    @router.post("/v1/fine_tuning/jobs")
    async def create(job: wire.CreateJob) -> None:
        raise AssertionError(f"{job} should be refused")

    return router


@pytest.mark.parametrize(
    ("given", "code", "param", "words"),
    [
        ({}, "missing_required_parameter", "training_file", "Missing required parameter: 'training_file'."),
        ({"training_file": 3}, "invalid_type", "training_file", "must be a valid string, got 3"),
        ({"training_file": "f", "epochs": 3}, "unknown_parameter", "epochs", "Unknown parameter: 'epochs'."),
        ({"training_file": "f", "body": 3}, "unknown_parameter", "body", "Unknown parameter: 'body'."),
        ({"training_file": "f", "metadata": {"path": 1}}, "invalid_type", "metadata.path", "must be a valid string"),
        ({"training_file": "f", "hyperparameters": {"n_epochs": "3"}}, "invalid_value", N_EPOCHS, "1 to 1000, got '3'"),
        ({"training_file": "f", "hyperparameters": {"n_epochs": 1.5}}, "invalid_value", N_EPOCHS, "a whole number"),
        ({"training_file": "f", "metadata": {"a": 1}}, "invalid_type", "metadata.a", "must be a valid string"),
        ({"training_file": "f", "integrations": [{}]}, "missing_required_parameter", "integrations[0].type", "Missing"),
        ({"training_file": "f", "method": {"type": "ppo"}}, "invalid_value", "method.type", "'supervised', 'dpo' or"),
    ],
)  # fmt: skip
async def test_a_wrong_request_is_refused_with_the_name_of_the_parameter(
    given: dict[str, object], code: str, param: str, words: str
) -> None:
    async with _client(_route_of_jobs()) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post("/fine_tuning/jobs", body={"model": "m"} | given, cast_to=object)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b"x=1", b'{"model": "\xff"}', b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"]
)
async def test_a_body_that_is_no_object_is_told_so(body: bytes) -> None:
    async with _client(_route_of_jobs()) as client:
        with pytest.raises(openai.BadRequestError, match="must be a JSON object") as caught:
            await client.post("/fine_tuning/jobs", content=body, cast_to=object)
    assert (caught.value.code, caught.value.param) == ("invalid_json", None)


async def test_a_name_that_is_no_text_is_told_so() -> None:
    async with _client(_route_of_jobs()) as client:
        with pytest.raises(openai.BadRequestError, match="A parameter's name must be a valid string"):
            await client.post("/fine_tuning/jobs", content=b'{"\\ud800": 1}', cast_to=object)


async def test_what_is_not_here_says_what_is() -> None:
    async with _client(APIRouter()) as client:
        with pytest.raises(openai.NotFoundError, match=r"POST /v1/embeddings.*passes chat on") as caught:
            await client.embeddings.create(model="m", input="x")
    assert caught.value.code == "unknown_url"


async def test_an_unexpected_error_tells_the_log_and_not_the_client(caplog: pytest.LogCaptureFixture) -> None:
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> None:
        raise RuntimeError("secret")

    async with _client(router) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.models.list()
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (NotFound("gone"), 404, {}),
        (Conflict("changed"), 409, {}),
        (Forbidden("no"), 500, {"x-should-retry": "false"}),
        (Unavailable("away"), 503, {"retry-after": "2"}),
        (Unavailable("busy", retry_after_seconds=7.2), 503, {"retry-after": "8"}),
        (InputError("wrong"), 400, {}),
    ],
)
def test_the_clusters_answers_tell_a_client_whether_to_try_again(
    error: Exception, status: int, headers: dict[str, str]
) -> None:
    answer = of_cluster(error)  # type: ignore[arg-type]
    assert (answer.status, answer.headers) == (status, headers)


def test_every_problem_of_an_object_is_named_and_the_first_known_parameter_is_to_blame() -> None:
    problems = [Problem("spec.volume", "is odd"), Problem("spec.training.epochs", "must be at most 1000, got 2000")]
    names = {"spec.training.epochs": "hyperparameters.n_epochs"}
    answer = of_input(InputError(problems), names.get)
    assert answer.param == "hyperparameters.n_epochs"
    assert "spec.volume" in answer.message
    assert "at most 1000" in answer.message
