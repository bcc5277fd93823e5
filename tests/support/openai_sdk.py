"""OpenAI's own SDK on an application in this process, without a socket."""

from __future__ import annotations

import httpx2
import openai
from fastapi import FastAPI


def sdk(app: FastAPI, *, strict: bool = True, api_key: str = "k", max_retries: int = 0) -> openai.AsyncOpenAI:
    """The SDK, as strict as it can be: an answer that its types do not allow is an error.

    `async with` ends it. The application's lifespan does not run.
    """
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return openai.AsyncOpenAI(
        base_url="http://api/v1",
        api_key=api_key,
        max_retries=max_retries,
        http_client=httpx2.AsyncClient(transport=transport),
        _strict_response_validation=strict,
    )
