"""How a child Job ended, or why its pods fail while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from llm_tuning.api.conditions import Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import CHECK, CheckResult, TrainResult, parse_result
from tuning_operator.constants import LOST_RESULT_SECONDS, SETTLED_SECONDS
from tuning_operator.observed import Child, Pod

EXIT_KILLED = 137


@dataclass(frozen=True)
class Failure:
    """Why it failed: one CamelCase word, and what to do."""

    reason: str
    message: str


def check_result(child: Child) -> CheckResult | None:
    """The result of a complete check; None where its pod has gone."""
    return parse_result(_message(child.succeeded_pod), CheckResult)


def train_result(child: Child) -> TrainResult | None:
    """The result of a complete training or report; None where it cannot be read."""
    return parse_result(_message(child.succeeded_pod), TrainResult)


def pod_may_still_come(child: Child, now: datetime) -> bool:
    """The Job has ended, and its last pod is not seen ended yet: its watch may only be behind."""
    if child.succeeded_pod is not None or (child.failure is not None and child.failed_pods):
        return False
    return child.ended_at is not None and (now - child.ended_at).total_seconds() < LOST_RESULT_SECONDS


def failure_of(child: Child, role: str, spec: TuningJobSpec) -> Failure:
    """Why the Job has failed for good."""
    assert child.failure is not None
    why = str(child.failure.get("reason", ""))
    what = "the data check" if role == CHECK else "the training"
    if why == "DeadlineExceeded":
        return Failure(
            Reason.DEADLINE_EXCEEDED,
            f"{what} was active for more than spec.activeDeadlineSeconds ({spec.active_deadline_seconds} s); apply a "
            "TuningJob with a longer one (checkpoints of this one are kept under its own modelId)",
        )
    pod = child.failed_pods[-1] if child.failed_pods else None
    if pod is None:
        return Failure(
            Reason.RETRIES_EXHAUSTED, f"{what} failed: {child.failure.get('message') or why}; its pods are gone"
        )
    cause = pod_failure(pod, role, spec)
    if why == "BackoffLimitExceeded" and cause.reason in (Reason.TRAINER_FAILING, Reason.CHECK_FAILING):
        times = len(child.failed_pods)
        return Failure(
            Reason.RETRIES_EXHAUSTED, f"{what} failed {times} time{'s' * (times > 1)}; last: {cause.message}"
        )
    return cause


def failing(child: Child, role: str, spec: TuningJobSpec, now: datetime) -> tuple[Failure, float | None] | None:
    """Why pods fail while the Job goes on, and in how many seconds a running pod is trusted again.

    None where nothing failed, or where the newest pod has run for a while since.
    """
    failed = child.failed_pods
    if not failed or child.has_ended:
        return None
    newest, left = child.newest_pod, None
    if newest is not None and newest.running_since is not None:
        left = SETTLED_SECONDS - (now - newest.running_since).total_seconds()
        if left <= 0:
            return None
    cause = pod_failure(failed[-1], role, spec)
    attempt = f"attempt {len(failed)} of {child.backoff_limit + 1} failed: {cause.message}"
    return Failure(cause.reason, attempt), left


def pod_failure(pod: Pod, role: str, spec: TuningJobSpec) -> Failure:
    """Why one pod failed: by its own result, or by what the kubelet says of it."""
    result = parse_result(_message(pod), TrainResult)
    if result is not None and not result.ok:
        return Failure(result.reason, result.message)
    resources = spec.resources
    if pod.terminated.get("reason") == "OOMKilled":
        if role == CHECK:
            return Failure(Reason.OUT_OF_MEMORY, "the data check ran out of memory; raise the operator's checkMemory")
        return Failure(
            Reason.OUT_OF_MEMORY,
            f"the trainer used more memory than spec.resources.memory ({resources.memory}) and was ended; apply a "
            "TuningJob with more memory, or with less batchSize, maxLength or maxTokensPerPass",
        )
    code = pod.terminated.get("exitCode")
    reason = Reason.CHECK_FAILING if role == CHECK else Reason.TRAINER_FAILING
    if code is None:
        message = str(
            pod.raw.get("status", {}).get("message") or pod.raw.get("status", {}).get("reason") or "no status"
        )
        return Failure(reason, f"pod {pod.name} failed: {_last_line(message)}")
    said = _last_line(_message(pod) or "")
    killed = " (killed)" if code == EXIT_KILLED else ""
    hint = f"see `kubectl logs {pod.name}`"
    return Failure(reason, f"exit code {code}{killed}{f': {said}' if said else ''}; {hint}")


def _message(pod: Pod | None) -> str | None:
    return str(pod.terminated.get("message", "")) if pod is not None else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
