"""What a TuningJob wants next: check, wait for the start adapter, train, record. The same for every cause.

`desire` reads one observation and nothing else. A stage that the conditions record as done is not repeated; whatever
was lost between two passes (a write, an event, a child) is wanted again by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import CHECK, REPORT, TRAIN, TrainResult
from tuning_operator.core.conditions import FALSE, TRUE, UNKNOWN, timestamp
from tuning_operator.core.constants import LONGEST_LOOK_SECONDS, MADE_FOR_ANNOTATION, STUCK_SECONDS
from tuning_operator.core.defaults import with_defaults
from tuning_operator.core.desired import Desired, JobRef
from tuning_operator.core.settings import Settings
from tuning_operator.pods.observed import Child
from tuning_operator.pods.sidecars import find_outliving_sidecar, sidecar_due
from tuning_operator.pods.stuck import events_due, find_refusal, find_stuck
from tuning_operator.pods.template import child_name, model_id
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.asked import asked_by_job
from tuning_operator.tuning_job.check_job import build_check_job
from tuning_operator.tuning_job.finished import desire_finished
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import (
    check_result,
    failing,
    failure_of,
    is_done,
    is_left_open,
    lacks_pods,
    refusal,
    seconds_undecided,
    train_result,
)
from tuning_operator.tuning_job.report_job import build_report_job
from tuning_operator.tuning_job.served import build_inference_service
from tuning_operator.tuning_job.status import Draft, dump
from tuning_operator.tuning_job.trainer_job import build_trainer_job
from tuning_operator.tuning_job.transitions import events_of

C = ConditionType
Builder = Callable[[Observed, TuningJobSpec, Settings, str | None], dict[str, Any]]
BUILDERS: dict[str, Builder] = {CHECK: build_check_job, TRAIN: build_trainer_job, REPORT: build_report_job}
STAGE = {CHECK: C.DATASET_VALID, TRAIN: C.TRAINED, REPORT: C.TRAINED}


def desire(observed: Observed, settings: Settings, now: datetime) -> Desired:
    """Everything that is wanted of this TuningJob now; pure."""
    if observed.is_deleting:
        return Desired()  # owner references clean up
    if observed.holds(C.FINISHED):
        return desire_finished(observed, now)
    if observed.spec is None:
        return _refuse_spec(observed, now)
    return _Pass(observed, with_defaults(observed.spec, settings.defaults), settings, now).run()


def _refuse_spec(observed: Observed, now: datetime) -> Desired:
    """The stored object does not fit this version's models: nothing is made of it, and that is said."""
    draft = Draft(observed, now)
    draft.say(Phase.PENDING, Reason.SPEC_INVALID, "this version of the operator does not know such a spec")
    draft.stall(Reason.SPEC_INVALID, "; ".join(str(problem) for problem in observed.problems))
    return _said(observed, draft, Desired())


def _said(observed: Observed, draft: Draft, desired: Desired) -> Desired:
    """`desired` with the drafted status, and Events for what it changes."""
    status = draft.status()
    desired.status = dump(status)
    desired.events = events_of(observed.status.conditions, status.conditions)
    return desired


class _Pass:
    """One pass over a TuningJob that is not finished. Each stage returns True once the next one may begin."""

    def __init__(self, observed: Observed, spec: TuningJobSpec, settings: Settings, now: datetime) -> None:
        self.o, self.spec, self.settings, self.now = observed, spec, settings, now
        self.desired = Desired()
        self.draft = Draft(observed, now)
        self.draft.fields["model_id"] = model_id(observed, spec)
        if observed.children and observed.status.start_time is None:
            self.draft.fields["start_time"] = timestamp(min(c.created for c in observed.children.values()))
        reference = spec.model.adapter
        self.start_model_id = (reference and reference.model_id) or observed.status.start_adapter_model_id
        self.undecided = False

    def run(self) -> Desired:
        if self._is_sane() and self._check() and self._adapter():
            self._train()
        if self.undecided:
            return Desired(requeue_after=self.desired.requeue_after)
        if self.spec.suspend and not self.draft.is_finished:
            self._suspend()
        return _said(self.o, self.draft, self.desired)

    def _is_sane(self) -> bool:
        """Refuse what can never come to anything, and take note of a start adapter while its TuningJob is there."""
        job = self.o.adapter
        if job is None or self.start_model_id is not None:
            return True
        if job.name == self.o.name:
            message = f"spec.model.adapter.tuningJob: {job.name} is this TuningJob itself; name another one"
            self.draft.fail(Trouble(Reason.INVALID_INPUT, message))
            return False
        if job.succeeded and job.model_id:
            self.start_model_id = self.draft.fields["start_adapter_model_id"] = job.model_id
        return True

    # --- stages ----------------------------------------------------------------------------------------------------

    def _check(self) -> bool:
        child = self.o.children.get(CHECK)
        if self.o.holds(C.DATASET_VALID):
            if child is not None and is_left_open(child):
                self.desired.delete_jobs.append(JobRef(child.name, child.uid))
            return True
        if child is not None and self._is_undecided(child):
            return False
        if child is not None and is_done(child, self.now):
            result = check_result(child)
            message = result.message if result is not None else "the data check has passed; its report is gone"
            self.draft.conditions.set(C.DATASET_VALID, TRUE, Reason.DATASET_VALID, message)
            return True
        if child is not None and (trouble := self._failure(CHECK, child)):
            self.draft.fail(trouble, stage=C.DATASET_VALID)
            return False
        message = "the data check runs before any GPU is asked for"
        self.draft.say(Phase.CHECKING, Reason.CHECKING, message, stage=C.DATASET_VALID)
        self._work(CHECK, child)
        return False

    def _adapter(self) -> bool:
        """Whether the start adapter is known, or none is needed."""
        job = self.o.adapter
        if job is None or self.start_model_id is not None:
            return True
        field = "spec.model.adapter.tuningJob"
        if job.finished:
            message = f"{field}: TuningJob {job.name} has failed, there is no adapter to start from; see why it failed"
            self.draft.fail(Trouble(Reason.ADAPTER_JOB_FAILED, message))
            return False
        reason, message = Reason.WAITING_FOR_ADAPTER, f"waiting for the adapter of TuningJob {job.name}"
        if not job.exists:
            reason = Reason.ADAPTER_JOB_NOT_FOUND
            message = f"{field}: there is no TuningJob {job.name} in this namespace; waiting until one is applied"
        self.draft.say(Phase.WAITING, reason, message, stage=C.TRAINED)
        if self.o.name in job.chain:
            circle = " -> ".join((self.o.name, *job.chain[: job.chain.index(self.o.name) + 1]))
            self.draft.stall(
                Reason.INVALID_INPUT,
                f"{field}: {circle}: each waits for the adapter of the next; delete one, apply it with another start",
            )
        return False

    def _train(self) -> None:
        child = self.o.children.get(TRAIN)
        self.draft.fields["job_name"] = child_name(self.o.name, TRAIN)
        if child is not None and self._is_undecided(child):
            return
        if child is not None and is_done(child, self.now):
            result = train_result(child) or self._reported()
            if result is not None and self._serve(result):
                self.draft.succeed(result)
            return
        if child is not None and (trouble := self._failure(TRAIN, child)):
            self.draft.fail(trouble, stage=C.TRAINED)
            return
        reason, message = Reason.STARTING, "the trainer is being started"
        if child is not None and any(pod.phase != "Pending" for pod in child.pods):
            reason, message = Reason.TRAINING, "the trainer runs"
        self.draft.say(Phase.TRAINING, reason, message, stage=C.TRAINED)
        self._work(TRAIN, child)

    def _serve(self, result: TrainResult) -> bool:
        """Make the InferenceService of spec.serve. Whether that is over, well or not: the adapter is there anyway."""
        serve = self.spec.serve
        if serve is None:
            return True
        service, name = self.o.service, f"InferenceService {serve.name}"
        if self.o.service_refused is not None:
            message = f"{name} was refused: {self.o.service_refused}; the adapter is published, apply one by hand"
            self.draft.conditions.set(C.SERVED, FALSE, Reason.SERVICE_REFUSED, message)
        elif service is None:
            wanted = build_inference_service(self.o, self.spec, serve, result.model_id or self.draft.fields["model_id"])
            self.desired.create_services.append(wanted)
            return False
        elif (service["metadata"].get("annotations") or {}).get(MADE_FOR_ANNOTATION) == self.o.uid:
            message = f"{name} was created; its condition Ready tells when it answers"
            self.draft.conditions.set(C.SERVED, TRUE, Reason.SERVICE_CREATED, message)
        else:
            message = f"{name} was there before and is left as it is; point one of its routes at this TuningJob"
            self.draft.conditions.set(C.SERVED, FALSE, Reason.SERVICE_EXISTS, message)
        return True

    def _reported(self) -> TrainResult | None:
        """The result of a training whose pod is gone, as the report Job reads it from the claim; None until then."""
        child = self.o.children.get(REPORT)
        if child is not None and self._is_undecided(child):
            return None
        done = child is not None and is_done(child, self.now)
        again = child is not None and done and child.done_pod is None  # gone before it was read
        if child is not None and again and not child.is_deleting:
            self.desired.delete_jobs.append(JobRef(child.name, child.uid))
        elif child is not None and not again and (done or self._failure(REPORT, child)):
            result = train_result(child) if done else None
            if result is None:
                name = self.draft.fields["model_id"]
                message = f"the training has ended well, but its result cannot be read from models/{name}; look there"
                self.draft.fail(Trouble(Reason.RESULT_LOST, message))
                self.draft.conditions.set(C.TRAINED, UNKNOWN, Reason.RESULT_LOST, message)
            return result
        message = "the trainer's pod is gone; its result is read from the claim"
        self.draft.say(Phase.TRAINING, Reason.READING_RESULT, message, stage=C.TRAINED)
        self._work(REPORT, child)
        return None

    def _failure(self, role: str, child: Child) -> Trouble | None:
        """Why the Job has failed for good, or None while it may still end well."""
        if child.has_failed:
            return failure_of(child, role, self.spec)
        return refusal(child, role, self.spec, self.now)

    def _is_undecided(self, child: Child) -> bool:
        """Whether what ended is not fully seen yet: then nothing is written, and looked again."""
        seconds = seconds_undecided(child, self.now)
        if seconds is None:
            self.desired.needs_pods |= lacks_pods(child)
            return False
        self.desired.look_again(seconds)
        self.undecided = True
        return True

    # --- a child's life --------------------------------------------------------------------------------------------

    def _work(self, role: str, child: Child | None) -> None:
        """Have the Job of this stage made, or say what it waits for."""
        name = child_name(self.o.name, role)
        if child is not None:
            if not child.is_deleting and not self.spec.suspend:
                self._look_at(role, child)
        elif name in self.o.taken:
            self._wait_for_name(name)
        elif role in self.o.live_pods:
            self.desired.look_again(STUCK_SECONDS)  # of a Job that was deleted: never two trainers at once
        elif role == TRAIN and "start_adapter_model_id" in self.draft.fields:
            self.desired.look_again(0)  # written down first: whatever happens next, it starts from this adapter
        elif not self.spec.suspend:
            # The check looks at the start adapter too where it is there.
            job = BUILDERS[role](self.o, self.spec, self.settings, self.start_model_id)
            self.desired.create_jobs.append(job)
            if self.o.refused is not None:
                stuck = find_refusal(self.o.refused)
                self.draft.stall(stuck.reason, stuck.message, steady=True)
            if self.o.status.start_time is None:
                self.draft.fields.setdefault("start_time", timestamp(self.now))

    def _wait_for_name(self, name: str) -> None:
        self.desired.look_again(LONGEST_LOOK_SECONDS)
        if name not in self.o.left_over:
            self.draft.stall(
                Reason.NAME_TAKEN,
                f"Job {name} belongs to somebody else; delete it, or apply this TuningJob under another name",
            )

    def _look_at(self, role: str, child: Child) -> None:
        """A Job at work: queued, stuck, failing, or fine."""
        if child.is_suspended:
            queue = f"LocalQueue {self.spec.queue_name}" if self.spec.queue_name else "whoever suspended it"
            message = f"Job {child.name} waits for {queue} to admit it"
            self.draft.say(Phase.QUEUED, Reason.QUEUED, message, stage=STAGE[role])
            return
        due = events_due(child, self.now)
        if due is not None:
            self.desired.needs_events = due <= 0
            # The longer it takes, the seldomer it is looked at: a thousand that wait must cost little.
            self.desired.look_again(due if due > 0 else min(max(-due / 5, STUCK_SECONDS), LONGEST_LOOK_SECONDS))
        pod = child.newest_pod
        if pod is not None and (sidecar := sidecar_due(pod, self.now)) is not None:
            self.desired.look_again(sidecar)
        if stuck := find_stuck(child, asked_by_job(self.spec, role, self.settings)):
            self.draft.stall(stuck.reason, stuck.message, steady=True)
        elif pod is not None and (outliving := find_outliving_sidecar(pod, self.now)):
            self.draft.stall(outliving.reason, outliving.message)
        elif found := failing(child, role, self.spec, self.now):
            failure, left = found
            self.draft.stall(failure.reason, failure.message)
            if left is not None:
                self.desired.look_again(left)

    def _suspend(self) -> None:
        """`suspend` ends the Jobs that are at work; their pods write a checkpoint and go."""
        self.desired.create_jobs.clear()
        active = [child for child in self.o.children.values() if not child.has_ended or child.is_deleting]
        going = [JobRef(child.name, child.uid) for child in active if not child.is_deleting]
        self.desired.delete_jobs += [job for job in going if job not in self.desired.delete_jobs]
        self.draft.suspend(pods_gone=not active and not self.o.live_pods)
