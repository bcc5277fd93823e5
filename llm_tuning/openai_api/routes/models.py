"""`/v1/models`: bases, fine-tuned models, and whatever the namespace serves besides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from llm_tuning.openai_api import deletion
from llm_tuning.openai_api.context import Served
from llm_tuning.openai_api.models import unknown
from llm_tuning.openai_api.wire import Deleted, Listed, Model, ModelQuery

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(served: Served) -> Listed[Model]:
    """List models, bases first."""
    seen = await served.catalog.read()
    return Listed(data=[model.as_object() for model in seen.models.values()])


@router.get("/{name:path}")
async def retrieve(name: str, served: Served) -> Model:
    """Describe a model; `owned_by` says what it really is."""
    seen = await served.catalog.read()
    if name not in seen.models:
        raise unknown(name, seen.models)
    return seen.models[name].as_object()


@router.delete("/{name:path}")
async def delete(name: str, served: Served, query: Annotated[ModelQuery, Query()]) -> Deleted:
    """Take a fine-tuned model out of its service, and with `adapter=true` its adapter off the volume."""
    await deletion.delete(served, name, adapter=query.adapter)
    return Deleted(id=name, object="model")
