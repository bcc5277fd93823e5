"""Reconcile TuningJobs: what is observed of one, and what is kept in memory of it between two reconciles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.roles import FETCH, TRAIN
from tuning_operator.core.cache import INFERENCE_SERVICES, JOBS, NETWORK_POLICIES, PODS, SERVICES, TUNING_JOBS, Key, Raw
from tuning_operator.core.constants import LABEL_ROLE, STUCK_SECONDS
from tuning_operator.core.desired import Desired
from tuning_operator.core.reconciler import Reconciler
from tuning_operator.pods.observed import Pod
from tuning_operator.pods.reporting import Reports
from tuning_operator.pods.trouble import Reported
from tuning_operator.tuning_job.desire import desire
from tuning_operator.tuning_job.fetch import OFFLINE
from tuning_operator.tuning_job.job import child_name
from tuning_operator.tuning_job.nodes import NODES
from tuning_operator.tuning_job.observed import Observed, build_observed
from tuning_operator.tuning_job.stage import JobStage
from tuning_operator.tuning_job.stages import STAGES


@dataclass
class TuningJobReconciler(Reconciler[Observed]):
    """Reconcile TuningJobs."""

    kind: ClassVar[str] = TUNING_JOBS
    optional: ClassVar[tuple[str, ...]] = (INFERENCE_SERVICES,)

    _reports: Reports = field(init=False)
    _trainers_made: dict[Key, str] = field(default_factory=dict)
    """The uids of TuningJobs that this process has made a training Job for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reports = Reports(self.queue)

    def report(self, key: Key, reported: Reported) -> None:
        """Keep a pod's report; it is written with the next reconcile, which is at most one in PROGRESS_SECONDS."""
        if (raw := self.cache.get(TUNING_JOBS, *key)) is not None:
            self._reports.take(key, raw["metadata"]["uid"], reported)

    def observe(self, raw: Raw, warnings: Sequence[Raw] = ()) -> Observed:
        namespace, name, uid = (raw["metadata"][part] for part in ("namespace", "name", "uid"))
        roles = {stage.role.name: stage.role for stage in STAGES if isinstance(stage, JobStage)}
        found = (self.cache.get(JOBS, namespace, child_name(name, role)) for role in roles)
        spec = self.cache.spec_of(raw, TuningJobSpec)
        adapter = spec.model.adapter.tuning_job if spec is not None and spec.model.adapter is not None else None
        serve = spec.serve if spec is not None else None
        fences = (self.cache.get(NETWORK_POLICIES, namespace, child_name(name, end)) for end in (FETCH, OFFLINE, NODES))
        return build_observed(
            raw,
            jobs=[job for job in found if job is not None],
            pods=self.cache.pods_of(uid),
            warnings=warnings,
            adapter=self.cache.get(TUNING_JOBS, namespace, adapter) if adapter is not None else None,
            reported=self._reports.of((namespace, name), uid),
            policies=[policy for policy in fences if policy is not None],
            spec=spec,
            chain=self.cache.chain_from(namespace, adapter) if adapter is not None else (),
            service=self.cache.get(INFERENCE_SERVICES, namespace, serve.name) if serve is not None else None,
            headless=self.cache.get(SERVICES, namespace, child_name(name, TRAIN)),
            roles=roles,
        )

    def desire(self, observed: Observed) -> Desired:
        return desire(observed, self.settings, self.now())

    def forget(self, key: Key) -> None:
        self._reports.forget(key)
        self._trainers_made.pop(key, None)

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
        key = (observed.namespace, observed.name)
        return self._reports.status_due(key, status, observed.raw.get("status") or {})

    def status_written(self, key: Key) -> None:
        self._reports.status_written(key)
