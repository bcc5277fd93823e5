"""The status of a TuningJob of this machine, in the operator's words: all above reads it as a cluster's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import Progress
from llm_tuning.openai_api.local.conditions import FALSE, TRUE, UNKNOWN, Conditions
from llm_tuning.pod.contract import CheckResult, TrainResult

Raw = dict[str, Any]
C = ConditionType


class Draft:
    """A status as it is to be from now on; begins with what the job has."""

    def __init__(self, job: Mapping[str, Any], now: str) -> None:
        before: Raw = job.get("status") or {}
        self._generation = job["metadata"].get("generation") or 0
        self._now = now
        self.fields: Raw = {key: value for key, value in before.items() if key != "conditions"}
        self._conditions = Conditions(job, now)

    def set(self, kind: str, status: str, reason: str, message: str = "") -> None:
        """Set a condition."""
        self._conditions.set(kind, status, reason, message)

    def status(self) -> Raw:
        """Return the whole status."""
        return {**self.fields, "observedGeneration": self._generation, "conditions": self._conditions.listed(C)}

    # --- what happens ------------------------------------------------------------------------------------------------

    def wait(self, message: str) -> None:
        """Say that it waits for its turn."""
        self._go_on(Phase.QUEUED, Reason.QUEUED, message)

    def check(self) -> None:
        """Say that its rows are being checked."""
        self.fields.setdefault("startTime", self._now)
        self._go_on(Phase.CHECKING, Reason.CHECKING, "the data check is running")
        self.set(C.DATASET_VALID, UNKNOWN, Reason.CHECKING)

    def checked(self, result: CheckResult) -> None:
        """Say that its rows are good."""
        self.set(C.DATASET_VALID, TRUE, Reason.DATASET_VALID, result.message)

    def train(self, progress: Progress | None) -> None:
        """Say that it trains."""
        reason = Reason.STARTING if progress is None else Reason.TRAINING
        self._go_on(Phase.TRAINING, reason, "the trainer runs")
        self.set(C.TRAINED, UNKNOWN, reason)
        if progress is not None:
            self.fields["progress"] = progress.model_dump(mode="json", by_alias=True, exclude_none=True)

    def stall(self, reason: str, message: str) -> None:
        """Say that it makes no progress, and is tried again."""
        self.set(C.STALLED, TRUE, reason, message)

    def suspend(self) -> None:
        """Say that no process of it runs until it is resumed."""
        message = "no process runs; it goes on from its last checkpoint when it is resumed"
        self._go_on(Phase.SUSPENDED, Reason.SUSPENDED, message)
        self.set(C.SUSPENDED, TRUE, Reason.SUSPENDED, message)

    def succeed(self, result: TrainResult) -> None:
        """Say that its adapter is published."""
        evaluation = result.evaluation
        self.fields |= {"adapterPath": result.adapter_path, "mlflowRunId": result.mlflow_run_id}
        self.set(C.TRAINED, TRUE, Reason.TRAINED, result.message)
        self.set(C.REGISTERED, TRUE, Reason.REGISTERED)
        if evaluation is not None and result.held_out_rows:
            self.fields["evaluation"] = evaluation.model_dump(mode="json", by_alias=True, exclude_none=True)
            self.set(C.EVALUATED, TRUE, Reason.EVALUATED, f"on {result.held_out_rows} held-out rows")
        else:
            self.set(C.EVALUATED, UNKNOWN, Reason.NO_HELD_OUT_ROWS, "too few rows to hold some out")
        steps = {"step": result.steps, "totalSteps": result.steps, "percent": 100, "loss": result.loss}
        last = {**(self.fields.get("progress") or {"lastUpdateTime": self._now}), **steps, "remainingSeconds": None}
        self.fields["progress"] = {key: value for key, value in last.items() if value is not None}
        self._end(Phase.SUCCEEDED, TRUE, Reason.SUCCEEDED, f"adapter in {result.adapter_path}")

    def fail(self, stage: str, reason: str, message: str) -> None:
        """Say that it ends without an adapter; `stage` is the condition that failed."""
        self.set(stage, FALSE, reason, message)
        self._end(Phase.FAILED, FALSE, reason, message)

    def _go_on(self, phase: str, reason: str, message: str) -> None:
        self.fields["phase"] = str(phase)
        self.set(C.RECONCILING, TRUE, reason, message)
        self.set(C.FINISHED, FALSE, Reason.RUNNING)
        self.set(C.SUCCEEDED, UNKNOWN, Reason.RUNNING)
        self.set(C.SUSPENDED, FALSE, Reason.NOT_SUSPENDED)
        self.set(C.STALLED, FALSE, Reason.NOT_STALLED)

    def _end(self, phase: str, succeeded: str, reason: str, message: str) -> None:
        self.fields |= {"phase": str(phase), "completionTime": self._now}
        self.set(C.SUCCEEDED, succeeded, reason, message)
        self.set(C.FINISHED, TRUE, Reason.FINISHED, message)
        self.set(C.RECONCILING, FALSE, Reason.FINISHED)
        self.set(C.STALLED, FALSE, Reason.NOT_STALLED)
        self.set(C.SUSPENDED, FALSE, Reason.NOT_SUSPENDED)
