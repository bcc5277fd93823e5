"""Refusals in OpenAI's form, and what the project's own errors become in it. Pure.

Both SDKs of OpenAI try 408, 409, 429 and 5xx again by themselves: those statuses stand for what another try may help,
and `NEVER_AGAIN` says so where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_tuning.client.errors import Conflict, Forbidden, NotFound, Unavailable
from llm_tuning.errors import InputError, TuningError
from llm_tuning.openai_api.wire import ErrorObject

NEVER_AGAIN = {"x-should-retry": "false"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "requests"}

ParamOf = Callable[[str], str | None]
"""Which parameter of a request a field of an object came from: `spec.training.epochs` came from `n_epochs`."""


class ApiError(Exception):
    """An answer that is no success: its HTTP status, and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """Build the JSON of the answer."""
        error = ErrorObject(message=self.message, type=self.type, param=self.param, code=self.code)
        return {"error": error.model_dump()}


def invalid(param: str, rule: str, *, code: str = "invalid_value") -> ApiError:
    """Build the answer to a value that breaks a rule: `rule` goes on from the parameter's name."""
    return ApiError(400, f"'{param}' {rule}.", code=code, param=param)


def retry_after(seconds: float) -> dict[str, str]:
    """Build the header that the SDKs wait by."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}


def of_input(error: InputError, param_of: ParamOf = lambda field: None) -> ApiError:
    """Translate what is wrong with an object into what is wrong with the request that it was made of."""
    params = (param_of(problem.field or problem.where) for problem in error.problems)
    return ApiError(400, str(error), code="invalid_value", param=next(filter(None, params), None))


def of_cluster(error: TuningError) -> ApiError:
    """Translate an answer of the API server that is no success."""
    match error:
        case InputError():
            return of_input(error)
        case NotFound():
            return ApiError(404, str(error), code="not_found")
        case Conflict():
            return ApiError(409, f"The object has changed meanwhile: {error}", code="conflict")
        case Forbidden():
            text = f"This server may not do that in its namespace: {error}"
            return ApiError(500, text, code="server_misconfigured", headers=NEVER_AGAIN)
        case Unavailable():
            wait = retry_after(error.retry_after_seconds or 2)
            return ApiError(503, f"The cluster does not answer: {error}", code="cluster_unavailable", headers=wait)
    return ApiError(500, str(error), code="server_error")


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Translate FastAPI's list of errors of a request into the first one's answer, with the others in its message.

    The first part of each `loc` is the place: body, query, path or header.
    """
    found = [_problem(each) for each in errors]
    first = found[0]
    message = " ".join(each.message for each in found[:10])
    return ApiError(400, message, code=first.code, param=first.param)


def _problem(detail: Mapping[str, Any]) -> ApiError:
    place = detail["loc"][1:]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    match detail["type"]:
        case "missing" if not param:
            return ApiError(400, "The body must be a JSON object.", code="invalid_json")
        case "missing":
            return ApiError(
                400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
            )
        case "extra_forbidden":
            return ApiError(400, f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
        case "json_invalid" | "model_attributes_type" if not param or isinstance(place[-1], int):
            return ApiError(400, "The body must be a JSON object.", code="invalid_json")
    kind = "invalid_type" if detail["type"].endswith("_type") else "invalid_value"
    said = str(detail["msg"]).removeprefix("Value error, ")
    said = said.replace("Input should be", "must be").replace("String should", "must").replace("should", "must")
    value = _shown(detail.get("input"))
    if not param:
        return ApiError(400, f"A parameter's name {said}, got {value}.", code=kind)
    return ApiError(400, f"'{param}': {said}, got {value}.", code=kind, param=param)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
