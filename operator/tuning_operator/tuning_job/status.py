"""The status of one reconcile while it is being drafted: what it says until the end, how it ends, and its Events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import Evaluation, Progress, TuningJobSpec, TuningJobStatus
from llm_tuning.modes import MODES
from llm_tuning.modes.mode import SCORES
from llm_tuning.pod.contract import TrainResult
from tuning_operator.core.conditions import FALSE, SPEC_UNKNOWN, TRUE, UNKNOWN, Conditions, timestamp
from tuning_operator.core.desired import NORMAL, WARNING, Desired, EventRule, events_of
from tuning_operator.core.resource import dump_status, shown
from tuning_operator.pods.reporting import with_last_loss
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.observed import Observed

if TYPE_CHECKING:
    from tuning_operator.tuning_job.stage import Stage

C = ConditionType
LINE_CHARACTERS = 1024
"""Of a text in the status, by the CRD."""
FOLLOWED = (Reason.WAITING_FOR_ADAPTER, Reason.ADAPTER_JOB_NOT_FOUND, Reason.QUEUED, Reason.TRAINING)
"""Of Reconciling: what a job waits for, and that it trains."""
ENDS = (
    EventRule(C.SERVED, FALSE, WARNING),
    EventRule(C.SUSPENDED, TRUE, NORMAL),
    EventRule(C.SUCCEEDED, TRUE, NORMAL),
    EventRule(C.SUCCEEDED, FALSE, WARNING),
    EventRule(C.STALLED, TRUE, WARNING, each_message=True),
    EventRule(C.RECONCILING, TRUE, NORMAL, reasons=FOLLOWED),
    EventRule(C.RECONCILING, TRUE, WARNING, reasons=(Reason.SLOW_RANK,)),
)
QUIET = (C.REGISTERED,)
"""Another condition says the same at the same moment."""


def conditions_of(observed: Observed, now: datetime, stages: Sequence[Stage]) -> Conditions:
    """List the conditions that a TuningJob has: of the stages that apply to it, then what holds of all."""
    decided, of_stages = decided_by(stages, observed), {kind for stage in stages for kind in stage.conditions}
    kinds = [*decided, *(kind for kind in ConditionType if kind not in of_stages)]
    return Conditions(kinds, observed.status.conditions, observed.generation, now)


def decided_by(stages: Sequence[Stage], observed: Observed) -> tuple[StrEnum, ...]:
    """List the conditions of the stages that apply, each once."""
    applying = (stage for stage in stages if stage.applies(observed))
    return tuple(dict.fromkeys(kind for stage in applying for kind in stage.conditions))


class Draft:
    """The status of one reconcile. Begins with what the object has; `status` is complete each time."""

    def __init__(self, observed: Observed, now: datetime, stages: Sequence[Stage]) -> None:
        self._observed, self._now = observed, timestamp(now)
        self.conditions = conditions_of(observed, now, stages)
        self._decided = decided_by(stages, observed)
        self.phase = Phase.PENDING
        self.fields: dict[str, Any] = {}
        self._result: TrainResult | None = None
        self.conditions.set(C.STALLED, FALSE, Reason.NOT_STALLED)
        self.conditions.set(C.SUSPENDED, FALSE, Reason.NOT_SUSPENDED)

    @property
    def is_finished(self) -> bool:
        return self.conditions.holds(C.FINISHED)

    # --- before the end --------------------------------------------------------------------------------------------

    def say(
        self, phase: Phase, reason: str, message: str, *, stage: StrEnum | None = None, steady: bool = False
    ) -> None:
        """Set the phase and Reconciling; `stage` is the condition that this decides, `steady` as for `stall`."""
        self.phase = phase
        put = self.conditions.set_steadily if steady else self.conditions.set
        put(C.RECONCILING, TRUE, reason, message)
        self.conditions.set(C.FINISHED, FALSE, Reason.RUNNING)
        self.conditions.set(C.SUCCEEDED, UNKNOWN, Reason.RUNNING)
        if stage is not None:
            put(stage, UNKNOWN, reason, message)

    def stall(self, reason: str, message: str, *, steady: bool = False) -> None:
        """Set Stalled: it makes no progress. `steady` where numbers in the message say nothing new."""
        if steady:
            self.conditions.set_steadily(C.STALLED, TRUE, reason, message)
        else:
            self.conditions.set(C.STALLED, TRUE, reason, message)

    def refuse_spec(self) -> None:
        """Set SpecInvalid and Stalled where the stored object does not fit this version's models; no child is made."""
        self.say(Phase.PENDING, Reason.SPEC_INVALID, SPEC_UNKNOWN)
        self.stall(Reason.SPEC_INVALID, shown(self._observed.problems))

    def suspend(self, *, pods_gone: bool) -> None:
        """Set Suspended: nothing is to run, and True once no pod is left."""
        reason, message = Reason.SUSPENDING, "the pods write a checkpoint and end"
        if pods_gone:
            reason = Reason.SUSPENDED
            message = "no pod runs; set spec.suspend to false to resume from the last checkpoint"
        self.say(Phase.SUSPENDED, reason, message)
        self.conditions.set(C.SUSPENDED, TRUE if pods_gone else FALSE, reason, message)
        self.conditions.set(C.STALLED, FALSE, Reason.NOT_STALLED)
        for kind in self._decided:
            if self.conditions.get(kind).status == UNKNOWN and self.conditions.get(kind).reason != Reason.PENDING:
                self.conditions.set(kind, UNKNOWN, reason, message)

    # --- the end ---------------------------------------------------------------------------------------------------

    def succeed(self, result: TrainResult) -> None:
        """Record the adapter that the training has made."""
        self._result = result
        model_id = result.model_id or self.fields["model_id"]
        path = (result.adapter_path or f"models/{model_id}")[:LINE_CHARACTERS]
        self.fields |= {
            "adapter_path": path,
            "mlflow_run_id": result.mlflow_run_id and result.mlflow_run_id[:LINE_CHARACTERS],
            "evaluation": result.evaluation,
        }
        self.conditions.set(C.TRAINED, TRUE, Reason.TRAINED, result.message or "the adapter is trained")
        if result.registered:
            self.conditions.set(C.REGISTERED, TRUE, Reason.REGISTERED, f"models/registry.json has {model_id}")
        else:
            message = (
                "models/registry.json does not list it yet; the next run or `tune-llm registry` command on this claim "
                "adds it"
            )
            self.conditions.set(C.REGISTERED, UNKNOWN, Reason.PENDING, message)
        if result.held_out_rows and result.evaluation is not None:
            said = _scores(result.evaluation, result.held_out_rows, self._observed.spec)
            self.conditions.set(C.EVALUATED, TRUE, Reason.EVALUATED, said)
        else:
            message = (
                "too few rows, one prompt only, or evalFraction 0: no held-out rows to compare base and adapter on"
            )
            self.conditions.set(C.EVALUATED, UNKNOWN, Reason.NO_HELD_OUT_ROWS, message)
        self._end(Phase.SUCCEEDED, TRUE, Reason.SUCCEEDED, f"adapter in {path}")

    def fail(self, failure: Trouble, *, stage: StrEnum | None = None) -> None:
        """Record that there will be no adapter; `stage` is the condition that failed."""
        if stage is not None:
            self.conditions.set(stage, FALSE, failure.reason, failure.message)
        for kind in self._decided:
            if self.conditions.get(kind).status == UNKNOWN:
                self.conditions.set(kind, FALSE, Reason.NOT_REACHED)
        self._end(Phase.FAILED, FALSE, failure.reason, failure.message)

    def _end(self, phase: Phase, succeeded: str, reason: str, message: str) -> None:
        self.phase = phase
        self.conditions.set(C.SUCCEEDED, succeeded, reason, message)
        self.conditions.set(C.FINISHED, TRUE, Reason.FINISHED, message)
        self.conditions.set(C.RECONCILING, FALSE, Reason.FINISHED)
        self.conditions.set(C.STALLED, FALSE, Reason.NOT_STALLED)
        self.fields["completion_time"] = self._now

    # --- the result ------------------------------------------------------------------------------------------------

    def record_in(self, desired: Desired) -> None:
        """Put the status into `desired`, with Events for what it changes."""
        status = self.status()
        rules = [EventRule(kind, TRUE, NORMAL) for kind in self._decided if kind not in QUIET]
        desired.status = dump_status(status)
        desired.events = events_of([*rules, *ENDS], self._observed.status.conditions, status.conditions)

    def status(self) -> TuningJobStatus:
        """Build the complete status."""
        return self._observed.status.model_copy(
            update={
                "observed_generation": self._observed.generation,
                "phase": str(self.phase),
                "progress": self._progress(),
                "conditions": self.conditions.as_list(),
                **self.fields,
            }
        )

    def _progress(self) -> Progress | None:
        """Return the newest report, or the last known one; of a finished training, what its result says."""
        reported, last = self._observed.reported, self._observed.status.progress
        report = reported.progress if reported is not None else None
        if self._is_past_fetch():  # its bytes say nothing of the training
            report, last = (None if each is None or each.bytes is not None else each for each in (report, last))
        if self._result is None:
            return last if report is None else with_last_loss(report, last)
        return _ended(report or last or Progress(percent=0, last_update_time=self._now), self._result)

    def _is_past_fetch(self) -> bool:
        return C.FETCHED in self._decided and self.conditions.holds(C.FETCHED)


def _ended(last: Progress, result: TrainResult) -> Progress:
    """Return the progress of a training that ended well: reports are seldom, the last one may be of an early step.

    A run that stopped early has done fewer steps than it had planned; those that it did are all that there were.
    """
    steps = result.steps or last.total_steps or last.step
    is_last = last.step == steps
    return last.model_copy(
        update={
            "percent": 100,
            "remaining_seconds": None,
            "step": steps,
            "total_steps": steps or None,
            "epoch": result.epochs or (last.epoch if is_last else None),
            "loss": result.loss if result.loss is not None else last.loss if is_last else None,
        }
    )


def _scores(evaluation: Evaluation, rows: int, spec: TuningJobSpec | None) -> str:
    """Say the score that tells whether the mode's lesson was learned: its first one, else the loss.

    The loss of a mode that also has bad answers is a mean over what should become likely and what should not.
    """
    mode = MODES.get(spec.mode) if spec is not None else None
    score = next(iter(mode.scores if mode is not None else ()), SCORES[0])
    values = {
        name: getattr(evaluation, f"{policy}_{score.name}")
        for policy, name in (("base", "base"), ("start", "start adapter"), ("tuned", "tuned"))
    }
    said = ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
    return f"{score.title.lower()} on {rows} held-out row{'s' * (rows != 1)}: {said}"
