"""A fine-tuned model is deleted: its job says so first, then its route goes, then perhaps the adapter itself.

Killed in between, the loop that publishes does the second step, and the same request again the third.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path

from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.openai_api import names
from llm_tuning.openai_api.catalog import Seen
from llm_tuning.openai_api.claim_io import on_claim
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.errors import NEVER_AGAIN, ApiError, invalid
from llm_tuning.openai_api.found import Described, Found
from llm_tuning.openai_api.job_request import Kept, is_deleted
from llm_tuning.openai_api.models import route_of, tuned_models, unknown
from llm_tuning.openai_api.publishing import take_out
from llm_tuning.openai_api.run_files import MODEL_ID

log = logging.getLogger(__name__)

REMOVED = ".removed"
"""In `models/`: where an adapter goes by one rename, to be emptied. What a kill leaves there goes with the next one."""


async def delete(context: Context, name: str, *, adapter: bool) -> None:
    """Delete a model; raises ApiError for one that is none of this API's, InputError or a ClusterError."""
    if adapter and not context.settings.delete_adapters:
        fix = "leave it out, or have deleteAdapters set to true in the chart's values"
        raise invalid("adapter", f"may not be true on this server: it keeps adapters; {fix}", code="adapters_are_kept")
    seen = await context.catalog.read()
    for each in (*seen.unreadable_services, *(job for job in seen.unreadable_jobs if _makes(job, name))):
        raise each.refusal()
    job = next((job for job in seen.jobs if _makes(job, name)), None)
    model_id = job.status.model_id if job is not None and job.has_succeeded and job.status is not None else None
    if job is None or model_id is None:
        _refuse_by_route(context, seen, name, adapter=adapter)
        await take_out(context, name)
        return
    folder = context.backend.root / names.MODELS / model_id
    is_gone = is_deleted(job) and not any(route_of(service, name) for service in seen.services)
    if is_gone and not (adapter and await on_claim(folder.is_dir)):
        raise unknown(name, seen.models)
    if adapter:
        _refuse_in_use(name, model_id, await context.backend.jobs(), seen.services)
    if not is_deleted(job):
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await context.backend.change_job(job.name, {"metadata": {"annotations": {names.ANNOTATION_MODEL_DELETED: now}}})
    await take_out(context, name)
    if adapter:
        await on_claim(remove, folder)
    log.info("model %s is deleted%s", name, f", and adapter {model_id}" if adapter else "")


def _makes(job: Described, name: str) -> bool:
    kept = Kept.of(job)
    return kept is not None and kept.fine_tuned_model == name


def _refuse_by_route(context: Context, seen: Seen, name: str, *, adapter: bool) -> None:
    """Raise ApiError where a model that no job makes may not be deleted: nothing makes its route anew."""
    model = seen.models.get(name)
    if model is None:
        raise unknown(name, seen.models)
    if model.is_base:
        raise ApiError(400, f"The model {name!r} is a base: only fine-tuned ones can be deleted.", code="is_a_base")
    if not _is_our_name(name, context):
        where = model.service.name if model.service is not None else ""
        text = f"The model {name!r} is a route that was not made here; take it out of InferenceService {where} itself."
        raise ApiError(400, text, code="not_made_here", param="model")
    if adapter:
        text = f"may not be true for {name!r}: its job is gone, and with it which adapter is its own alone"
        raise invalid("adapter", text, code="job_is_gone")


def _is_our_name(name: str, context: Context) -> bool:
    organization = context.settings.organization
    return any(name.startswith(f"ft:{base}:{organization}:") for base in context.settings.bases)


def _refuse_in_use(
    name: str, model_id: str, found: Found[TuningJobView], services: Iterable[InferenceServiceView]
) -> None:
    """Raise ApiError where something else than the model `name` needs the adapter, or may need it."""
    jobs = found.readable
    users = [model.name for model in tuned_models(jobs) if model.model_id == model_id and model.name != name]
    makers = {job.name for job in jobs if job.status is not None and job.status.model_id == model_id}
    users += [
        f"route {route.name} of InferenceService {service.name}"
        for service in services
        for route in service.spec.routes
        if route.name != name
        and any(target.model_id == model_id or target.tuning_job in makers for target in route.targets)
    ]
    users += [f"job {job.name}, which goes on from it" for job in jobs if _goes_on_from(job, model_id, makers)]
    users += [
        f"job {job.name}, which this server cannot read"
        for job in found.unreadable
        if any(f'"{each}"' in job.text for each in (model_id, *makers))
    ]
    if users:
        text = f"may not be true now: adapter {model_id} is also that of {', '.join(users[:5])}"
        raise invalid("adapter", text, code="adapter_in_use")


def _goes_on_from(job: TuningJobView, model_id: str, makers: Collection[str]) -> bool:
    start = job.spec.model.adapter
    return not job.is_finished and start is not None and (start.model_id == model_id or start.tuning_job in makers)


def remove(folder: Path) -> None:
    """Remove an adapter: no reader sees half of it. The registry takes note by itself; raises ApiError."""
    removed = folder.parent / REMOVED
    try:
        if MODEL_ID.fullmatch(folder.name) and folder.is_dir():
            removed.mkdir(exist_ok=True)
            folder.rename(removed / f"{folder.name}.{secrets.token_hex(4)}")
        shutil.rmtree(removed, ignore_errors=True)
    except OSError as error:
        text = f"The adapter {folder.name} could not be removed: {error.strerror}; its route is gone."
        raise ApiError(500, text, code="adapter_not_removed", headers=NEVER_AGAIN) from None
