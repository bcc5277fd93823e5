"""`/v1/chat/completions` and `/v1/completions`: passed on to the service of the model; their fields are vLLM's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llm_tuning.openai_api.context import Served

router = APIRouter(prefix="/v1", tags=["chat"])


def _body(text: str) -> dict[str, Any]:
    schema = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}}
    content = {"application/json": {"schema": schema | {"description": text}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/chat/completions", response_class=Response, openapi_extra=_body("As OpenAI's, with vLLM's fields."))
async def chat(request: Request, served: Served) -> Response:
    """Ask a base or a fine-tuned model; `stream` sends the answer as it is made."""
    return await served.proxy.receive(request)


@router.post("/completions", response_class=Response, openapi_extra=_body("A plain prompt, with vLLM's fields."))
async def complete(request: Request, served: Served) -> Response:
    """Go on from a prompt."""
    return await served.proxy.receive(request)
