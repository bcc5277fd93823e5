"""The models as they were seen last: a chat asks no API server, and goes on while that one does not answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_tuning.client.errors import ClusterError
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.openai_api.backend import Backend
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.found import Unreadable
from llm_tuning.openai_api.job_request import Kept
from llm_tuning.openai_api.models import Named, named_models, unknown
from llm_tuning.openai_api.names import LABEL_API

OLD_SECONDS = 10.0
"""What is older is read again before a name is looked up; the loop that publishes reads more often."""
UNKNOWN_SECONDS = 1.0
"""What is older is read again before a name counts as unknown."""
PATIENCE_SECONDS = 2.0
"""A cluster that does not answer for so long is asked again later: what was seen before holds until then."""


@dataclass(frozen=True)
class Seen:
    """What there was at one moment."""

    jobs: Sequence[TuningJobView]
    """Those that this API has made."""
    services: Sequence[InferenceServiceView]
    unreadable_jobs: Sequence[Unreadable]
    unreadable_services: Sequence[Unreadable]
    models: dict[str, Named]
    at: float


class Catalog:
    """One for each server."""

    def __init__(self, backend: Backend, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend, self._settings, self._clock = backend, settings, clock
        self._seen: Seen | None = None
        self._tried_at = -math.inf
        """When the cluster did not answer last."""
        self._reading = asyncio.Lock()

    async def read(self) -> Seen:
        """Read what there is now; raises a ClusterError."""
        at = self._clock()
        services = await self._backend.services()
        jobs = await self._backend.jobs({LABEL_API: "true"})  # after them: a deletion writes the job first
        models = named_models(jobs.readable, services.readable, self._settings)
        seen = Seen(jobs.readable, services.readable, jobs.unreadable, services.unreadable, models, at)
        if self._seen is None or self._seen.at <= at:
            self._seen = seen
        return seen

    async def made_by(self, job: TuningJobView) -> Named | None:
        """Return the model that a job has made; raises a ClusterError where nothing was seen yet."""
        kept = Kept.of(job) if job.has_succeeded else None
        if kept is None:
            return None
        model = (await self._recent(OLD_SECONDS)).models.get(kept.fine_tuned_model)
        return model if model is not None and model.tuned is not None else None

    async def find(self, name: str) -> Named:
        """Return the model of that name; raises ApiError (404), and a ClusterError where nothing was seen yet."""
        seen = await self._recent(OLD_SECONDS)
        if name not in seen.models:
            seen = await self._recent(UNKNOWN_SECONDS)
        if name not in seen.models:
            raise unknown(name, seen.models)
        return seen.models[name]

    async def _recent(self, seconds: float) -> Seen:
        """Return what was seen in the last `seconds`, or before where the cluster does not answer soon."""
        if (known := self._known(seconds)) is not None:
            return known
        async with self._reading:
            if (known := self._known(seconds)) is not None:
                return known
            try:
                async with asyncio.timeout(PATIENCE_SECONDS if self._seen is not None else None):
                    return await self.read()
            except (ClusterError, TimeoutError):
                if self._seen is None:
                    raise
                self._tried_at = self._clock()
                return self._seen

    def _known(self, seconds: float) -> Seen | None:
        """Return what was seen, unless that was longer ago and it is time to ask again."""
        if self._seen is None or self._clock() - max(self._seen.at, self._tried_at) >= seconds:
            return None
        return self._seen
