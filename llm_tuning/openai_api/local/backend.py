"""The backend of one machine: its folder is the claim, its objects are files, trainings and vLLM are processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_tuning.api import inference_service, tuning_job
from llm_tuning.api.conditions import ServiceConditionType, ServiceReason
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.openai_api.backend import Raw
from llm_tuning.openai_api.found import Found
from llm_tuning.openai_api.local.objects import Objects
from llm_tuning.openai_api.local.runner import Runner
from llm_tuning.openai_api.local.serving import Serving

CLAIM = "local"
FOLDER = "api"
"""In the claim: the objects, and the logs of their processes."""


class LocalBackend:
    """One folder of this machine."""

    def __init__(self, root: Path) -> None:
        """Take the folder; raises InputError where another server has it."""
        self._root = root
        self._objects = Objects(root / FOLDER)
        self._serving = Serving(self._objects, root)
        self._runner = Runner(self._objects, root, self._serving.room_for)

    @property
    def root(self) -> Path:
        return self._root

    @property
    def claim(self) -> str:
        return CLAIM

    async def jobs(self, labels: Mapping[str, str] | None = None) -> Found[TuningJobView]:
        return Found.of(self._objects.list(tuning_job.PLURAL, labels), TuningJobView.of)

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

    async def services(self) -> Found[InferenceServiceView]:
        return Found.of(self._objects.list(inference_service.PLURAL), InferenceServiceView.of)

    async def create_service(self, body: Raw) -> InferenceServiceView:
        return self._started(InferenceServiceView.of(self._objects.create(inference_service.PLURAL, body)), ())

    async def change_service(self, name: str, patch: Raw) -> InferenceServiceView:
        before = InferenceServiceView.of(self._objects.read(inference_service.PLURAL, name))
        changed = InferenceServiceView.of(self._objects.change(inference_service.PLURAL, name, patch))
        return self._started(changed, [route.name for route in before.spec.routes])

    def _started(self, service: InferenceServiceView, before: Sequence[str]) -> InferenceServiceView:
        """Have it served if it has a new route: who has trained a model will ask it soon."""
        if any(route.name not in before for route in service.spec.routes):
            self._serving.want(service.name)
        return service

    def is_hopeless(self, service: InferenceServiceView) -> bool:
        stalled = service.conditions.get(ServiceConditionType.STALLED)
        return stalled is not None and stalled.status == "True" and stalled.reason == ServiceReason.PLAN_FAILED

    def url(self, service: InferenceServiceView) -> str | None:
        """Return where it answers; one that is asked for is started when there is room for it."""
        return self._serving.url(service)

    async def run(self) -> None:
        """Train and serve what is there."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._runner.run())
            group.create_task(self._serving.run())

    async def close(self) -> None:
        self._objects.close()
