"""The backend of one machine: its folder is the claim, its objects are files, its trainings processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_tuning.api import inference_service, tuning_job
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.openai_api.backend import Raw
from llm_tuning.openai_api.local.objects import Objects
from llm_tuning.openai_api.local.runner import Runner, jobs_of

CLAIM = "local"
FOLDER = "api"
"""In the claim: the objects, and the logs of their processes."""


class LocalBackend:
    """One folder of this machine."""

    def __init__(self, root: Path) -> None:
        """Take the folder; raises InputError where another server has it."""
        self._root = root
        self._objects = Objects(root / FOLDER)
        self._runner = Runner(self._objects, root)

    @property
    def root(self) -> Path:
        return self._root

    @property
    def claim(self) -> str:
        return CLAIM

    async def jobs(self, labels: Mapping[str, str] | None = None) -> Sequence[TuningJobView]:
        return jobs_of(self._objects, labels)

    async def job(self, name: str) -> TuningJobView:
        return TuningJobView.of(self._objects.read(tuning_job.PLURAL, name))

    async def create_job(self, body: Raw) -> TuningJobView:
        made = TuningJobView.of(self._objects.create(tuning_job.PLURAL, body))
        self._runner.wake()
        return made

    async def change_job(self, name: str, patch: Raw) -> TuningJobView:
        changed = TuningJobView.of(self._objects.change(tuning_job.PLURAL, name, patch))
        self._runner.wake()
        return changed

    async def services(self) -> Sequence[InferenceServiceView]:
        return [InferenceServiceView.of(raw) for raw in self._objects.list(inference_service.PLURAL)]

    async def create_service(self, body: Raw) -> InferenceServiceView:
        return InferenceServiceView.of(self._objects.create(inference_service.PLURAL, body))

    async def change_service(self, name: str, patch: Raw) -> InferenceServiceView:
        return InferenceServiceView.of(self._objects.change(inference_service.PLURAL, name, patch))

    def url(self, service: InferenceServiceView) -> str | None:
        return service.status.url if service.status is not None else None

    async def run(self) -> None:
        """Train what is there."""
        await self._runner.run()

    async def close(self) -> None:
        self._objects.close()
