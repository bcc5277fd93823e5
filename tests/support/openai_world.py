"""A server of the fine-tuning API in this process: a folder as its claim, `FakeApiServer`, and OpenAI's SDK.

What the operator does is done by hand: `server.put("tuningjobs", name, status=...)`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
from fastapi import FastAPI
from openai.types.fine_tuning import FineTuningJob

from llm_tuning.openai_api.app import create_app
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.cluster import ClusterBackend
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.files import FileStore
from llm_tuning.openai_api.names import MODELS
from tests.support.fake_api_server import FakeApiServer, Raw
from tests.support.openai_sdk import sdk

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
SETTINGS: Raw = {
    "organization": "acme",
    "claimName": "tuning",
    "bases": {
        "gpt-4.1-mini": {"path": "base/tiny", "resources": {"gpus": 0}},
        "qwen3-8b": {"uri": "hf://Qwen/Qwen3-8B", "training": {"epochs": 3, "batchSize": 4, "learningRate": 0.0001}},
    },
}


class World:
    """One server and what stands around it."""

    def __init__(
        self, server: FakeApiServer, root: Path, settings: Raw | None = None, *, service_key: str | None = None
    ) -> None:
        self.server, self.root = server, root
        (root / MODELS).mkdir(parents=True, exist_ok=True)
        self.settings = Settings.parse(settings or SETTINGS)
        limits = self.settings.limits
        self.store = FileStore(root, file_bytes=limits.file_bytes, total_bytes=limits.total_bytes)
        self.backend = ClusterBackend(server.connection, root, self.settings.claim_name)
        self.context = Context(self.backend, self.settings, self.store, service_key)
        self.app: FastAPI = create_app(self.context)
        self.client: openai.AsyncOpenAI = sdk(self.app)

    def upload(self, *rows: Mapping[str, Any], filename: str = "rows.jsonl") -> str:
        """Put a file of rows there; returns its id."""
        with self.store.draft() as draft:
            draft.write("".join(json.dumps(row) + "\n" for row in rows or (ROW,)).encode())
            return draft.publish(filename=filename).id

    async def tuned(self, model: str = "gpt-4.1-mini", *, model_id: str = "ft_sft_tiny_1_abcdef", **asked: Any) -> str:
        """Make a job and let it succeed; returns what its model is called. The routes are not made yet."""
        jobs = self.client.fine_tuning.jobs
        made = await jobs.create(model=model, training_file=self.upload(), **asked)
        status = SUCCEEDED | {"modelId": model_id, "adapterPath": f"models/{model_id}"}
        await self.server.put("tuningjobs", made.id, status=status)
        name = (await jobs.retrieve(made.id)).fine_tuned_model
        assert name is not None
        return name

    def services(self) -> dict[str, Raw]:
        """Return the InferenceServices as the cluster has them."""
        return {raw["metadata"]["name"]: raw for raw in self.server.all("inferenceservices")}

    def routes(self, service: str) -> list[str]:
        """Return the names of a service's routes."""
        return [route["name"] for route in self.services()[service]["spec"].get("routes", [])]

    def job(self, name: str) -> Raw:
        """Return a TuningJob as the cluster has it."""
        found = self.server.cluster.get("tuningjobs", name)
        assert found is not None
        return found


@asynccontextmanager
async def open_world(
    root: Path, settings: Raw | None = None, *, service_key: str | None = None
) -> AsyncIterator[World]:
    """Start one; `root` is its claim."""
    server = FakeApiServer()
    await server.start()
    world = World(server, root, settings, service_key=service_key)
    try:
        yield world
    finally:
        await world.client.close()
        await world.backend.close()
        await server.stop()


async def create_job(world: World, **given: Any) -> FineTuningJob:
    """Ask for a job; `given` is laid over what every request has."""
    asked = {"model": "gpt-4.1-mini", "training_file": world.upload()} | given
    return await world.client.fine_tuning.jobs.create(**asked)


async def progress(world: World, name: str, status: Raw) -> None:
    """Do the operator's part."""
    await world.server.put("tuningjobs", name, status=status)


def condition(kind: str, status: str, reason: str, message: str = "", *, at: str = "2026-11-29T08:01:00Z") -> Raw:
    """A condition of a status."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


CHECKING: Raw = {
    "modelId": "ft_sft_tiny_1_abcdef",
    "conditions": [
        condition("DatasetValid", "Unknown", "Checking"),
        condition("Reconciling", "True", "Checking"),
        condition("Finished", "False", "Running"),
    ],
}
TRAINING: Raw = {
    "modelId": "ft_sft_tiny_1_abcdef",
    "startTime": "2026-11-29T08:01:00Z",
    "progress": {"percent": 40, "step": 4, "totalSteps": 10, "loss": 1.5, "remainingSeconds": 60,
                 "lastUpdateTime": "2026-11-29T08:02:00Z"},
    "conditions": [
        condition("DatasetValid", "True", "DatasetValid", "20 of 20 rows are kept"),
        condition("Trained", "Unknown", "Training"),
        condition("Reconciling", "True", "Training", "the trainer runs"),
        condition("Finished", "False", "Running"),
    ],
}  # fmt: skip
SUCCEEDED: Raw = {
    "modelId": "ft_sft_tiny_1_abcdef",
    "adapterPath": "models/ft_sft_tiny_1_abcdef",
    "completionTime": "2026-11-29T08:05:00Z",
    "progress": {"percent": 100, "step": 10, "totalSteps": 10, "loss": 0.1},
    "conditions": [
        condition("DatasetValid", "True", "DatasetValid", "20 of 20 rows are kept"),
        condition("Trained", "True", "Trained", "10 steps", at="2026-11-29T08:05:00Z"),
        condition("Evaluated", "True", "Evaluated", "loss on 2 held-out rows", at="2026-11-29T08:05:00Z"),
        condition("Succeeded", "True", "Succeeded", "adapter in models/x", at="2026-11-29T08:05:00Z"),
        condition("Finished", "True", "Finished", at="2026-11-29T08:05:00Z"),
        condition("Reconciling", "False", "Finished"),
    ],
}


READY: Raw = {
    "url": "http://faq.team.svc",
    "observedGeneration": 1,
    "readyReplicas": 1,
    "conditions": [condition("Ready", "True", "Ready") | {"observedGeneration": 1}],
}
LOADING: Raw = {
    "url": "http://faq.team.svc",
    "conditions": [condition("Ready", "False", "Loading", "1 of 2 adapters is loaded") | {"observedGeneration": 1}],
}
"""Of an InferenceService; put another `url` where somebody answers."""


def failed(reason: str, message: str) -> Raw:
    """The status of a job that has failed."""
    return {
        "completionTime": "2026-11-29T08:03:00Z",
        "conditions": [
            condition("DatasetValid", "False", reason, message),
            condition("Succeeded", "False", reason, message),
            condition("Finished", "True", "Finished", message),
        ],
    }
