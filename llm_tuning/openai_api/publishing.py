"""What jobs have made becomes routes of InferenceServices: what is to be changed, and the loop that changes it.

`desire` compares what there is with what should be, every time from the beginning. So a kill between two writes, a
second replica and a change by hand all come to the same end; a write on an old version is refused, and tried anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_tuning.api.inference_service import KIND, MAX_ROUTES, MODEL_NAME, NAME_CHARACTERS, Route
from llm_tuning.api.kube import API_VERSION
from llm_tuning.client.errors import ClusterError, Conflict, NotFound
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.errors import InputError, TuningError
from llm_tuning.openai_api.backend import Raw
from llm_tuning.openai_api.bases import Base, Settings
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.job_request import Kept, is_deleted
from llm_tuning.openai_api.models import Tuned, by_age, home_of, route_of, serves, tuned_models
from llm_tuning.openai_api.names import LABEL_API

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
TRIES = 8
"""Of changes that another replica or the operator was before; with a pause, so that two do not go on in step."""
PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Create:
    """An InferenceService that is to be made."""

    body: Raw

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])


@dataclass(frozen=True)
class Change:
    """A merge patch of an InferenceService, for the version that it was made from."""

    name: str
    patch: Raw


def desire(
    jobs: Sequence[TuningJobView], services: Sequence[InferenceServiceView], settings: Settings
) -> list[Create | Change]:
    """Return what is to be changed so that each model is a route, and no deleted one is; nothing once it is so."""
    deleted = {kept.fine_tuned_model for job in jobs if is_deleted(job) and (kept := Kept.of(job)) is not None}
    made = [model for model in tuned_models(jobs) if re.fullmatch(MODEL_NAME, model.name) and len(model.name) <= 128]
    there = by_age(services)
    routes = {
        service.name: [_raw(route) for route in service.spec.routes if route.name not in deleted] for service in there
    }
    creations: list[Create | Change] = []
    for base, base_names in _one_by_one(settings.bases):
        wanted = [model for model in made if model.base in base_names]
        home = home_of(base, there, settings.claim_name)
        if home is not None:
            known = [service for service in there if serves(service, base, settings.claim_name)]
            names = {route["name"] for service in known for route in routes[service.name]}
            room = max(0, MAX_ROUTES - len(routes[home.name]))
            routes[home.name] += _routes([model for model in wanted if model.name not in names][:room])
        elif _is_to_be_made(base, base_names, wanted, settings):
            taken = [service.name for service in services] + [each.name for each in creations]
            creations.append(Create(_service(base_names[0], base, wanted[:MAX_ROUTES], taken, settings)))
    return [
        *creations,
        *(
            _routes_patch(service, routes[service.name])
            for service in there
            if routes[service.name] != [_raw(route) for route in service.spec.routes]
        ),
    ]


def _without(service: InferenceServiceView, name: str) -> Change:
    return _routes_patch(service, [_raw(route) for route in service.spec.routes if route.name != name])


def _routes_patch(service: InferenceServiceView, routes: Sequence[Raw]) -> Change:
    version = service.metadata.get("resourceVersion")
    return Change(service.name, {"metadata": {"resourceVersion": version}, "spec": {"routes": list(routes)}})


def _one_by_one(bases: Mapping[str, Base]) -> Iterator[tuple[Base, list[str]]]:
    """Yield each base once, with all its names; of settings that differ the first name's count."""
    found: dict[tuple[str | None, str | None], list[str]] = {}
    for name, base in bases.items():
        found.setdefault((base.path, base.uri), []).append(name)
    for base_names in found.values():
        yield bases[base_names[0]], base_names


def _is_to_be_made(base: Base, base_names: Iterable[str], wanted: Sequence[Tuned], settings: Settings) -> bool:
    if any(settings.bases[name].serving.always for name in base_names):
        return True
    return any(settings.bases[model.base].serving.on_demand for model in wanted)


def _raw(route: Route) -> Raw:
    return route.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _routes(models: Iterable[Tuned]) -> list[Raw]:
    return [{"name": model.name, "targets": [{"modelId": model.model_id}]} for model in models]


def _service(name: str, base: Base, models: Sequence[Tuned], taken: Sequence[str], settings: Settings) -> Raw:
    serving = base.serving.model_dump(mode="json", by_alias=True, exclude_unset=True)
    spec: Raw = {
        "model": base.model | {"name": name},
        "volume": {"claimName": settings.claim_name},
        "routes": _routes(models),
        **{group: serving[group] for group in ("replicas", "resources", "vllm") if group in serving},
    }
    if settings.api_key_secret is not None:
        spec["apiKeySecret"] = settings.api_key_secret.model_dump(by_alias=True)
    metadata = {"name": service_name(name, taken), "labels": {LABEL_API: "true"}}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def service_name(base_name: str, taken: Iterable[str]) -> str:
    """Return what the service of a base is called: `api-gpt-4-1-mini`, with a hash behind it where that is taken."""
    slug = re.sub(r"[^a-z0-9]+", "-", base_name.lower()).strip("-")
    name = f"api-{slug}"[:NAME_CHARACTERS].rstrip("-")
    if name not in taken:
        return name
    digest = hashlib.sha256(base_name.encode()).hexdigest()[:6]
    return f"{name[: NAME_CHARACTERS - 7].rstrip('-')}-{digest}"


# --- the loop ---------------------------------------------------------------------------------------------------------


async def publish(context: Context) -> None:
    """Keep the routes as they should be, until it is cancelled."""
    said = ""
    while True:
        try:
            await converge(context)
            said = ""
        except (TuningError, OSError) as error:
            if str(error) != said:
                log.warning("models could not be published: %s", error)
            said = str(error)
        await asyncio.sleep(LOOK_SECONDS)


async def converge(context: Context) -> None:
    """Change what is to be changed, and see that nothing is left; raises InputError or a ClusterError."""
    problem: TuningError | None = None
    for _ in range(TRIES):
        seen = await context.catalog.read()
        if seen.unreadable_services:  # it may be the one that a route belongs to
            raise seen.unreadable_services[0].problem
        changes = desire(seen.jobs, seen.services, context.settings)
        if not changes:
            return
        problem = await _apply(context, changes)
    raise problem or Conflict(
        f"routes are still not as they should be after {TRIES} changes: somebody changes them back"
    )


async def take_out(context: Context, name: str) -> None:
    """Take a route out of every service, whatever other changes wait; raises InputError or a ClusterError."""
    problem: TuningError | None = None
    for _ in range(TRIES):
        services = (await context.catalog.read()).services
        changes = [_without(service, name) for service in services if route_of(service, name) is not None]
        if not changes:
            return
        problem = await _apply(context, changes)
    raise problem or Conflict(f"route {name} is put back by somebody")


async def _apply(context: Context, changes: Iterable[Create | Change]) -> TuningError | None:
    """Write each change, whatever becomes of the others; returns a refusal that another try may not meet.

    Raises what the same again would meet again: InputError, or a ClusterError that says no or that nobody answers.
    """
    late: TuningError | None = None
    final: TuningError | None = None
    for change in changes:
        try:
            await _write(context, change)
        except (Conflict, NotFound) as error:
            late = error
        except (InputError, ClusterError) as error:
            final = final or error
    if final is not None:
        raise final
    if late is not None:
        await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
    return late


async def _write(context: Context, change: Create | Change) -> None:
    if isinstance(change, Create):
        await context.backend.create_service(change.body)
        log.info("InferenceService %s is made", change.name)
    else:
        await context.backend.change_service(change.name, change.patch)
        routes: list[Any] = change.patch["spec"]["routes"]
        log.info("InferenceService %s has %d routes now", change.name, len(routes))
