"""docs/reference/openai-api.md: every field of OpenAI's that the fine-tuning API has, and what it is worth there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from docs.tools.tables import table
from llm_tuning.openai_api import wire

Lines = Iterable[str]

TABLES: dict[str, dict[str, type[BaseModel]]] = {
    "Every answer": {"a page": wire.Page, "the error object": wire.ErrorObject},
    "Files": {
        "files.create": wire.FileForm,
        "files.create, expires_after": wire.FileExpiry,
        "the file object": wire.FileObject,
        "files.list": wire.FileQuery,
        "what was deleted": wire.Deleted,
    },
    "Creating a job": {
        "fine_tuning.jobs.create": wire.CreateJob,
        "method": wire.Method,
        "method.supervised": wire.SupervisedMethod,
        "method.supervised.hyperparameters": wire.Hyperparameters,
        "method.dpo": wire.DpoMethod,
        "method.dpo.hyperparameters": wire.DpoHyperparameters,
        "integrations[]": wire.Integration,
        "integrations[].mlflow": wire.MlflowIntegration,
    },
    "Jobs": {
        "the job object": wire.FineTuningJob,
        "error": wire.JobError,
        "hyperparameters": wire.UsedHyperparameters,
        "method ": wire.UsedMethod,
        "method.dpo.hyperparameters ": wire.UsedDpoHyperparameters,
        "fine_tuning.jobs.list": wire.PageQuery,
        "the event object": wire.JobEvent,
        "fine_tuning.jobs.list_events, fine_tuning.jobs.checkpoints.list": wire.EventQuery,
        "the checkpoint object": wire.JobCheckpoint,
        "metrics": wire.CheckpointMetrics,
    },
    "Models": {"models.list": wire.Listed, "the model object": wire.Model, "models.delete": wire.ModelQuery},
}


def openai_page() -> Lines:
    """A table for each object and each request."""
    yield from ("# OpenAI's fields, one by one", "")
    yield "What each field of OpenAI's fine-tuning API is worth in [this one](../coming-from-openai.md): it *works* as"
    yield "there, is *fixed* to one value, or a request that has it is *refused*, with the field's name as `param`."
    yield "A field that is in no table is refused as unknown. Chats are passed on: their fields are those of vLLM."
    yield ""
    for title, objects in TABLES.items():
        yield from (f"## {title}", "")
        for name, model in objects.items():
            yield from (f"### {name.strip()}", "")
            yield from table(("Field", "", ""), _rows(model))


def _rows(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, conformance in conformance_of(model).items():
        yield f"`{name}`", conformance.verdict, conformance.note


def conformance_of(model: type[BaseModel]) -> dict[str, wire.Conformance]:
    """Return what each field says of itself; raises ValueError for one that says nothing."""
    found = {}
    for name, field in model.model_fields.items():
        said = [entry for entry in field.metadata if isinstance(entry, wire.Conformance)]
        if len(said) != 1:
            raise ValueError(f"{model.__name__}.{name} must say once what it is worth")
        found[name] = said[0]
    return found
