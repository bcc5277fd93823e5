"""Which models there are, what each really is, and which InferenceService answers it. Pure.

Names are those of the settings' bases, of the models that jobs of this API have made, and of whatever the namespace's
InferenceServices serve besides, in that order where two have the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llm_tuning.api.conditions import ServiceConditionType
from llm_tuning.api.inference_service import MAX_ROUTES, Route
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.openai_api import names
from llm_tuning.openai_api.bases import Base, Settings
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.job_request import Kept, is_deleted
from llm_tuning.openai_api.job_view import created_at, seconds
from llm_tuning.openai_api.wire import Model

SHOWN_NAMES = 20
"""Of all that there are, in a refusal."""


@dataclass(frozen=True)
class Tuned:
    """A model that a job of this API has made."""

    name: str
    base: str
    """The base's name in the settings."""
    model_id: str
    job: TuningJobView


@dataclass(frozen=True)
class Named:
    """A model under the name that clients send."""

    name: str
    created: int
    what: str
    """What it really is."""
    service: InferenceServiceView | None = None
    """Who answers it."""
    served_as: str = ""
    """What that service calls it."""
    missing: str = ""
    """Why no service answers it."""
    is_coming: bool = False
    """One is about to, so that it is worth waiting."""
    tuned: Tuned | None = None
    is_base: bool = False

    def as_object(self) -> Model:
        """Build OpenAI's object."""
        return Model(id=self.name, created=self.created, owned_by=f"llm-tuning: {self.what}")


def tuned_models(jobs: Iterable[TuningJobView]) -> list[Tuned]:
    """Return the models that jobs of this API have made and nobody has deleted, oldest first."""
    made = (_tuned(job) for job in sorted(jobs, key=lambda job: (created_at(job), job.name)) if not is_deleted(job))
    return [model for model in made if model is not None]


def _tuned(job: TuningJobView) -> Tuned | None:
    kept = Kept.of(job)
    model_id = job.status.model_id if job.status is not None else None
    if kept is None or not job.has_succeeded or model_id is None:
        return None
    return Tuned(kept.fine_tuned_model, kept.base, model_id, job)


def serves(service: InferenceServiceView, base: Base, claim: str) -> bool:
    """Return whether a service has that base, and the claim on which adapters of it lie."""
    model, is_here = service.spec.model, service.spec.volume.claim_name == claim
    return is_here and (model.path == base.path if base.path is not None else model.uri == base.uri)


def home_of(base: Base, services: Iterable[InferenceServiceView], claim: str) -> InferenceServiceView | None:
    """Return the service of a base: one that this API has made before any other, then the oldest one."""
    fitting = [service for service in services if serves(service, base, claim) and not _is_ending(service)]
    return min(fitting, key=lambda service: (not is_ours(service), _age(service)), default=None)


def is_ours(service: InferenceServiceView) -> bool:
    """Return whether this API has made a service."""
    return (service.metadata.get("labels") or {}).get(names.LABEL_API) == "true"


def _is_ending(service: InferenceServiceView) -> bool:
    return service.metadata.get("deletionTimestamp") is not None


def _age(service: InferenceServiceView) -> tuple[str, str]:
    return str(service.metadata.get("creationTimestamp") or ""), service.name


def by_age(services: Iterable[InferenceServiceView]) -> list[InferenceServiceView]:
    """Return those that are not being deleted, oldest first."""
    return sorted((service for service in services if not _is_ending(service)), key=_age)


def named_models(
    jobs: Sequence[TuningJobView], services: Sequence[InferenceServiceView], settings: Settings
) -> dict[str, Named]:
    """Return all models by their names, bases first."""
    found: dict[str, Named] = {}
    for model in (*_bases(services, settings), *_tuned_ones(jobs, services, settings), *_others(services)):
        found.setdefault(model.name, model)
    return found


def _bases(services: Sequence[InferenceServiceView], settings: Settings) -> Iterator[Named]:
    for name, base in settings.bases.items():
        home = home_of(base, services, settings.claim_name)
        if home is not None:
            yield Named(name, _made(home), base.source, home, home.spec.base_name, is_base=True)
        else:
            coming = base.serving.always
            why = "its InferenceService is about to be made" if coming else _no_service(name, base, settings.claim_name)
            yield Named(name, 0, base.source, missing=why, is_coming=coming, is_base=True)


def _no_service(name: str, base: Base, claim: str) -> str:
    fix = f"set bases.{name}.serving.always to true, or make one"
    return f"there is no InferenceService of {base.source} on the claim {claim}; {fix}"


def _tuned_ones(
    jobs: Iterable[TuningJobView], services: Sequence[InferenceServiceView], settings: Settings
) -> Iterator[Named]:
    oldest_first = by_age(services)
    for model in tuned_models(jobs):
        finished = seconds(model.job.status.completion_time if model.job.status is not None else None)
        at, base = finished or created_at(model.job), settings.bases.get(model.base)
        what = f"adapter {model.model_id} of {base.source if base is not None else model.base}"
        service = next((each for each in oldest_first if route_of(each, model.name) is not None), None)
        if service is not None:
            yield Named(model.name, at, what, service, model.name, tuned=model)
        else:
            why, coming = _unpublished(model, base, services, settings)
            yield Named(model.name, at, what, missing=why, is_coming=coming, tuned=model)


def _unpublished(
    model: Tuned, base: Base | None, services: Sequence[InferenceServiceView], settings: Settings
) -> tuple[str, bool]:
    """Say why a model has no route, and whether it is about to get one."""
    if base is None:
        return f"its base {model.base} is not among this server's bases; put it there, or make a route by hand", False
    home = home_of(base, services, settings.claim_name)
    if home is None and not (base.serving.on_demand or base.serving.always):
        fix = f"set bases.{model.base}.serving.onDemand to true, or make one"
        return f"there is no InferenceService of {base.source} on the claim {settings.claim_name}; {fix}", False
    if home is not None and len(home.spec.routes) >= MAX_ROUTES:
        fix = "delete a model that nobody needs"
        return f"InferenceService {home.name} has {MAX_ROUTES} routes, as many as it may; {fix}", False
    return "it is about to become a route of its InferenceService", True


def _others(services: Sequence[InferenceServiceView]) -> Iterator[Named]:
    for service in by_age(services):
        at, model = _made(service), service.spec.model
        source = model.uri or model.path
        for route in service.spec.routes:
            yield Named(route.name, at, f"route of InferenceService {service.name}, of {source}", service, route.name)
        name = service.spec.base_name
        yield Named(name, at, f"{source}, by InferenceService {service.name}", service, name, is_base=True)


def _made(service: InferenceServiceView) -> int:
    return seconds(service.metadata.get("creationTimestamp")) or 0


def route_of(service: InferenceServiceView, name: str) -> Route | None:
    """Return a service's route by its name."""
    return next((route for route in service.spec.routes if route.name == name), None)


def route_to(job: TuningJobView, services: Iterable[InferenceServiceView]) -> str | None:
    """Return the name under which what a job of kubectl's has made is asked; None where no route leads to it."""
    model_id = job.status.model_id if job.status is not None else None
    for service in by_age(services):
        if service.spec.volume.claim_name != job.spec.volume.claim_name:
            continue
        for route in service.spec.routes:
            for target in route.targets:
                if target.weight and (target.tuning_job == job.name or (target.model_id or "") == model_id):
                    return route.name
    return None


def condition_of(service: InferenceServiceView) -> str:
    """Say what a service's conditions say of why it does not answer."""
    if service.trouble:
        return service.trouble
    ready = service.conditions.get(ServiceConditionType.READY)
    if ready is None:
        return "the operator has not seen it yet"
    return f"{ready.reason}: {ready.message}" if ready.message else ready.reason


def unknown(name: str, known: Iterable[str]) -> ApiError:
    """Build the answer to a name that no model has, with what there is."""
    there = list(known)
    more = f" and {len(there) - SHOWN_NAMES} more" if len(there) > SHOWN_NAMES else ""
    text = f"The model {name[:200]!r} does not exist here; there are {', '.join(there[:SHOWN_NAMES])}{more}."
    return ApiError(404, text, code="model_not_found", param="model")
