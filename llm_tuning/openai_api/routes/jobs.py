"""`/v1/fine_tuning/jobs`."""

from __future__ import annotations

import re
import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from pydantic import ValidationError

from llm_tuning.openai_api import checkpoints as kept
from llm_tuning.openai_api import jobs
from llm_tuning.openai_api.claim_io import on_claim
from llm_tuning.openai_api.context import Asking, Served
from llm_tuning.openai_api.errors import of_validation
from llm_tuning.openai_api.events import events
from llm_tuning.openai_api.paging import page
from llm_tuning.openai_api.wire import (
    CreateJob,
    EventQuery,
    FineTuningJob,
    JobCheckpoint,
    JobEvent,
    Page,
    PageQuery,
)

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
_METADATA = re.compile(r"metadata\[(.{0,64})\]", re.DOTALL)
RETRY_COUNT = "x-stainless-retry-count"
"""OpenAI's SDKs say so how often they have sent a request already."""


@router.post("")
async def create(
    asked: CreateJob,
    served: Served,
    caller: Asking,
    request: Request,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> FineTuningJob:
    """Create a job; with the same Idempotency-Key, and in a retry of the SDK, the same one."""
    is_retry = request.headers.get(RETRY_COUNT, "0") not in ("", "0")
    made = await jobs.create(served, asked, key=caller.name, idempotency_key=idempotency_key, is_retry=is_retry)
    return (await jobs.answers(served, [made]))[0]


@router.get("")
async def list_jobs(served: Served, request: Request) -> Page[FineTuningJob]:
    """List jobs, newest first; `metadata[key]=value` chooses, `metadata=null` takes those without."""
    query, metadata, without = _job_query(request)
    found = await jobs.listed(served, metadata, without=without)
    chosen, more = page(found, after=query.after, limit=query.limit, id_of=lambda job: job.name)
    return Page(data=await jobs.answers(served, chosen), has_more=more)


@router.get("/{job_id}")
async def retrieve(job_id: str, served: Served) -> FineTuningJob:
    """Read a job."""
    return (await jobs.answers(served, [await jobs.find(served, job_id)]))[0]


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, served: Served) -> FineTuningJob:
    """End a job for good."""
    return (await jobs.answers(served, [await jobs.cancel(served, job_id)]))[0]


@router.post("/{job_id}/pause")
async def pause(job_id: str, served: Served) -> FineTuningJob:
    """Have a job write a checkpoint and wait."""
    return (await jobs.answers(served, [await jobs.pause(served, job_id)]))[0]


@router.post("/{job_id}/resume")
async def resume(job_id: str, served: Served) -> FineTuningJob:
    """Let a paused job go on."""
    return (await jobs.answers(served, [await jobs.resume(served, job_id)]))[0]


@router.get("/{job_id}/events")
async def list_events(job_id: str, served: Served, query: Annotated[EventQuery, Query()]) -> Page[JobEvent]:
    """List what happened, newest first."""
    job = await jobs.read(served, job_id)
    model_id = job.status.model_id if job.status is not None else None
    points = await on_claim(jobs.run_files(served).points, model_id)
    is_newest_first = query.order == "desc"
    found = events(job, points, time.time(), await served.catalog.made_by(job))
    found = found[::-1] if is_newest_first else found
    chosen, more = page(
        found,
        after=query.after,
        limit=query.limit,
        id_of=lambda event: event.id,
        is_behind=lambda event, after: event.id < after if is_newest_first else event.id > after,
    )
    return Page(data=chosen, has_more=more)


@router.get("/{job_id}/checkpoints")
async def list_checkpoints(job_id: str, served: Served, query: Annotated[EventQuery, Query()]) -> Page[JobCheckpoint]:
    """List the checkpoints that are there, the last step first."""
    job = await jobs.read(served, job_id)
    found = await on_claim(kept.checkpoints, job, jobs.run_files(served))
    found = found if query.order == "desc" else found[::-1]
    chosen, more = page(found, after=query.after, limit=query.limit, id_of=lambda checkpoint: checkpoint.id)
    return Page(data=chosen, has_more=more)


def _job_query(request: Request) -> tuple[PageQuery, dict[str, str], bool]:
    """Read the page and the filter of metadata; raises ApiError."""
    metadata: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if (key := _METADATA.fullmatch(name)) is not None:
            metadata[key[1]] = value
        else:
            others[name] = value
    without = others.get("metadata") == "null" and not metadata
    if without:
        del others["metadata"]
    try:
        return PageQuery.model_validate(others), metadata, without
    except ValidationError as error:
        found = [{**each, "loc": ("query", *each["loc"])} for each in error.errors(include_url=False)]
        raise of_validation(found) from None
