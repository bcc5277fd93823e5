"""What TuningJobs mean for files: which are in use, and which results there are. Pure, but for what is `async`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from llm_tuning.client.errors import NotFound
from llm_tuning.client.objects import TuningJobView
from llm_tuning.errors import TuningError
from llm_tuning.openai_api import names
from llm_tuning.openai_api.claim_io import on_claim
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.found import Found
from llm_tuning.openai_api.job_view import created_at, seconds, status_of
from llm_tuning.openai_api.names import file_id_of
from llm_tuning.openai_api.unreadable_job import files_of

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
    jobs: tuple[str, ...]
    """Those that have made the adapter: more than one where it was there already."""


def results(jobs: Iterable[TuningJobView], *, deleted: bool = False) -> list[Result]:
    """Return the result files, one for each adapter, or those `deleted`; those of kubectl's jobs included."""
    found: dict[str, Result] = {}
    for job in jobs:
        if (names.ANNOTATION_RESULT_DELETED in (job.metadata.get("annotations") or {})) != deleted:
            continue
        if job.has_succeeded and job.status is not None and (model_id := job.status.model_id):
            finished = seconds(job.status.completion_time) or created_at(job)
            others = found[model_id].jobs if model_id in found else ()
            found[model_id] = Result(names.result_id(model_id), model_id, finished, (*others, job.name))
    return list(found.values())


async def delete_result(context: Context, result: Result) -> None:
    """Take a result file out of the list; raises InputError or a ClusterError."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for job in result.jobs:
        with suppress(NotFound):  # the job is gone, and the file with it
            await context.backend.change_job(job, {"metadata": {"annotations": {names.ANNOTATION_RESULT_DELETED: now}}})


def uses(jobs: Found[TuningJobView]) -> dict[str, str]:
    """Return the files that jobs still need or may need, each with why."""
    needed = {
        file_id: f"is in use by the job '{job.name}': wait until it has finished, or cancel it first"
        for job in jobs.readable
        if status_of(job) not in ENDED
        for path in (job.spec.dataset.path, job.spec.dataset.evaluation)
        if (file_id := file_id_of(path)) is not None
    }
    for job in jobs.unreadable:
        needed |= {file_id: f"may be in use: {job.why.rstrip('.')}" for file_id in files_of(job)}
    return needed


async def sweep(context: Context) -> None:
    """Remove what is expired and what killed uploads have left, until it is cancelled."""
    said, unreadable = "", ""
    while True:
        try:
            jobs = await context.backend.jobs()
            why = " ".join(job.why for job in jobs.unreadable)
            if why and why != unreadable:
                log.warning("files that it names are kept: %s", why)
            unreadable = why
            await on_claim(context.files.sweep, uses(jobs))
            said = ""
        except (ApiError, TuningError, OSError) as error:
            if str(error) != said:
                log.warning("expired files could not be removed: %s", error)
            said = str(error)
        await asyncio.sleep(SWEEP_SECONDS)
