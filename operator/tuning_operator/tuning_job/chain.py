"""One reconcile of a TuningJob that has not finished: walk its stages until one is not over yet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import TrainResult
from tuning_operator.core.cache import JOBS
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.constants import LONGEST_LOOK_SECONDS, QUEUED_LOOK_SECONDS, STUCK_SECONDS
from tuning_operator.core.desired import Desired, ObjectRef
from tuning_operator.core.settings import Settings
from tuning_operator.pods.observed import Child
from tuning_operator.pods.sidecars import find_holding_sidecar, find_outliving_sidecar, sidecar_due
from tuning_operator.pods.stuck import events_due, find_refusal, find_stuck, queue_words
from tuning_operator.tuning_job.job import build_job, child_name, model_id
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import failing, lacks_pods, seconds_undecided
from tuning_operator.tuning_job.status import Draft

if TYPE_CHECKING:
    from tuning_operator.tuning_job.stage import JobStage, Stage


class Chain:
    """What the stages of one reconcile share: what is observed, what they draft, and what they want."""

    def __init__(
        self, observed: Observed, spec: TuningJobSpec, settings: Settings, now: datetime, stages: Sequence[Stage]
    ) -> None:
        self.observed, self.spec, self.settings, self.now = observed, spec, settings, now
        self._stages = [stage for stage in stages if stage.applies(observed)]
        self.desired = Desired()
        self.draft = Draft(observed, now, stages)
        self.draft.fields["model_id"] = model_id(observed, spec)
        if observed.children and observed.status.start_time is None:
            self.draft.fields["start_time"] = timestamp(min(c.created for c in observed.children.values()))
        reference = spec.model.adapter
        self.start_model_id = (reference and reference.model_id) or observed.status.start_adapter_model_id
        self.result: TrainResult | None = None
        """What came of the training, once a stage knows it."""
        self._is_undecided = False

    def run(self) -> Desired:
        """Walk the stages; returns what they want."""
        if all(stage.run(self) for stage in self._stages) and self.result is not None:
            self.draft.succeed(self.result)
        if self._is_undecided:
            return Desired(requeue_after=self.desired.requeue_after)
        if self.spec.suspend and not self.draft.is_finished:
            self._suspend()
        self.draft.record_in(self.desired)
        return self.desired

    # --- what stages call -------------------------------------------------------------------------------------------

    def note_start(self, model: str) -> None:
        """Record the adapter to start from in the status: it outlives the TuningJob that made it."""
        self.start_model_id = self.draft.fields["start_adapter_model_id"] = model

    def is_undecided(self, child: Child) -> bool:
        """Return whether what ended is not fully seen yet; if so, requeue: this reconcile writes nothing of it."""
        seconds = seconds_undecided(child, self.now)
        if seconds is None:
            self.desired.needs_pods |= lacks_pods(child)
            return False
        self.desired.requeue(seconds)
        self._is_undecided = True
        return True

    def delete(self, child: Child) -> None:
        """Delete the Job in the foreground; its pods end first."""
        ref = ObjectRef(JOBS, child.name, child.uid)
        if ref not in self.desired.delete:
            self.desired.delete.append(ref)

    def work(self, stage: JobStage, child: Child | None) -> None:
        """Create the Job of this stage, follow it, or state what it waits for."""
        name = child_name(self.observed.name, stage.role.name)
        if child is not None:
            if not child.is_deleting and not self.spec.suspend:
                self._follow(stage, child)
        elif name in self.observed.taken:
            self._wait_for_name(name)
        elif stage.role.name in self.observed.live_pods:
            self.desired.requeue(STUCK_SECONDS)  # of a Job that was deleted: never two trainers at once
        elif stage.begins_from_adapter and "start_adapter_model_id" in self.draft.fields:
            self.desired.requeue(0)  # written down first: whatever happens next, it starts from this adapter
        elif (pause := stage.seconds_to_pause(self)) > 0:
            self.desired.requeue(pause)
        elif not self.spec.suspend:
            # The check reads the start adapter, too, where it is there.
            parts = stage.parts(self.observed, self.spec, self.settings)
            job = build_job(
                self.observed,
                self.spec,
                self.settings,
                role=stage.role,
                parts=parts,
                start_model_id=self.start_model_id,
            )
            self.desired.create.append((JOBS, job))
            if (refused := self.observed.refusals.get(JOBS)) is not None:
                stuck = find_refusal(refused)
                self.draft.stall(stuck.reason, stuck.message, steady=True)
            if self.observed.status.start_time is None:
                self.draft.fields.setdefault("start_time", timestamp(self.now))

    # --- a child's life ---------------------------------------------------------------------------------------------

    def _wait_for_name(self, name: str) -> None:
        self.desired.requeue(LONGEST_LOOK_SECONDS)
        if name not in self.observed.left_over:
            self.draft.stall(
                Reason.NAME_TAKEN,
                f"Job {name} has another owner; delete it, or apply this TuningJob under another name",
            )

    def _follow(self, stage: JobStage, child: Child) -> None:
        """Follow a Job at work: queued, stuck, failing, or fine."""
        if child.is_suspended:
            queue = f"LocalQueue {self.spec.queue_name}" if self.spec.queue_name else "whoever suspended it"
            message = f"Job {child.name} waits for {queue} to admit it: {self._asked(stage, child)}"
            if said := queue_words(child):
                message += f"; Kueue says: {said}"
            self.draft.say(Phase.QUEUED, Reason.QUEUED, message, stage=stage.condition, steady=True)
            age = (self.now - child.created).total_seconds()
            self._look_at_events(STUCK_SECONDS - age, at_most=QUEUED_LOOK_SECONDS)
            return
        parts = stage.pods_of(child)
        for part in parts:
            due = events_due(part, self.now)
            if due is not None:
                self._look_at_events(due)
            pod = part.newest_pod
            if pod is not None and (sidecar := sidecar_due(pod, self.now)) is not None:
                self.desired.requeue(sidecar)
        if any(self._is_stuck(stage, parts, index) for index in range(len(parts))):
            return
        if len(parts) == 1 and (found := failing(child, stage, self.spec, self.now)):
            trouble, left = found
            self.draft.stall(trouble.reason, trouble.message)
            if left is not None:
                self.desired.requeue(left)

    def _asked(self, stage: JobStage, child: Child) -> str:
        """Say what has to be free for a Job: `2 pods at once, each with 4 CPU and 16Gi`."""
        resources = stage.requests(self.spec, self.settings).resources
        return f"{child.nodes} pods at once, each with {resources}" if child.nodes > 1 else f"a pod with {resources}"

    def _look_at_events(self, due: float, at_most: float = LONGEST_LOOK_SECONDS) -> None:
        """Have Events read if they are due, and look again: the longer it takes the seldomer, a thousand may wait."""
        self.desired.needs_events |= due <= 0
        self.desired.requeue(due if due > 0 else min(max(-due / 5, STUCK_SECONDS), at_most))

    def _is_stuck(self, stage: JobStage, parts: Sequence[Child], index: int) -> bool:
        """Say what a pod is stuck at, of several how many run; returns whether it is."""
        pod = parts[index].newest_pod
        if stuck := find_stuck(parts[index], stage.pod_requests(self.spec, self.settings)):
            where = _share(parts, index, stuck.reason)
            steady = self.observed.message_of(ConditionType.STALLED).startswith(where)
            self.draft.stall(stuck.reason, where + stuck.message, steady=steady)
            return True
        added = pod and (find_outliving_sidecar(pod, self.now) or find_holding_sidecar(pod, self.now))
        if added:
            self.draft.stall(added.reason, added.message)
        return bool(added)

    def _suspend(self) -> None:
        """End the Jobs that are at work; their pods write a checkpoint and go."""
        self.desired.create.clear()
        active = [child for child in self.observed.children.values() if not child.has_ended or child.is_deleting]
        for child in active:
            if not child.is_deleting:
                self.delete(child)
        self.draft.suspend(pods_gone=not active and not self.observed.live_pods)


def _share(parts: Sequence[Child], index: int, reason: str) -> str:
    """Say how many of several pods have come past what the one of `index` is stuck at; nothing of a single one."""
    if len(parts) == 1:
        return ""
    pods = [part.newest_pod for part in parts]
    if reason == Reason.UNSCHEDULABLE:
        placed = sum(pod is not None and pod.condition("PodScheduled").get("status") == "True" for pod in pods)
        return f"{placed} of {len(parts)} pods are placed, that of index {index} is not: "
    run = sum(pod is not None and pod.phase != "Pending" for pod in pods)
    return f"{run} of {len(parts)} pods run, that of index {index} does not: "
