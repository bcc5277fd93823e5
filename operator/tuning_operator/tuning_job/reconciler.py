"""One pass over one TuningJob: observe, desire, apply. The only place that writes for the chain."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

from llm_tuning.api.tuning_job import Progress
from llm_tuning.pod.contract import TRAIN
from tuning_operator.core.cache import INFERENCE_SERVICES, JOBS, PODS, TUNING_JOBS, Key
from tuning_operator.core.constants import LABEL_ROLE, PROGRESS_SECONDS, STUCK_SECONDS
from tuning_operator.core.desired import Desired
from tuning_operator.core.errors import AlreadyExists, ClusterError, Conflict, Forbidden, Invalid, NotFound
from tuning_operator.core.events import tell
from tuning_operator.core.reconciler import PassLoop
from tuning_operator.pods.observed import Pod
from tuning_operator.pods.template import child_name
from tuning_operator.tuning_job.desire import desire
from tuning_operator.tuning_job.observed import ROLES, Observed, build_observed

log = logging.getLogger(__name__)


@dataclass
class Worker(PassLoop):
    """Passes over TuningJobs."""

    _progress: dict[Key, tuple[str, Progress]] = field(default_factory=dict)
    _progress_written: dict[Key, float] = field(default_factory=dict)
    _trainers_made: dict[Key, str] = field(default_factory=dict)
    """The uids of TuningJobs that this process has made a training Job for."""
    _service_refusals: dict[Key, str] = field(default_factory=dict)

    def report(self, key: Key, progress: Progress) -> None:
        """A trainer's report: kept, and written with the next pass, which is at most one in PROGRESS_SECONDS."""
        raw = self.store.tuning_job(*key)
        if raw is None:
            return
        self._progress[key] = (raw["metadata"]["uid"], progress)
        wait = self._progress_written.get(key, float("-inf")) + PROGRESS_SECONDS - time.monotonic()
        self.queue.add_after(key, max(0.0, wait))

    async def reconcile(self, key: Key) -> None:
        """One pass. Raises ClusterError where it has to be tried again."""
        raw = self.store.tuning_job(*key)
        if raw is None:
            self._progress.pop(key, None)
            self._progress_written.pop(key, None)
            self._trainers_made.pop(key, None)
            self._service_refusals.pop(key, None)
            return
        observed = self._observe(raw)
        desired = desire(observed, self.settings, self.now())
        if desired.needs_pods:
            for pod in await self.cluster.list_pods_of(key[0], observed.uid):
                self.store.put(PODS, pod)
            observed = self._observe(raw)
            desired = desire(observed, self.settings, self.now())
        if desired.needs_events:
            observed = self._observe(raw, await self.warnings_in(key[0]))
            desired = desire(observed, self.settings, self.now())
        await self._apply(key, observed, desired)
        if desired.requeue_after is not None:
            self.queue.add_after(key, desired.requeue_after)

    def _observe(self, raw: dict[str, Any], warnings: list[dict[str, Any]] | None = None) -> Observed:
        namespace, name, uid = (raw["metadata"][part] for part in ("namespace", "name", "uid"))
        found = (self.store.job(namespace, child_name(name, role)) for role in ROLES)
        spec = self.store.spec_of(raw)
        adapter = spec.model.adapter.tuning_job if spec is not None and spec.model.adapter is not None else None
        serve = spec.serve if spec is not None else None
        reported = self._progress.get((namespace, name))
        return build_observed(
            raw,
            jobs=[job for job in found if job is not None],
            pods=self.store.pods_of(uid),
            warnings=warnings or (),
            adapter=self.store.tuning_job(namespace, adapter) if adapter is not None else None,
            progress=reported[1] if reported is not None and reported[0] == uid else None,
            spec=spec,
            chain=self.store.chain_from(namespace, adapter) if adapter is not None else (),
            service=self.store.get(INFERENCE_SERVICES, namespace, serve.name) if serve is not None else None,
        )

    async def _apply(self, key: Key, observed: Observed, desired: Desired) -> None:
        """Children first, then the status, then Events: what the status says is then so."""
        namespace, name = key
        if desired.delete_self:
            await self.cluster.delete_tuning_job(namespace, name, observed.uid)
            log.info("tuning job deleted, its time is over", extra={"keys": {"job": "/".join(key)}})
            return
        refused: ClusterError | None = None
        for job in desired.create_jobs:
            try:
                await self._create(job, observed)
            except (Forbidden, Invalid) as error:  # that is for people to know; and tried again, with back-off
                refused = error
                observed = replace(observed, refused=str(error))
                desired = replace(desire(observed, self.settings, self.now()), create_jobs=[])
        for service in desired.create_services:
            if await self._create_service(key, service):
                return
            observed = replace(observed, service_refused=self._service_refusals[key])
            desired = desire(observed, self.settings, self.now())
        for ref in desired.delete_jobs:
            await self.cluster.delete_job(namespace, ref.name, ref.uid)
            log.info("job deleted", extra={"keys": {"job": "/".join(key), "child": ref.name}})
        if desired.create_jobs:  # the store has queued the key again: a thousand Jobs come before their statuses
            return
        await self._write_status(key, observed, desired)
        if refused is not None:
            raise refused

    async def _write_status(self, key: Key, observed: Observed, desired: Desired) -> None:
        """The status, if it has changed, then Events."""
        if desired.status is None or desired.status == observed.raw.get("status"):
            return
        progress_only = _without_progress(desired.status) == _without_progress(observed.raw.get("status") or {})
        if progress_only:
            wait = self._progress_written.get(key, float("-inf")) + PROGRESS_SECONDS - time.monotonic()
            if wait > 0:
                self.queue.add_after(key, wait)
                return
        try:
            answer = await self.cluster.apply_status(observed.raw, desired.status)
        except NotFound:
            self.store.forget(TUNING_JOBS, dict(observed.raw))
            return
        except Conflict:
            await self._refresh(key)
            raise
        self.store.put(TUNING_JOBS, answer)
        self._progress_written[key] = time.monotonic()
        if not progress_only:
            await tell(self.cluster, observed.raw, desired.events, self.now(), instance=self.instance)

    async def _create(self, job: dict[str, Any], observed: Observed) -> None:
        metadata, key = job["metadata"], (observed.namespace, observed.name)
        if metadata["labels"][LABEL_ROLE] == TRAIN:
            if self._trainers_made.get(key) == observed.uid and await self._trains(observed):
                self.queue.add_after(key, STUCK_SECONDS)
                return
            self._trainers_made[key] = observed.uid
        try:
            made = await self.cluster.create_job(job)
        except AlreadyExists:
            # Made by an earlier pass whose answer was lost, or somebody else's: the next pass sees which.
            there = await self.cluster.read_job(metadata["namespace"], metadata["name"])
            if there is not None:
                self.store.put(JOBS, there)
            raise
        self.store.put(JOBS, made)
        keys = {"job": "/".join(key), "child": metadata["name"]}
        log.info("job created", extra={"keys": keys})

    async def _create_service(self, key: Key, body: dict[str, Any]) -> bool:
        """Make the InferenceService of spec.serve; False if the API server refused it for good."""
        metadata = body["metadata"]
        try:
            made = await self.cluster.create(INFERENCE_SERVICES, body)
        except AlreadyExists:
            there = await self.cluster.read(INFERENCE_SERVICES, metadata["namespace"], metadata["name"])
            if there is not None:
                self.store.put(INFERENCE_SERVICES, there)
            raise
        except (Forbidden, Invalid) as error:
            self._service_refusals[key] = str(error)
            return False
        self.store.put(INFERENCE_SERVICES, made)
        log.info("inference service created", extra={"keys": {"job": "/".join(key), "child": metadata["name"]}})
        self.queue.add(key)
        return True

    async def _trains(self, observed: Observed) -> bool:
        """Whether a trainer is there that no watch has told of: its Job may have been deleted a moment ago.

        Only asked after a Job of this process; the pods of an earlier process were listed at the start.
        """
        pods = await self.cluster.list_pods_of(observed.namespace, observed.uid)
        for pod in pods:
            self.store.put(PODS, pod)
        return any(pod["metadata"]["labels"].get(LABEL_ROLE) == TRAIN and not Pod(pod).has_ended for pod in pods)

    async def _refresh(self, key: Key) -> None:
        """After a conflict: take the object as it is now, without waiting for the watch."""
        raw = await self.cluster.read_tuning_job(*key)
        if raw is not None:
            self.store.put(TUNING_JOBS, raw)


def _without_progress(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key != "progress"}
