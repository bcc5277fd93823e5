"""Reconcile TuningJobs: what is observed of one, and what is kept in memory of it between two reconciles."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.roles import FETCH, TRAIN
from tuning_operator.core.cache import INFERENCE_SERVICES, JOBS, NETWORK_POLICIES, PODS, TUNING_JOBS, Key, Raw
from tuning_operator.core.constants import LABEL_ROLE, PROGRESS_SECONDS, STUCK_SECONDS
from tuning_operator.core.desired import Desired
from tuning_operator.core.reconciler import Reconciler
from tuning_operator.pods.observed import Pod
from tuning_operator.pods.trouble import Reported
from tuning_operator.tuning_job.desire import desire
from tuning_operator.tuning_job.fetch import OFFLINE
from tuning_operator.tuning_job.job import child_name
from tuning_operator.tuning_job.observed import Observed, build_observed
from tuning_operator.tuning_job.stage import JobStage
from tuning_operator.tuning_job.stages import STAGES
from tuning_operator.tuning_job.status import with_last_loss


@dataclass
class TuningJobReconciler(Reconciler[Observed]):
    """Reconcile TuningJobs."""

    kind: ClassVar[str] = TUNING_JOBS
    optional: ClassVar[tuple[str, ...]] = (INFERENCE_SERVICES,)

    _reported: dict[Key, tuple[str, Reported]] = field(default_factory=dict)
    _progress_written: dict[Key, float] = field(default_factory=dict)
    _trainers_made: dict[Key, str] = field(default_factory=dict)
    """The uids of TuningJobs that this process has made a training Job for."""

    def report(self, key: Key, reported: Reported) -> None:
        """Keep a pod's report; it is written with the next reconcile, which is at most one in PROGRESS_SECONDS.

        What a fetch waits for, or has resolved, is of now: that reconcile is at once.
        """
        raw = self.cache.get(TUNING_JOBS, *key)
        if raw is None:
            return
        uid, (known_of, known) = raw["metadata"]["uid"], self._reported.get(key, (None, None))
        before = known if known_of == uid else None
        progress = with_last_loss(reported.progress, before.progress if before is not None else None)
        self._reported[key] = (uid, replace(reported, progress=progress))
        is_news = before is None or (before.revisions, before.waiting) != (reported.revisions, reported.waiting)
        self.queue.add_after(key, 0.0 if is_news else max(0.0, self._progress_due(key)))

    def observe(self, raw: Raw, warnings: Sequence[Raw] = ()) -> Observed:
        namespace, name, uid = (raw["metadata"][part] for part in ("namespace", "name", "uid"))
        roles = {stage.role.name: stage.role for stage in STAGES if isinstance(stage, JobStage)}
        found = (self.cache.get(JOBS, namespace, child_name(name, role)) for role in roles)
        spec = self.cache.spec_of(raw, TuningJobSpec)
        adapter = spec.model.adapter.tuning_job if spec is not None and spec.model.adapter is not None else None
        serve = spec.serve if spec is not None else None
        reported = self._reported.get((namespace, name))
        fences = (self.cache.get(NETWORK_POLICIES, namespace, child_name(name, end)) for end in (FETCH, OFFLINE))
        return build_observed(
            raw,
            jobs=[job for job in found if job is not None],
            pods=self.cache.pods_of(uid),
            warnings=warnings,
            adapter=self.cache.get(TUNING_JOBS, namespace, adapter) if adapter is not None else None,
            reported=reported[1] if reported is not None and reported[0] == uid else None,
            policies=[policy for policy in fences if policy is not None],
            spec=spec,
            chain=self.cache.chain_from(namespace, adapter) if adapter is not None else (),
            service=self.cache.get(INFERENCE_SERVICES, namespace, serve.name) if serve is not None else None,
            roles=roles,
        )

    def desire(self, observed: Observed) -> Desired:
        return desire(observed, self.settings, self.now())

    def forget(self, key: Key) -> None:
        for kept in (self._reported, self._progress_written, self._trainers_made):
            kept.pop(key, None)  # type: ignore[attr-defined]

    async def may_create(self, observed: Observed, kind: str, body: Raw) -> bool:
        """Refuse a second trainer beside one that no watch has delivered: its Job may have been deleted a moment ago.

        Only asked after a Job of this process; the pods of an earlier process were listed at the start.
        """
        if kind != JOBS or body["metadata"]["labels"][LABEL_ROLE] != TRAIN:
            return True
        key = (observed.namespace, observed.name)
        if self._trainers_made.get(key) == observed.uid and await self._trains(observed):
            self.queue.add_after(key, STUCK_SECONDS)
            return False
        self._trainers_made[key] = observed.uid
        return True

    async def _trains(self, observed: Observed) -> bool:
        pods = await self.cluster.list_pods_of(observed.namespace, observed.uid)
        for pod in pods:
            self.cache.put(PODS, pod)
        return any(pod["metadata"]["labels"].get(LABEL_ROLE) == TRAIN and not Pod(pod).has_ended for pod in pods)

    def status_due(self, observed: Observed, status: Raw) -> float:
        """Delay a write of progress alone to one in PROGRESS_SECONDS; anything else is due at once (0)."""
        if _without_progress(status) != _without_progress(observed.raw.get("status") or {}):
            return 0.0
        return self._progress_due((observed.namespace, observed.name))

    def status_written(self, key: Key) -> None:
        self._progress_written[key] = time.monotonic()

    def _progress_due(self, key: Key) -> float:
        return self._progress_written.get(key, float("-inf")) + PROGRESS_SECONDS - time.monotonic()


def _without_progress(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key != "progress"}
