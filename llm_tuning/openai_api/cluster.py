"""The backend of a namespace: TuningJobs and InferenceServices by the Kubernetes API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from llm_tuning.api import inference_service, tuning_job
from llm_tuning.api.kube import objects_path
from llm_tuning.client.aio import AsyncTuningClient
from llm_tuning.client.api import Api
from llm_tuning.client.connection import Connection
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.openai_api.backend import Raw
from llm_tuning.openai_api.found import Found, ReadOnce


class ClusterBackend:
    """One namespace, whose claim is mounted at `root`."""

    def __init__(self, connection: Connection, root: Path, claim: str) -> None:
        self._client, self._api = AsyncTuningClient(connection=connection), Api(connection)
        self._jobs, self._services = ReadOnce(TuningJobView.of), ReadOnce(InferenceServiceView.of)
        self._root, self._claim = root, claim

    @property
    def root(self) -> Path:
        return self._root

    @property
    def claim(self) -> str:
        return self._claim

    async def jobs(self, labels: Mapping[str, str] | None = None) -> Found[TuningJobView]:
        found = await self._api.items(self._path(tuning_job.PLURAL), labels)
        return self._jobs.list(found, is_all=not labels)

    async def job(self, name: str) -> TuningJobView:
        return TuningJobView.of(await self._api.call("GET", f"{self._path(tuning_job.PLURAL)}/{name}"))

    async def create_job(self, body: Raw) -> TuningJobView:
        made = await self._client.create(body)
        assert isinstance(made, TuningJobView)
        return made

    async def change_job(self, name: str, patch: Raw) -> TuningJobView:
        return await self._client.patch(name, patch)

    async def services(self) -> Found[InferenceServiceView]:
        return self._services.list(await self._api.items(self._path(inference_service.PLURAL)), is_all=True)

    async def create_service(self, body: Raw) -> InferenceServiceView:
        made = await self._client.create(body)
        assert isinstance(made, InferenceServiceView)
        return made

    async def change_service(self, name: str, patch: Raw) -> InferenceServiceView:
        return await self._client.patch_service(name, patch)

    def is_hopeless(self, service: InferenceServiceView) -> bool:
        return False  # somebody else may mend it

    def url(self, service: InferenceServiceView) -> str | None:
        return service.status.url if service.status is not None else None

    async def run(self) -> None:
        """Wait: the operator does the work."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._client.close()
        await self._api.close()

    def _path(self, plural: str) -> str:
        return objects_path(self._api.connection.namespace, plural)
