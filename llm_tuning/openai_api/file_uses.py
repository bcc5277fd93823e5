"""What TuningJobs mean for files: which are in use, and which results there are. Pure, but for the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from llm_tuning.client.objects import TuningJobView
from llm_tuning.errors import TuningError
from llm_tuning.openai_api.claim_io import on_claim
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.job_view import created_at, seconds, status_of
from llm_tuning.openai_api.names import file_id_of, result_id

log = logging.getLogger(__name__)

RESULT_NAME = "step_metrics.csv"
SWEEP_SECONDS = 300
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Result:
    """The figures of a job that has succeeded, as a file that is made when it is read."""

    id: str
    model_id: str
    created_at: int


def results(jobs: Iterable[TuningJobView]) -> list[Result]:
    """Return the result files of jobs, those that kubectl made included; one for each adapter."""
    found = {}
    for job in jobs:
        if job.has_succeeded and job.status is not None and (model_id := job.status.model_id):
            finished = seconds(job.status.completion_time) or created_at(job)
            found[model_id] = Result(result_id(model_id), model_id, finished)
    return list(found.values())


def uses(jobs: Iterable[TuningJobView]) -> dict[str, str]:
    """Return the files that jobs still need, each with the name of a job that does."""
    return {
        file_id: job.name
        for job in jobs
        if status_of(job) not in ENDED
        for path in (job.spec.dataset.path, job.spec.dataset.evaluation)
        if (file_id := file_id_of(path)) is not None
    }


async def sweep(context: Context) -> None:
    """Remove what is expired and what killed uploads have left, until it is cancelled."""
    said = ""
    while True:
        try:
            in_use = uses(await context.backend.jobs())
            await on_claim(context.files.sweep, in_use)
            said = ""
        except (ApiError, TuningError, OSError) as error:
            if str(error) != said:
                log.warning("expired files could not be removed: %s", error)
            said = str(error)
        await asyncio.sleep(SWEEP_SECONDS)
