"""What a TuningJob wants next: check, wait for the start adapter, train, record. The same for every cause.

`desire` reads one observation and nothing else. A stage that the conditions record as done is not repeated; whatever
was lost between two passes (a write, an event, a child) is wanted again by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import Evaluation, Progress, TuningJobSpec, TuningJobStatus
from llm_tuning.pod.contract import CHECK, REPORT, TRAIN, TrainResult
from tuning_operator.desired import Desired, JobRef
from tuning_operator.observed import Child, Observed, read_time
from tuning_operator.reconcile.conditions import FALSE, TRUE, UNKNOWN, Conditions, timestamp
from tuning_operator.reconcile.outcome import (
    Failure,
    check_result,
    failing,
    failure_of,
    pod_may_still_come,
    train_result,
)
from tuning_operator.reconcile.stuck import find_stuck, needs_events
from tuning_operator.reconcile.transitions import events_of
from tuning_operator.resources.check_job import build_check_job
from tuning_operator.resources.pod_template import child_name, model_id
from tuning_operator.resources.report_job import build_report_job
from tuning_operator.resources.trainer_job import build_trainer_job
from tuning_operator.settings import Settings

C = ConditionType
Builder = Callable[[Observed, TuningJobSpec, Settings, str | None], dict[str, Any]]
BUILDERS: dict[str, Builder] = {CHECK: build_check_job, TRAIN: build_trainer_job, REPORT: build_report_job}

WAIT_SECONDS = 30.0
"""Between looks at what no watch tells of."""
STALE_SECONDS = (5.0, 30.0)
"""Between looks at Events of what is stuck: a tenth of its age, within these."""
STAGES = (C.DATASET_VALID, C.TRAINED, C.REGISTERED, C.EVALUATED)


def desire(observed: Observed, settings: Settings, now: datetime) -> Desired:
    """Everything that is wanted of this TuningJob now; pure."""
    if observed.is_deleting:
        return Desired()  # owner references clean up
    if observed.holds(C.FINISHED):
        return _finished(observed, now)
    return _Pass(observed, settings, now).run()


def _finished(observed: Observed, now: datetime) -> Desired:
    """Nothing is run again; the object goes when its time is over."""
    desired = Desired()
    spec, done = observed.spec, observed.status.completion_time
    if spec is not None and spec.ttl_seconds_after_finished is not None and done is not None:
        left = read_time(done) + timedelta(seconds=spec.ttl_seconds_after_finished) - now
        if left.total_seconds() <= 0:
            desired.delete_self = True
            return desired
        desired.look_again(left.total_seconds())
    if observed.status.observed_generation != observed.generation:
        conditions = Conditions(observed, now).as_list()
        update = {"observed_generation": observed.generation, "conditions": conditions}
        desired.status = dump(observed.status.model_copy(update=update))
    return desired


class _Pass:
    """One pass over a TuningJob that is not finished. Each stage returns True once the next one may begin."""

    def __init__(self, observed: Observed, settings: Settings, now: datetime) -> None:
        self.o, self.settings, self.now = observed, settings, now
        self.desired = Desired()
        self.conditions = Conditions(observed, now)
        self.phase = Phase.PENDING
        self.fields: dict[str, Any] = {}

    def run(self) -> Desired:
        self.conditions.set(C.STALLED, FALSE, Reason.NOT_STALLED, "")
        if self.o.spec is None:
            self._refuse_spec()
        else:
            self.spec = self.o.spec
            self.fields["model_id"] = self.o.status.model_id or model_id(self.o, self.spec)
            if self._check() and self._adapter():
                self._train()
            self._suspension()
        self._write()
        return self.desired

    # --- stages ----------------------------------------------------------------------------------------------------

    def _check(self) -> bool:
        if self.o.holds(C.DATASET_VALID):
            return True
        child = self.o.children.get(CHECK)
        if child is not None and child.is_complete and not child.is_deleting:
            if pod_may_still_come(child, self.now):
                self.desired.look_again(1.0)
                return False
            result = check_result(child)
            message = (
                result.message
                if result is not None
                else "the data check passed; its pod is gone, see `tune-llm validate`"
            )
            self.conditions.set(C.DATASET_VALID, TRUE, Reason.DATASET_VALID, message)
            return True
        if child is not None and child.failure is not None and not child.is_deleting:
            if not pod_may_still_come(child, self.now):
                failure = failure_of(child, CHECK, self.spec)
                self.conditions.set(C.DATASET_VALID, FALSE, failure.reason, failure.message)
                self._finish(failure)
            self.desired.look_again(1.0)
            return False
        self._say(Phase.CHECKING, Reason.CHECKING, "the data check runs before any GPU is asked for")
        self.conditions.set(C.DATASET_VALID, UNKNOWN, Reason.CHECKING, "the data check has not ended yet")
        self._work(CHECK, child)
        return False

    def _adapter(self) -> bool:
        """Whether the start adapter is known, or none is needed."""
        reference = self.spec.model.adapter
        if reference is None or reference.model_id is not None:
            self.start_model_id = reference.model_id if reference else None
            return True
        self.start_model_id = self.o.status.start_adapter_model_id
        if self.start_model_id is not None:
            return True
        job = self.o.adapter
        assert job is not None
        if job.succeeded and job.model_id:
            self.start_model_id = self.fields["start_adapter_model_id"] = job.model_id
            return True
        if job.finished:
            message = f"spec.model.adapter.tuningJob: {job.name} has failed, so it has no adapter to start from; see it"
            self._finish(Failure(Reason.ADAPTER_JOB_FAILED, message))
            return False
        if job.exists:
            reason, message = (
                Reason.WAITING_FOR_ADAPTER,
                f"waiting for TuningJob {job.name}, whose adapter is the start",
            )
        else:
            reason = Reason.ADAPTER_JOB_NOT_FOUND
            message = (
                f"spec.model.adapter.tuningJob: there is no TuningJob {job.name} in this namespace; waiting until "
                "one is applied"
            )
        self._say(Phase.WAITING, reason, message)
        self.conditions.set(C.TRAINED, UNKNOWN, reason, message)
        self.desired.look_again(WAIT_SECONDS)
        return False

    def _train(self) -> None:
        child = self.o.children.get(TRAIN)
        self.fields["job_name"] = child_name(self.o.name, TRAIN)
        if child is not None and child.is_complete and not child.is_deleting:
            self._record(child)
            return
        if child is not None and child.failure is not None and not child.is_deleting:
            if pod_may_still_come(child, self.now):
                self.desired.look_again(1.0)
                return
            failure = failure_of(child, TRAIN, self.spec)
            self.conditions.set(C.TRAINED, FALSE, failure.reason, failure.message)
            self._finish(failure)
            return
        running = child is not None and child.newest_pod is not None and child.newest_pod.running_since is not None
        reason = Reason.TRAINING if running else Reason.STARTING
        message = "the trainer runs" if running else "the trainer's pod is being started"
        self._say(Phase.TRAINING, reason, message)
        self.conditions.set(C.TRAINED, UNKNOWN, reason, message)
        self._work(TRAIN, child)

    def _record(self, child: Child) -> None:
        """The training has ended well: write down what came of it, read again where its pod is gone."""
        result = train_result(child)
        if result is None and pod_may_still_come(child, self.now):
            self.desired.look_again(1.0)
            return
        if result is None:
            result = self._reported()
        if result is not None:
            self._succeed(result)

    def _reported(self) -> TrainResult | None:
        """The result as the report Job reads it from the claim; None while that is not done, or in vain."""
        child = self.o.children.get(REPORT)
        if child is not None and child.has_ended and not child.is_deleting:
            if pod_may_still_come(child, self.now):
                self.desired.look_again(1.0)
                return None
            result = train_result(child) if child.is_complete else None
            if result is None:
                name = self.fields["model_id"]
                message = (
                    f"the training has ended, but its result cannot be read from models/{name}; look there, or run "
                    f"`tune-llm report {name}`"
                )
                self.conditions.set(C.TRAINED, UNKNOWN, Reason.RESULT_LOST, message)
                self._finish(Failure(Reason.RESULT_LOST, message))
            return result
        self._say(Phase.TRAINING, Reason.READING_RESULT, "the trainer's pod is gone; its result is read from the claim")
        self.conditions.set(C.TRAINED, UNKNOWN, Reason.READING_RESULT, "the result is read from the claim")
        self._work(REPORT, child)
        return None

    # --- a child's life --------------------------------------------------------------------------------------------

    def _work(self, role: str, child: Child | None) -> None:
        """Have the Job of this stage made, or say what it waits for."""
        name = child_name(self.o.name, role)
        if name in self.o.taken:
            self._stall(
                Reason.NAME_TAKEN,
                f"Job {name} belongs to somebody else; delete it, or apply this TuningJob under another name",
            )
            self.desired.look_again(WAIT_SECONDS)
        elif child is None and role in self.o.live_pods:
            self.desired.look_again(STALE_SECONDS[0])  # pods of a deleted Job: never two at once
        elif child is None:
            if not self.spec.suspend:
                start = getattr(self, "start_model_id", self.o.status.start_adapter_model_id)
                if start is None and self.spec.model.adapter is not None:
                    start = self.spec.model.adapter.model_id
                self.desired.create_jobs.append(BUILDERS[role](self.o, self.spec, self.settings, start))
                self.fields.setdefault("start_time", self.o.status.start_time or timestamp(self.now))
        elif not child.is_deleting and not self.spec.suspend:
            self._look_at(role, child)

    def _look_at(self, role: str, child: Child) -> None:
        """A Job at work: queued, failing, stuck, or fine."""
        if child.is_suspended:
            queue = f"LocalQueue {self.spec.queue_name}" if self.spec.queue_name else "whoever suspended the Job"
            self._say(Phase.QUEUED, Reason.QUEUED, f"Job {child.name} waits for {queue} to admit it")
            return
        if needs_events(child, self.now):
            self.desired.needs_events = True
            age = (self.now - child.created).total_seconds()
            self.desired.look_again(min(max(age / 10, STALE_SECONDS[0]), STALE_SECONDS[1]))
        if stuck := find_stuck(child, self.spec):
            self._stall(stuck.reason, stuck.message)
        elif found := failing(child, role, self.spec, self.now):
            failure, left = found
            self._stall(failure.reason, failure.message)
            if left is not None:
                self.desired.look_again(left)
        elif child.newest_pod is None or child.newest_pod.phase == "Pending":
            self.desired.look_again(STALE_SECONDS[0])

    def _suspension(self) -> None:
        """`suspend` ends the Jobs that are at work; their pods write a checkpoint and go."""
        if not self.spec.suspend or self.conditions.holds(C.FINISHED):
            self.conditions.set(C.SUSPENDED, FALSE, Reason.NOT_SUSPENDED, "")
            return
        active = [child for child in self.o.children.values() if not child.has_ended or child.is_deleting]
        for child in active:
            if not child.is_deleting:
                self.desired.delete_jobs.append(JobRef(child.name, child.uid))
        self.conditions.set(C.STALLED, FALSE, Reason.NOT_STALLED, "")
        if active or self.o.live_pods:
            self._say(Phase.SUSPENDED, Reason.SUSPENDING, "the pods write a checkpoint and end")
            self.conditions.set(C.SUSPENDED, FALSE, Reason.SUSPENDING, "the pods write a checkpoint and end")
            self.desired.look_again(STALE_SECONDS[0])
            return
        self._say(Phase.SUSPENDED, Reason.SUSPENDED, "spec.suspend is true")
        message = "no pod runs; set spec.suspend to false to go on from the last checkpoint"
        self.conditions.set(C.SUSPENDED, TRUE, Reason.SUSPENDED, message)

    # --- what is said ----------------------------------------------------------------------------------------------

    def _say(self, phase: Phase, reason: str, message: str) -> None:
        self.phase = phase
        self.conditions.set(C.RECONCILING, TRUE, reason, message)
        self.conditions.set(C.FINISHED, FALSE, Reason.RUNNING, "")
        self.conditions.set(C.SUCCEEDED, UNKNOWN, Reason.RUNNING, "")

    def _stall(self, reason: str, message: str) -> None:
        self.conditions.set(C.STALLED, TRUE, reason, message)

    def _refuse_spec(self) -> None:
        text = "; ".join(str(problem) for problem in self.o.problems)
        self._say(Phase.PENDING, Reason.SPEC_INVALID, "the spec is not one that this version of the operator knows")
        self._stall(Reason.SPEC_INVALID, text)

    def _succeed(self, result: TrainResult) -> None:
        evaluation = result.evaluation
        self.fields |= {
            "adapter_path": result.adapter_path,
            "mlflow_run_id": result.mlflow_run_id,
            "evaluation": evaluation,
        }
        self.conditions.set(C.TRAINED, TRUE, Reason.TRAINED, result.message or "the adapter is trained")
        where = f"models/registry.json has {result.model_id}"
        if result.registered:
            self.conditions.set(C.REGISTERED, TRUE, Reason.REGISTERED, where)
        else:
            self.conditions.set(
                C.REGISTERED, UNKNOWN, Reason.PENDING, "the index lacks it until the next command heals it"
            )
        if result.held_out_rows and evaluation is not None:
            self.conditions.set(C.EVALUATED, TRUE, Reason.EVALUATED, _scores(evaluation, result.held_out_rows))
        else:
            message = "too few rows, or evalFraction 0: nothing was held out to compare base and adapter on"
            self.conditions.set(C.EVALUATED, UNKNOWN, Reason.NO_HELD_OUT_ROWS, message)
        message = f"adapter in {result.adapter_path}"
        self._end(Phase.SUCCEEDED, TRUE, Reason.SUCCEEDED, message)

    def _finish(self, failure: Failure) -> None:
        """The end without an adapter."""
        for kind in STAGES:
            if self.conditions.get(kind).status == UNKNOWN and self.conditions.get(kind).reason != Reason.RESULT_LOST:
                self.conditions.set(kind, FALSE, Reason.NOT_REACHED, "")
        self._end(Phase.FAILED, FALSE, failure.reason, failure.message)

    def _end(self, phase: Phase, succeeded: str, reason: str, message: str) -> None:
        self.phase = phase
        self.conditions.set(C.SUCCEEDED, succeeded, reason, message)
        self.conditions.set(C.FINISHED, TRUE, Reason.FINISHED, message if succeeded == FALSE else "")
        self.conditions.set(C.RECONCILING, FALSE, Reason.FINISHED, "")
        self.conditions.set(C.STALLED, FALSE, Reason.NOT_STALLED, "")
        self.fields["completion_time"] = timestamp(self.now)

    def _write(self) -> None:
        """The complete status, and Events for what has changed."""
        old = self.o.status
        if not self.conditions.holds(C.FINISHED) and self.conditions.get(C.FINISHED).reason == Reason.PENDING:
            self.conditions.set(C.FINISHED, FALSE, Reason.RUNNING, "")
            self.conditions.set(C.SUCCEEDED, UNKNOWN, Reason.RUNNING, "")
        progress = self.o.progress or old.progress
        if progress is not None and self.phase == Phase.SUCCEEDED:
            done = progress.total_steps or progress.step
            progress = progress.model_copy(update={"percent": 100, "step": done, "remaining_seconds": None})
        elif self.phase == Phase.SUCCEEDED:
            progress = Progress(percent=100, last_update_time=timestamp(self.now))
        status = old.model_copy(
            update={
                "observed_generation": self.o.generation,
                "phase": str(self.phase),
                "progress": progress,
                "conditions": self.conditions.as_list(),
                **self.fields,
            }
        )
        self.desired.status = dump(status)
        self.desired.events = events_of(old.conditions, status.conditions)


def dump(status: TuningJobStatus) -> dict[str, Any]:
    """As it stands in the object: camelCase, without what is not known."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _scores(evaluation: Evaluation, rows: int) -> str:
    losses = [
        f"{name} {value:.4f}"
        for name, value in (
            ("base", evaluation.base_loss),
            ("start adapter", evaluation.start_loss),
            ("tuned", evaluation.tuned_loss),
        )
        if value is not None
    ]
    return f"loss on {rows} held-out row{'s' * (rows != 1)}: {', '.join(losses)}"
