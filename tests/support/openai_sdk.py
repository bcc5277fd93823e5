"""OpenAI's own SDK on an application in this process, without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
from fastapi import FastAPI
from openai.pagination import AsyncCursorPage, SyncCursorPage
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

PASSED_ON = (ChatCompletion, Completion)
"""Answers of vLLM, which has fields of its own."""
ERROR = {"message", "type", "param", "code"}


class _StrictErrors:
    def _make_status_error(self, err_msg: str, *, body: Any, response: Any) -> openai.APIStatusError:
        error = body.get("error") if isinstance(body, dict) else None
        assert isinstance(error, dict), f"an error is {{'error': ...}}, got {body!r}"
        assert (body.keys(), error.keys()) == ({"error"}, ERROR), f"`error` has {sorted(ERROR)}, got {body}"
        made: openai.APIStatusError = super()._make_status_error(err_msg, body=body, response=response)  # type: ignore[misc]
        return made


class StrictOpenAI(_StrictErrors, openai.AsyncOpenAI):
    """Takes no answer with a field that its types do not have: the SDK itself keeps those in `model_extra`."""

    async def request(self, *given: Any, **how: Any) -> Any:
        """Ask, and look through the answer."""
        return _checked(await super().request(*given, **how))


class StrictSyncOpenAI(_StrictErrors, openai.OpenAI):
    """The same for callers without an event loop; give it `_strict_response_validation=True`, too."""

    def request(self, *given: Any, **how: Any) -> Any:
        """Ask, and look through the answer."""
        return _checked(super().request(*given, **how))


def _checked(answer: Any) -> Any:
    extra = [] if isinstance(answer, PASSED_ON) else list(extra_fields(answer, type(answer).__name__))
    assert not extra, f"the SDK's types do not have {', '.join(extra)}"
    return answer


def extra_fields(value: object, where: str) -> Iterator[str]:
    """Yield the fields of an answer, and of all in it, that the types of the SDK do not have."""
    if isinstance(value, BaseModel):
        known = {"object"} if isinstance(value, AsyncCursorPage | SyncCursorPage) else set()  # OpenAI sends it, too
        yield from (f"{where}.{name}" for name in (value.model_extra or {}).keys() - known)
        for name in type(value).model_fields:
            yield from extra_fields(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from extra_fields(each, f"{where}[{number}]")


def sdk(
    app: FastAPI | httpx2.AsyncBaseTransport, *, strict: bool = True, api_key: str = "k", max_retries: int = 0
) -> openai.AsyncOpenAI:
    """The SDK, as strict as it can be: an answer that its types do not allow, or not all of, is an error.

    `async with` ends it. The application's lifespan does not run.
    """
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False) if isinstance(app, FastAPI) else app
    return (StrictOpenAI if strict else openai.AsyncOpenAI)(
        base_url="http://api/v1",
        api_key=api_key,
        max_retries=max_retries,
        http_client=httpx2.AsyncClient(transport=transport),
        _strict_response_validation=strict,
    )
