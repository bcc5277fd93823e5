"""Trains the TuningJobs of this machine, one after the other, the oldest first.

Level-triggered as the operator is: what is to be done follows from the stored objects each time, so that a server that
was killed goes on. A trainer that is started again resumes from its checkpoint, and a finished one tells its result.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path

from llm_tuning.api.conditions import ConditionType, Reason
from llm_tuning.api.tuning import form_model_id
from llm_tuning.api.tuning_job import PLURAL, Progress
from llm_tuning.client.errors import NotFound
from llm_tuning.client.objects import TuningJobView
from llm_tuning.core.text import counted
from llm_tuning.openai_api.found import Found
from llm_tuning.openai_api.job_view import created_at
from llm_tuning.openai_api.local.objects import Objects, timestamp
from llm_tuning.openai_api.local.process import Ended, run_role
from llm_tuning.openai_api.local.status import Draft
from llm_tuning.pod.contract import CheckResult, PodInput, PodReason, TrainResult
from llm_tuning.pod.roles import CHECK, TRAIN

log = logging.getLogger(__name__)

_Change = Callable[[Draft], None]

LOOK_SECONDS = 0.5
"""Between two looks whether the job that trains is still wanted."""
IDLE_SECONDS = 5.0
"""Between two looks while nothing trains; what is asked of the server wakes it at once."""
PROGRESS_SECONDS = 2.0
"""At most one write of a progress in so long."""
RETRY_SECONDS = 5.0
"""Before a process is started again that ended by no fault of the input."""
ROOM_SECONDS = 60.0
"""The same where the disk is full."""
Room = Callable[[TuningJobView], AbstractAsyncContextManager[None]]


def _always(job: TuningJobView) -> AbstractAsyncContextManager[None]:
    return nullcontext()


class Runner:
    """One machine's trainings."""

    def __init__(self, objects: Objects, root: Path, room_for: Room = _always) -> None:
        """Take the objects; a training begins when `room_for` has made room for it."""
        self._objects, self._root, self._room_for = objects, root, room_for
        self._failures: dict[str, int] = {}
        """Of jobs by their uid, since this server was started."""
        self._not_before: dict[str, float] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look at the jobs at once: one was made or changed."""
        self._wake.set()

    async def run(self) -> None:
        """Train what is there, until it is cancelled."""
        while True:
            job = self._next()
            if job is not None:
                await self._advance(job)
                continue
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), IDLE_SECONDS)

    def _next(self) -> TuningJobView | None:
        """Return the job whose turn it is; says of the others that they wait, or are suspended."""
        jobs = jobs_of(self._objects)
        for job in jobs:
            if not job.is_finished and job.spec.suspend and not job.is_true(ConditionType.SUSPENDED):
                self._write(job.name, lambda draft: draft.suspend())
        ready = line_of(jobs)
        for place, job in enumerate(ready[1:], start=1):
            self._write(job.name, partial(_wait, place))
        now = time.monotonic()
        return next((job for job in ready if self._not_before.get(job.uid, 0) <= now), None)

    async def _advance(self, job: TuningJobView) -> None:
        """Run the next role of a job to its end, or until the job is suspended or gone."""
        role = TRAIN if job.is_true(ConditionType.DATASET_VALID) else CHECK
        given = _input(job)
        self._write(job.name, lambda draft: _begin(draft, role, given.model_id))
        log.info("job %s: %s", job.name, role)
        working = asyncio.create_task(self._work(job, role, given))
        try:
            while not working.done() and self._is_wanted(job):
                await asyncio.wait({working}, timeout=LOOK_SECONDS)
        finally:  # suspended, gone, or the server ends: its process ends first, once asked
            working.cancel()
            await asyncio.wait({working})
        if working.cancelled():
            return
        ended = working.result()
        self._record(job, role, ended)

    async def _work(self, job: TuningJobView, role: str, given: PodInput) -> Ended:
        log_file, on_progress = self._objects.log(PLURAL, job.name), _Progress(self, job.name)
        async with self._room_for(job) if role == TRAIN else nullcontext():
            return await run_role(role, given, root=self._root, log=log_file, on_progress=on_progress)

    def _is_wanted(self, job: TuningJobView) -> bool:
        try:
            raw = self._objects.read(PLURAL, job.name)
        except NotFound:
            return False
        return bool(raw["metadata"]["uid"] == job.uid and not raw["spec"].get("suspend"))

    def _record(self, job: TuningJobView, role: str, ended: Ended) -> None:
        """Write down how a role has ended, and whether it is tried again."""
        log.info("job %s: %s: %s", job.name, role, ended.message)
        stage = ConditionType.TRAINED if role == TRAIN else ConditionType.DATASET_VALID
        if ended.is_done:
            self._failures.pop(job.uid, None)
            self._write(job.name, lambda draft: _succeed(draft, ended))
        elif ended.is_refused:
            self._write(job.name, lambda draft: draft.fail(stage, ended.reason, ended.message))
        elif ended.may_go_on:
            self._try_again(job, ended)
        else:
            failures = self._failures[job.uid] = self._failures.get(job.uid, 0) + 1
            if failures <= job.spec.retries:
                self._try_again(job, ended)
            else:
                text = f"failed {failures} times; last: {ended.message}; see {self._objects.log(PLURAL, job.name)}"
                self._write(job.name, lambda draft: draft.fail(stage, Reason.RETRIES_EXHAUSTED, text))

    def _try_again(self, job: TuningJobView, ended: Ended) -> None:
        pause = ROOM_SECONDS if ended.reason == PodReason.VOLUME_FULL else RETRY_SECONDS
        self._not_before[job.uid] = time.monotonic() + pause
        self._write(job.name, lambda draft: draft.stall(ended.reason, ended.message))

    def note(self, name: str, progress: Progress) -> None:
        """Write down how far a training is."""
        self._write(name, lambda draft: draft.train(progress))

    def _write(self, name: str, change: _Change) -> None:
        """Change a job's status by what `change` does to its draft; a job that is gone stays so."""
        try:
            raw = self._objects.read(PLURAL, name)
        except NotFound:
            return
        draft = Draft(raw, timestamp())
        change(draft)
        self._objects.set_status(PLURAL, name, draft.status())


def jobs_of(objects: Objects, labels: Mapping[str, str] | None = None) -> list[TuningJobView]:
    """Read the jobs; one that somebody has spoiled is left out."""
    found = Found.of(objects.list(PLURAL, labels), TuningJobView.of)
    for job in found.unreadable:
        log.warning("a job that cannot be read is left out: %s", job.problem)
    return list(found.readable)


def line_of(jobs: Iterable[TuningJobView]) -> list[TuningJobView]:
    """Return the jobs that run or wait for it, in their order: the oldest first."""
    ready = [job for job in jobs if not job.is_finished and not job.spec.suspend]
    return sorted(ready, key=lambda job: (created_at(job), job.uid))


class _Progress:
    """Passes on the newest progress, not each."""

    def __init__(self, runner: Runner, name: str) -> None:
        self._runner, self._name, self._written = runner, name, 0.0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._written >= PROGRESS_SECONDS:
            self._written = time.monotonic()
            self._runner.note(self._name, progress)


def _input(job: TuningJobView) -> PodInput:
    """Build what a pod would be given; the model_id follows from the job, so that a retry resumes."""
    spec = job.spec
    known = job.status.model_id if job.status is not None else None
    digest = hashlib.sha256(job.uid.encode()).hexdigest()[:6]
    model_id = known or form_model_id(spec.mode, spec.base_name, created=created_at(job), digest=digest)
    start = spec.model.adapter.model_id if spec.model.adapter is not None else None
    return PodInput(model_id=model_id, spec=spec, start_model_id=start, gpus=spec.resources.gpus)


def _wait(place: int, draft: Draft) -> None:
    draft.wait(f"{counted(place, 'job')} before it on this machine, which trains one at a time")


def _begin(draft: Draft, role: str, model_id: str) -> None:
    draft.fields["modelId"] = model_id
    if role == CHECK:
        draft.check()
    else:
        draft.train(None)


def _succeed(draft: Draft, ended: Ended) -> None:
    match ended.result:
        case CheckResult():
            draft.checked(ended.result)
        case TrainResult():
            draft.succeed(ended.result)
