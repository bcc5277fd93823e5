"""A cluster of dicts that the pure pass runs against: its writes are counted, and may be stopped at any of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from llm_tuning.api.tuning_job import Progress
from llm_tuning.pod.roles import CHECK, REPORT, TRAIN
from tests.support.operator_objects import CHECKED, SETTINGS, START, TRAINED, Raw, jobs_in, make_pod
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.desired import Event
from tuning_operator.tuning_job.desire import desire
from tuning_operator.tuning_job.observed import build_observed

STEP = timedelta(seconds=2)
PLAIN = {CHECK: [{"result": CHECKED}], TRAIN: [{"result": TRAINED}], REPORT: [{"result": TRAINED}]}


class Killed(Exception):  # noqa: N818 - a thing that happens, not a fault
    """The operator ended before this write."""


@dataclass
class World:
    """One TuningJob, its children, and a Job controller and kubelet that take a step at a time."""

    job: Raw
    outcomes: dict[str, list[Raw]] = field(default_factory=lambda: copy.deepcopy(PLAIN))
    """How a role's pods end, one after the other; the last one again and again. `lost`: the message is not kept."""
    others: dict[str, Raw] = field(default_factory=dict)
    """Other TuningJobs by name."""
    warnings: list[Raw] = field(default_factory=list)
    now: Any = START
    jobs: dict[str, Raw] = field(default_factory=dict)
    pods: dict[str, Raw] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    kill_at: int | None = None
    """The number of the write that is not made any more."""
    ended: int = 0
    """Trainers that have ended."""
    made: int = 0
    """Pods so far."""
    progress: Progress | None = None
    late_pods: bool = False
    """Whether the watch of pods is a step behind."""
    _seen_pods: list[Raw] = field(default_factory=list)

    # --- the operator ----------------------------------------------------------------------------------------------

    def reconcile(self) -> float | None:
        """One pass; returns when to look again. Raises Killed."""
        seen = self._seen_pods if self.late_pods else list(self.pods.values())
        known = {"jobs": list(self.jobs.values()), "pods": seen, "progress": self.progress}
        name = self.job["spec"]["model"].get("adapter", {}).get("tuningJob")
        known["adapter"] = self.others.get(name)
        desired = desire(build_observed(self.job, **known), SETTINGS, self.now)
        if desired.needs_events:
            desired = desire(build_observed(self.job, warnings=self.warnings, **known), SETTINGS, self.now)
        for job in jobs_in(desired):
            self._write(f"create {job['metadata']['name']}")
            self._create(copy.deepcopy(job))
        for ref in desired.delete:
            self._write(f"delete {ref.name}")
            if ref.name in self.jobs and self.jobs[ref.name]["metadata"]["uid"] == ref.uid:
                self.jobs[ref.name]["metadata"]["deletionTimestamp"] = timestamp(self.now)
        if desired.status is not None and desired.status != self.job.get("status"):
            self._write("status")
            self.job = {**self.job, "status": copy.deepcopy(desired.status)}
            self.events += desired.events
        return desired.requeue_after

    def _write(self, what: str) -> None:
        if self.kill_at == len(self.writes):
            self.kill_at = None
            raise Killed(what)
        self.writes.append(what)

    def _create(self, job: Raw) -> None:
        name = job["metadata"]["name"]
        assert name not in self.jobs, f"{name} is there already"
        role = job["metadata"]["labels"]["tuning.llmtuning.dev/role"]
        if role == TRAIN:
            assert not self.live(TRAIN), "two trainers at once"
        job["metadata"] |= {"uid": f"{name}-{len(self.writes)}", "creationTimestamp": timestamp(self.now)}
        job["status"] = {}
        self.jobs[name] = job

    # --- the cluster -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Every Job and pod gets on by one state."""
        self._seen_pods = copy.deepcopy(list(self.pods.values()))
        self.now += STEP
        for name, job in list(self.jobs.items()):
            pods = [
                p for p in self.pods.values() if p["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
            ]
            if "deletionTimestamp" in job["metadata"]:
                self._delete(name, pods)
            elif not job["status"].get("conditions") and not job["spec"].get("suspend"):
                self._run(job, pods)

    def _delete(self, name: str, pods: list[Raw]) -> None:
        for pod in pods:
            del self.pods[pod["metadata"]["name"]]
        if not pods:
            del self.jobs[name]

    def _run(self, job: Raw, pods: list[Raw]) -> None:
        role = job["metadata"]["labels"]["tuning.llmtuning.dev/role"]
        failed = sum(pod["status"]["phase"] == "Failed" for pod in pods)
        newest = pods[-1] if pods else None
        phase = newest["status"]["phase"] if newest else None
        at = (self.now - START).total_seconds()
        if newest is None or (phase == "Failed" and not self._is_over(newest, failed, job)):
            self.made += 1
            self._put(job, make_pod(role, number=self.made, phase="Pending", created=at))
        elif phase == "Pending":
            self._put(job, {**newest, "status": make_pod(role, phase="Running", created=at)["status"]})
        elif phase == "Running":
            outcomes = self.outcomes[role]
            outcome = dict(outcomes[min(self.ended if role == TRAIN else 0, len(outcomes) - 1)])
            self.ended += role == TRAIN
            if outcome.pop("hang", False):
                return
            lost = outcome.pop("lost", False)
            code = outcome.get("exit_code", 0)
            status = make_pod(role, phase="Failed" if code else "Succeeded", ended=at, **outcome)["status"]
            self._put(job, {**newest, "status": status})
            if lost:
                del self.pods[newest["metadata"]["name"]]
                job["status"] = {"conditions": [self._condition("Complete", "")]}
        elif phase == "Succeeded":
            job["status"] = {"conditions": [self._condition("Complete", "")]}
        else:
            assert newest is not None
            refused = newest["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 64
            reason = "PodFailurePolicy" if refused else "BackoffLimitExceeded"
            job["status"] = {"conditions": [self._condition("Failed", reason)], "failed": failed}

    def _is_over(self, pod: Raw, failed: int, job: Raw) -> bool:
        code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        return code == 64 or failed > job["spec"]["backoffLimit"]

    def _put(self, job: Raw, pod: Raw) -> None:
        pod["metadata"]["ownerReferences"][0]["uid"] = job["metadata"]["uid"]
        self.pods[pod["metadata"]["name"]] = pod

    def _condition(self, kind: str, reason: str) -> Raw:
        return {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": "",
            "lastTransitionTime": timestamp(self.now),
        }

    # --- for tests -------------------------------------------------------------------------------------------------

    def settle(self) -> float | None:
        """Passes until one writes nothing; an operator that was killed starts again."""
        for _ in range(10):
            before = len(self.writes)
            try:
                look = self.reconcile()
            except Killed:
                continue
            if len(self.writes) == before and look != 0:
                return look
        raise AssertionError(f"never settles: {self.writes}")

    def run(self, steps: int = 60) -> World:
        """Until it is finished, or for so many steps."""
        for _ in self.states(steps):
            pass
        return self

    def states(self, steps: int = 60) -> Iterator[World]:
        """Each settled state on the way, the finished one last."""
        for _ in range(steps):
            self.settle()
            yield self
            if self.condition("Finished")["status"] == "True":
                return
            self.step()

    def live(self, role: str) -> list[Raw]:
        """Pods of a role that have not ended."""
        return [
            pod
            for pod in self.pods.values()
            if pod["metadata"]["labels"]["tuning.llmtuning.dev/role"] == role
            and pod["status"]["phase"] in ("Pending", "Running")
        ]

    def condition(self, kind: str) -> Raw:
        conditions = self.job.get("status", {}).get("conditions", ())
        return next((c for c in conditions if c["type"] == kind), {"status": "", "reason": ""})

    def spec(self, **fields: Any) -> None:
        """Change the spec, as an apply does."""
        metadata = {**self.job["metadata"], "generation": self.job["metadata"]["generation"] + 1}
        self.job = {**self.job, "metadata": metadata, "spec": {**self.job["spec"], **fields}}

    def end(self) -> tuple[Any, ...]:
        """What it has come to, without times."""
        status = self.job["status"]
        conditions = [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]]
        rest = {k: v for k, v in status.items() if k not in ("conditions", "startTime", "completionTime", "progress")}
        return conditions, rest, sorted(self.jobs), sorted(self.pods)
