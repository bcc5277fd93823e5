"""What is done with jobs: made once, listed, stopped and resumed. The routes are thin over it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from llm_tuning.api.kube import SUBDOMAIN
from llm_tuning.api.tuning_job import NAME_CHARACTERS
from llm_tuning.client.errors import Conflict, NotFound
from llm_tuning.client.objects import TuningJobView
from llm_tuning.errors import InputError
from llm_tuning.openai_api import names, unreadable_job
from llm_tuning.openai_api.backend import Raw
from llm_tuning.openai_api.claim_io import on_claim
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.errors import ApiError, invalid, of_input
from llm_tuning.openai_api.found import Described, Unreadable
from llm_tuning.openai_api.job_request import Kept, build_job, find_start, param_of, request_hash
from llm_tuning.openai_api.job_view import cancelled_at, created_at, status_of, view
from llm_tuning.openai_api.models import route_to
from llm_tuning.openai_api.run_files import RunFiles
from llm_tuning.openai_api.wire import CreateJob, FineTuningJob

log = logging.getLogger(__name__)

RETRY_SECONDS = 600
"""How long a client's retry without an Idempotency-Key is taken for the same request; the SDKs give up sooner."""
KEY_CHARACTERS = 255
TRIES = 8
"""Of a change that the operator, which writes the status, was before; with a pause."""
PAUSE_SECONDS = 0.1
AnyJob = TuningJobView | Unreadable
_ENDED = ("succeeded", "failed", "cancelled")


async def create(
    served: Context, asked: CreateJob, *, key: str, idempotency_key: str | None = None, is_retry: bool = False
) -> TuningJobView:
    """Make the TuningJob of a request, or return the one that it has made: one write, so that nothing is half done."""
    if idempotency_key is not None and not 0 < len(idempotency_key) <= KEY_CHARACTERS:
        raise ApiError(
            400, f"Idempotency-Key must have 1 to {KEY_CHARACTERS} characters.", code="invalid_idempotency_key"
        )
    if idempotency_key is None and is_retry and (made := await _made_before(served, asked, key)) is not None:
        return made
    job_id = names.new_job_id(key, idempotency_key)
    if idempotency_key is not None and (made := await _same_request(served, job_id, asked, key)) is not None:
        return made  # whatever has become of its files since
    await _check_files(served, asked)
    start = find_start(asked, served.settings, await _makers(served, asked.model))
    body = build_job(asked, start, served.settings, job_id=job_id, key=key)
    try:
        made = await served.backend.create_job(body)
    except Conflict:  # another replica was first
        made_there = await _same_request(served, job_id, asked, key)
        if made_there is None:
            raise
        return made_there
    except InputError as error:
        fields = param_of(asked)
        raise of_input(error, lambda field: _param(field, fields)) from None
    log.info("key %s: job %s is created", key, job_id)
    return made


async def _makers(served: Context, model: str) -> list[TuningJobView]:
    """Return the jobs of which one may have made the model; raises ApiError where that one cannot be read."""
    if not model.startswith("ft:"):
        return []
    jobs = await served.backend.jobs()
    for job in jobs.unreadable:
        if (kept := Kept.of(job)) is not None and kept.fine_tuned_model == model:
            raise job.refusal()
    return list(jobs.readable)


async def _made_before(served: Context, asked: CreateJob, key: str) -> TuningJobView | None:
    labels = {names.LABEL_REQUEST: request_hash(asked, key), names.LABEL_KEY: key}
    found = await served.backend.jobs(labels)
    jobs: list[AnyJob] = [*found.readable, *found.unreadable]
    made = max((job for job in jobs if cancelled_at(job) is None), key=created_at, default=None)
    if made is None or time.time() - created_at(made) >= RETRY_SECONDS:
        return None
    if isinstance(made, Unreadable):
        raise made.refusal()
    return made


async def _same_request(served: Context, job_id: str, asked: CreateJob, key: str) -> TuningJobView | None:
    """Return the job of that name, None where there is none; raises ApiError where another request has made it."""
    try:
        there = await served.backend.job(job_id)
    except NotFound:
        return None
    except InputError:
        raise (await _unreadable(served, job_id)).refusal() from None
    if (there.metadata.get("labels") or {}).get(names.LABEL_REQUEST) == request_hash(asked, key):
        return there
    text = f"This Idempotency-Key has made job {job_id} for another request; use a new one for each request."
    raise ApiError(400, text, code="idempotency_key_reused")


async def _check_files(served: Context, asked: CreateJob) -> None:
    for param, file_id in (("training_file", asked.training_file), ("validation_file", asked.validation_file)):
        if file_id is None:
            continue
        if await on_claim(served.files.find, file_id) is None:
            rule = f"must be the id of a file with purpose 'fine-tune', and there is none {file_id[:100]!r}"
            raise invalid(param, rule, code=f"invalid_{param}")


def _param(field: str, fields: Mapping[str, str]) -> str | None:
    """Return the parameter that a field, or what it stands in, came from."""
    return next((param for name, param in fields.items() if field == name or field.startswith(f"{name}.")), None)


async def read(served: Context, job_id: str) -> TuningJobView:
    """Read a job; raises ApiError: 404, and 400 for one that cannot be read."""
    job = await find(served, job_id)
    if isinstance(job, Unreadable):
        raise job.refusal()
    return job


async def find(served: Context, job_id: str) -> AnyJob:
    """Find a job, whether it can be read or not; raises ApiError (404)."""
    try:
        if len(job_id) > NAME_CHARACTERS or not re.fullmatch(SUBDOMAIN, job_id):
            raise NotFound(job_id)
        try:
            return await served.backend.job(job_id)
        except InputError:
            return await _unreadable(served, job_id)
    except NotFound:
        text = f"There is no job {job_id[:100]!r}."
        raise ApiError(404, text, code="fine_tuning_job_not_found", param="fine_tuning_job_id") from None


async def _unreadable(served: Context, job_id: str) -> Unreadable:
    """Return a job that cannot be read; raises NotFound where it is gone, or is another one by now."""
    found = await served.backend.jobs()
    for job in found.unreadable:
        if job.name == job_id:
            return job
    raise NotFound(job_id)


async def listed(served: Context, metadata: Mapping[str, str] | None, *, without: bool = False) -> list[AnyJob]:
    """List the jobs, newest first: those with all of `metadata`, or `without` any."""
    found = await served.backend.jobs()
    jobs: list[AnyJob] = [*found.readable, *found.unreadable]
    if metadata or without:
        jobs = [job for job in jobs if _has(job, metadata or {}, without=without)]
    return sorted(jobs, key=lambda job: (created_at(job), job.name), reverse=True)


def _has(job: Described, metadata: Mapping[str, str], *, without: bool) -> bool:
    kept = Kept.of(job)
    given = (kept.metadata if kept is not None else None) or {}
    return not given if without else metadata.items() <= given.items()


async def cancel(served: Context, job_id: str) -> TuningJobView:
    """End a job for good. Its pods end after a checkpoint; what it has done so far stays until the TuningJob goes."""
    job = await read(served, job_id)
    if status_of(job) == "cancelled" and (job.spec.suspend or job.is_finished):
        return job
    if cancelled_at(job) is not None:  # and kubectl lets it go on
        return await _change(served, job_id, _suspend(True))
    _refuse_ended(job, "cancelled")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return await _change(
        served, job_id, {"metadata": {"annotations": {names.ANNOTATION_CANCELLED: now}}, **_suspend(True)}
    )


async def pause(served: Context, job_id: str) -> TuningJobView:
    """Suspend a job; it goes on from its checkpoint when it is resumed."""
    job = await read(served, job_id)
    _refuse_ended(job, "paused")
    return job if job.spec.suspend else await _change(served, job_id, _suspend(True))


async def resume(served: Context, job_id: str) -> TuningJobView:
    """Let a paused job go on, unless it is cancelled meanwhile."""
    for _ in range(TRIES):
        job = await read(served, job_id)
        _refuse_ended(job, "resumed")
        if not job.spec.suspend:
            return job
        version = {"metadata": {"resourceVersion": job.metadata.get("resourceVersion")}}
        try:
            return await _change(served, job_id, {**version, **_suspend(False)})
        except Conflict:
            await asyncio.sleep(PAUSE_SECONDS)
    raise Conflict(f"Job {job_id} was changed {TRIES} times while it was to be resumed; send the request again.")


def _suspend(value: bool) -> Raw:
    return {"spec": {"suspend": value}}


async def _change(served: Context, job_id: str, patch: Raw) -> TuningJobView:
    try:
        return await served.backend.change_job(job_id, patch)
    except NotFound:
        return await read(served, job_id)  # deleted meanwhile


def _refuse_ended(job: TuningJobView, what: str) -> None:
    status = status_of(job)
    if status in _ENDED or cancelled_at(job) is not None:
        is_so = "is cancelled" if status == "cancelled" else f"has {status}"
        raise ApiError(400, f"Job {job.name} {is_so}; it cannot be {what}.", code="invalid_job_state")


async def answers(served: Context, jobs: Sequence[AnyJob]) -> list[FineTuningJob]:
    """Build the answers, with what the runs have left in models/."""
    readable = (job for job in jobs if not isinstance(job, Unreadable))
    by_kubectl = [job for job in readable if job.has_succeeded and Kept.of(job) is None]
    services = (await served.backend.services()).readable if by_kubectl else ()
    routes = {job.name: route_to(job, services) for job in by_kubectl}
    return await on_claim(lambda: [_answer(served, job, routes.get(job.name)) for job in jobs])


def _answer(served: Context, job: AnyJob, route: str | None) -> FineTuningJob:
    """Build one answer; reads the manifest where it is finished."""
    if isinstance(job, Unreadable):
        return unreadable_job.view(job, served.settings)
    model_id = job.status.model_id if job.has_succeeded and job.status is not None else None
    tokens = run_files(served).trained_tokens(model_id) if model_id else None
    return view(job, served.settings, trained_tokens=tokens, route=route)


def run_files(served: Context) -> RunFiles:
    """Return what runs leave on the claim."""
    return RunFiles(served.backend.root / names.MODELS)
