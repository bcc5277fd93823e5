"""Serves the InferenceServices of this machine by one vLLM: the one that was asked for last.

| What | Then |
| --- | --- |
| a model is asked for, or published | its base is started; another that runs is ended first, once it is idle |
| a training begins and there is no room for both | vLLM is ended first, after the answers under way |
| jobs wait that leave no room | vLLM starts when they have ended; a chat is answered 503 until then |
| vLLM ends by itself | it is started again, after longer and longer pauses; the status has the cause |
| an adapter comes that it was not planned for | it is started again, for that one too |
| the server ends | vLLM ends with it, also where the server is killed |

Level-triggered as the operator is: nothing is kept but what runs and who was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.agent.contract import DesiredRoute, DesiredRoutes, DesiredTarget
from llm_tuning.api import inference_service, tuning_job
from llm_tuning.api.conditions import AdapterReason, ConditionType, ServiceReason
from llm_tuning.api.inference_service import RouteTarget
from llm_tuning.client.errors import NotFound
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.openai_api.local.engine import LocalEngine
from llm_tuning.openai_api.local.machine import Machine, find_machine
from llm_tuning.openai_api.local.objects import Objects, timestamp
from llm_tuning.openai_api.local.runner import jobs_of, line_of
from llm_tuning.openai_api.local.service_status import Found, Trouble, service_status

log = logging.getLogger(__name__)

PLURAL = inference_service.PLURAL
FOLDER = "serving"
"""Beside the objects: vLLM's log, and what it needs."""
PROJECT = Path(__file__).resolve().parents[3]
LOOK_SECONDS = 0.5
IDLE_SECONDS = 5.0
"""Between two looks while nothing is asked for; a chat wakes it at once."""
LINGER_SECONDS = 5.0
"""An engine that was asked so short a time ago is not ended for another base."""
MOST_LINGER_SECONDS = 60.0
"""Nobody waits longer for the other base, however many ask for this one."""
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 5.0, 300.0


@dataclass
class _Failed:
    """An InferenceService that could not be served."""

    generation: int
    trouble: Trouble
    pause: float
    again_at: float


class Serving:
    """One machine's engine."""

    def __init__(self, objects: Objects, root: Path, environment: Mapping[str, str] = os.environ) -> None:
        self._objects, self._root, self._environment = objects, root, environment
        self._machine: Machine | None = None
        self._engine: LocalEngine | None = None
        self._asked_at = 0.0
        """When the engine's InferenceService was asked for."""
        self._wanted: tuple[str, float] | None = None
        """The InferenceService that was asked for last, and since when."""
        self._leaving = False
        """The engine is being ended."""
        self._training: str | None = None
        """The job that has the machine for itself."""
        self._failed: dict[str, _Failed] = {}
        """By uid."""
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()

    # --- what others call --------------------------------------------------------------------------------------------

    def url(self, service: InferenceServiceView) -> str | None:
        """Return where its agent answers, None while it has none. Whoever asks for it wants it started."""
        engine = self._engine
        if engine is not None and not self._leaving and engine.service.uid == service.uid:
            self._asked_at = time.monotonic()
            return engine.url
        self.want(service.name)
        return None

    def want(self, name: str) -> None:
        """Start this InferenceService when there is room for it."""
        if self._engine is None or self._leaving or self._engine.service.name != name:
            since = self._wanted[1] if self._wanted is not None else time.monotonic()
            self._wanted = (name, since)  # several that are asked for by turns wait no longer than one
        self._wake.set()

    @asynccontextmanager
    async def room_for(self, job: TuningJobView) -> AsyncIterator[None]:
        """Make room for a training, and keep it: an engine without room beside it is ended first."""
        async with self._lock:
            engine = self._engine
            if engine is not None and not await self._has_room(job, engine.service, running=True):
                log.info("job %s: vLLM ends first, for there is no room for both", job.name)
                self._training = job.name
                self._want_again(engine.service)
                await self._stop(drain=True)
        try:
            yield
        finally:
            self._training = None
            self._wake.set()

    async def run(self) -> None:
        """Serve what is asked for, until it is cancelled."""
        try:
            while True:
                try:
                    await self._step()
                except Exception:
                    log.exception("a fault while serving; it goes on")
                self._wake.clear()
                with suppress(TimeoutError):
                    is_idle = self._engine is None and self._wanted is None
                    await asyncio.wait_for(self._wake.wait(), IDLE_SECONDS if is_idle else LOOK_SECONDS)
        finally:
            if self._engine is not None:
                await self._stop(drain=False)

    # --- each look ---------------------------------------------------------------------------------------------------

    async def _step(self) -> None:
        services = self._services()
        async with self._lock:
            await self._leave(services)
            blocked = await self._bring(services)
            for service in services.values():
                self._tell(service, blocked)

    def _services(self) -> dict[str, InferenceServiceView]:
        found = {}
        for raw in self._objects.list(PLURAL):
            try:
                found[raw["metadata"]["name"]] = InferenceServiceView.of(raw)
            except InputError as error:
                log.warning("an InferenceService that cannot be read is left out: %s", error)
        return found

    async def _leave(self, services: Mapping[str, InferenceServiceView]) -> None:
        """End the engine where it is not the one to run."""
        engine = self._engine
        if engine is None:
            return
        service = services.get(engine.service.name)
        if service is None or not engine.is_for(service):
            log.info("%s has changed: vLLM ends", engine.service.name)
            await self._stop(drain=True)
        elif (fault := engine.fault()) is not None:
            log.warning("%s: %s", service.name, fault)
            self._fail(service, Trouble(ServiceReason.ENGINE_FAILING, fault, stalled=True))
            await self._stop(drain=False)
        elif (adapter := engine.outgrown()) is not None:
            log.info("%s: vLLM starts again, for %s too", service.name, adapter)
            await self._stop(drain=True)
        elif self._has_to_yield(services):
            log.info("%s ends, for %s is asked for", service.name, self._wanted and self._wanted[0])
            await self._stop(drain=True)
            return
        elif engine.report.ready:
            self._failed.pop(service.uid, None)
        if self._engine is None and service is not None and service.spec.replicas:
            self._want_again(service)

    def _want_again(self, service: InferenceServiceView) -> None:
        """Start it again later, unless another one is asked for."""
        if self._wanted is None:
            self._wanted = (service.name, time.monotonic())

    def _has_to_yield(self, services: Mapping[str, InferenceServiceView]) -> bool:
        """Return whether another InferenceService is asked for, and its turn has come."""
        if self._wanted is None or self._engine is None:
            return False
        name, since = self._wanted
        service = services.get(name)
        if service is None or not service.spec.replicas or name == self._engine.service.name:
            self._wanted = None
            return False
        if self._pauses(service):
            return False
        now = time.monotonic()
        return now - self._asked_at > LINGER_SECONDS or now - since > MOST_LINGER_SECONDS

    async def _bring(self, services: Mapping[str, InferenceServiceView]) -> str | None:
        """Start what is asked for; returns the job that leaves no room for it."""
        if self._engine is not None:
            self._engine.keeper.want(self._desired(services[self._engine.service.name]))
            return None
        service = services.get(self._wanted[0]) if self._wanted is not None else None
        if service is None or not service.spec.replicas or self._pauses(service):
            return None
        try:
            if (job := await self._blocking(service)) is not None:
                return job
            desired = self._desired(service).model_copy(update={"rank": self._highest_rank(service)})
            machine = await self._look()
            self._engine = await LocalEngine.start(service, desired, machine, self._root, self._folder)
        except (InputError, TryAgain) as error:
            problems = error.problems if isinstance(error, InputError) else [error]
            text = "; ".join(str(problem) for problem in problems)
            log.warning("%s cannot be served: %s", service.name, text)
            self._fail(service, Trouble(ServiceReason.PLAN_FAILED, text, stalled=True))
            return None
        self._asked_at, self._wanted = time.monotonic(), None
        return None

    def _highest_rank(self, service: InferenceServiceView) -> int:
        """Return that of all jobs on its base: what is trained now may be served by this engine, too."""
        jobs = jobs_of(self._objects)
        return max((job.spec.lora.rank for job in jobs if job.spec.model.path == service.spec.model.path), default=0)

    @property
    def _folder(self) -> Path:
        return self._objects.folder / FOLDER

    async def _look(self) -> Machine:
        """Look what serves here; raises InputError where there is no vLLM, which may be installed later."""
        if self._machine is None:
            self._machine = await asyncio.to_thread(find_machine, PROJECT, self._environment)
        return self._machine

    async def _stop(self, *, drain: bool) -> None:
        engine, self._leaving = self._engine, True
        assert engine is not None
        try:
            await engine.stop(drain=drain)
        finally:
            self._engine, self._leaving = None, False

    # --- room --------------------------------------------------------------------------------------------------------

    async def _blocking(self, service: InferenceServiceView) -> str | None:
        """Return the job that trains or will train, and leaves no room for an engine; None for none."""
        if self._training is not None:
            return self._training
        await self._look()
        for job in line_of(jobs_of(self._objects)):
            if not await self._has_room(job, service, running=False):
                return job.name
        return None

    async def _has_room(self, job: TuningJobView, service: InferenceServiceView, *, running: bool) -> bool:
        machine = await self._look()
        return await asyncio.to_thread(machine.has_room, job, service, self._root, running=running)

    # --- what is said ------------------------------------------------------------------------------------------------

    def _fail(self, service: InferenceServiceView, trouble: Trouble) -> None:
        before = self._failed.get(service.uid)
        pause = min(before.pause * 2, LAST_PAUSE_SECONDS) if before is not None else FIRST_PAUSE_SECONDS
        generation = int(service.metadata.get("generation") or 0)
        self._failed[service.uid] = _Failed(generation, trouble, pause, time.monotonic() + pause)

    def _pauses(self, service: InferenceServiceView) -> bool:
        """Return whether it failed a short time ago, and has not changed since."""
        failed = self._failed.get(service.uid)
        same = failed is not None and failed.generation == int(service.metadata.get("generation") or 0)
        return failed is not None and same and time.monotonic() < failed.again_at

    def _tell(self, service: InferenceServiceView, blocked: str | None) -> None:
        """Write the status of one."""
        engine = self._engine
        runs = engine is not None and engine.service.uid == service.uid
        found = Found(
            desired=self._desired(service),
            trouble=None if runs else self._trouble(service, blocked),
            url=engine.url if engine is not None and runs else None,
            report=engine.report if engine is not None and runs else None,
        )
        with suppress(NotFound):
            raw = self._objects.read(PLURAL, service.name)
            self._objects.set_status(PLURAL, service.name, service_status(raw, found, timestamp()))

    def _trouble(self, service: InferenceServiceView, blocked: str | None) -> Trouble:
        """Return why vLLM does not run for it."""
        if not service.spec.replicas:
            return Trouble(ServiceReason.NO_REPLICAS, "spec.replicas is 0")
        failed = self._failed.get(service.uid)
        if failed is not None:
            return failed.trouble
        is_wanted = self._wanted is not None and self._wanted[0] == service.name
        if is_wanted and blocked is not None:
            text = f"job {blocked} has this machine, which has no room for both; vLLM starts when it has ended"
            return Trouble(ServiceReason.PENDING, f"{text}, is paused or cancelled")
        if is_wanted and self._engine is not None:
            serves = self._engine.service.spec.base_name
            text = f"this machine serves one base at a time, and {serves} now; it changes when that one is idle"
            return Trouble(ServiceReason.PENDING, text)
        if is_wanted:
            return Trouble(ServiceReason.STARTING, "vLLM starts")
        return Trouble(ServiceReason.PENDING, "vLLM starts for it when it is asked for")

    def _desired(self, service: InferenceServiceView) -> DesiredRoutes:
        """Resolve the routes, as the operator does."""
        targets = [target for route in service.spec.routes for target in route.targets]
        jobs: Sequence[TuningJobView] = ()
        if any(target.tuning_job is not None for target in targets):
            jobs = jobs_of(self._objects)
        known = {job.name: job for job in jobs}
        routes = tuple(
            DesiredRoute(name=route.name, targets=tuple(_resolved(target, known) for target in route.targets))
            for route in service.spec.routes
        )
        return DesiredRoutes(routes=routes)


def _resolved(target: RouteTarget, jobs: Mapping[str, TuningJobView]) -> DesiredTarget:
    name = target.tuning_job
    if name is None:
        return DesiredTarget(model_id=target.model_id, weight=target.weight)
    job = jobs.get(name)
    if job is not None and job.has_succeeded and job.status is not None and job.status.model_id:
        return DesiredTarget(model_id=job.status.model_id, tuning_job=name, weight=target.weight)
    if job is None:
        reason, why = AdapterReason.TUNING_JOB_NOT_FOUND, "is not there"
    elif job.is_true(ConditionType.FINISHED):
        reason, why = AdapterReason.TUNING_JOB_FAILED, "has failed"
    else:
        reason, why = AdapterReason.WAITING_FOR_TUNING_JOB, "has not succeeded yet"
    message = f"{tuning_job.KIND} {name} {why}"
    return DesiredTarget(tuning_job=name, weight=target.weight, reason=reason, message=message)
