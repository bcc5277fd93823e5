"""How a child Job ended, or why its pods fail while it continues."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from llm_tuning.api.conditions import Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.errors import EXIT_INPUT
from llm_tuning.pod.contract import PodReason, Result, TrainResult, parse_result
from tuning_operator.core.constants import LOST_RESULT_SECONDS, SETTLED_SECONDS
from tuning_operator.pods.observed import Child, Pod
from tuning_operator.pods.sidecars import find_failing_sidecar, is_outlived
from tuning_operator.pods.trouble import Trouble

if TYPE_CHECKING:
    from tuning_operator.tuning_job.stage import JobStage

EXIT_KILLED = 137
DEADLINE = "DeadlineExceeded"
"""The Job controller's reason."""
TELLING = (Reason.OUT_OF_MEMORY, Reason.GPU_UNAVAILABLE, PodReason.VOLUME_FULL)
"""Reasons that say more than that all retries are used up."""


def result_of(child: Child, kind: type[Result]) -> Result | None:
    """Return the result of work that ended well; None where its pod is gone, or has left none."""
    return parse_result(_message(child.done_pod), kind)


def is_done(child: Child, now: datetime) -> bool:
    """Return whether the work ended well: by the Job, or by our container where a sidecar keeps the Job from it.

    A sidecar that fails makes a failed pod of a good training, and one that never ends keeps the pod running. Of
    several pods one may fail after that of index 0 has published.
    """
    if child.is_complete:
        return True
    pod = None if child.is_deleting else child.done_pod
    if pod is not None and child.nodes > 1 and child.has_failed:
        return result_of(child, TrainResult) is not None
    return pod is not None and (pod.phase == "Failed" or is_outlived(pod, now))


def is_left_open(child: Child) -> bool:
    """Return whether only a sidecar keeps the Job of a recorded result from its end."""
    return not (child.has_ended or child.is_deleting) and any(pod.terminated for pod in child.pods)


def refusal(child: Child, stage: JobStage, spec: TuningJobSpec, now: datetime) -> Trouble | None:
    """Return why the input is refused, where a sidecar keeps the Job from failing for it; else None."""
    pod = child.newest_pod
    if pod is None or child.is_deleting or pod.exit_code != EXIT_INPUT or not is_outlived(pod, now):
        return None
    return pod_failure(pod, stage, spec)


def seconds_undecided(child: Child, now: datetime) -> float | None:
    """Return how many seconds to wait before anything is concluded; None: conclude.

    Job and pods come by two watches and from two controllers: a Job may have ended before the pod that ended it is
    seen, and a pod may have ended before its Job says what that means.
    """
    if child.is_deleting and not child.is_complete:
        return None
    since = child.ended_at if child.has_ended else _pod_says_the_end(child)
    if since is None or (child.has_ended and _has_all_pods(child)):
        return None
    left = LOST_RESULT_SECONDS - (now - since).total_seconds()
    return left if left > 0 else None


def lacks_pods(child: Child) -> bool:
    """Return whether the Job has ended, and the pods that explain how are not all seen as ended."""
    return child.has_ended and not _has_all_pods(child)


def _has_all_pods(child: Child) -> bool:
    """Return whether, of a Job that has ended, the pods that explain why are seen as ended."""
    if child.is_complete:
        return child.succeeded_pod is not None
    if is_late(child):
        return True  # the Job's own reason says it all
    return 0 < len(child.failed_pods) >= child.failures


def _pod_says_the_end(child: Child) -> datetime | None:
    """Return when that pod ended after which its Job starts no other; None while it may start one."""
    pod = child.newest_pod
    if pod is None or not pod.has_ended:
        return None
    refused = pod.exit_code == EXIT_INPUT
    is_last = pod.phase == "Succeeded" or refused or len(child.failed_pods) > child.backoff_limit
    return pod.ended_at if is_last else None


def failure_of(child: Child, stage: JobStage, spec: TuningJobSpec) -> Trouble:
    """Return why the Job has failed for good."""
    assert child.failure is not None
    what, why = stage.work, str(child.failure.get("reason", ""))
    if is_late(child):
        return Trouble(
            Reason.DEADLINE_EXCEEDED,
            f"{what} was active for more than spec.activeDeadlineSeconds ({spec.active_deadline_seconds} s); apply a "
            "TuningJob with a longer one",
        )
    if not child.failed_pods:
        gone = stage.refused if why == "PodFailurePolicy" else Reason.RETRIES_EXHAUSTED
        said = child.failure.get("message") or why
        return Trouble(gone, f"{what} failed: {said}; its pods were deleted, so the cause is unknown; see the Events")
    cause = pod_failure(child.failed_pods[-1], stage, spec)
    if why != "BackoffLimitExceeded":
        return cause
    reason = cause.reason if cause.reason in TELLING else Reason.RETRIES_EXHAUSTED
    times = f" {child.failures} times; last" if child.failures > 1 else ""
    return Trouble(reason, f"{what} failed{times}: {cause.message}")


def failing(child: Child, stage: JobStage, spec: TuningJobSpec, now: datetime) -> tuple[Trouble, float | None] | None:
    """Return why pods fail while the Job continues, and in how many seconds a running pod is trusted again.

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
    cause = pod_failure(failed[-1], stage, spec)
    return Trouble(cause.reason, f"attempt {child.failures} of {child.backoff_limit + 1} failed: {cause.message}"), left


def pod_failure(pod: Pod, stage: JobStage, spec: TuningJobSpec) -> Trouble:
    """Return why one pod failed: by its own result, or else by what the kubelet reports."""
    result = parse_result(_message(pod), TrainResult)
    if result is not None and not result.ok:
        return Trouble(result.reason, result.message)
    if pod.terminated.get("reason") == "OOMKilled":
        return Trouble(Reason.OUT_OF_MEMORY, stage.memory_remedy(spec))
    status, code = pod.raw.get("status", {}), pod.exit_code
    if not code and (sidecar := find_failing_sidecar(pod)):
        return sidecar
    if code is None:
        said = _last_line(str(status.get("message") or status.get("reason") or "it has no status"))
        return Trouble(stage.failing, f"pod {pod.name} failed: {said}")
    said = _last_line(_message(pod) or "")
    killed = " (SIGKILL, often out of memory)" if code == EXIT_KILLED else ""
    reason = stage.refused if code == EXIT_INPUT else stage.failing
    return Trouble(reason, f"exit code {code}{killed}{f': {said}' if said else ''}; see `{pod.logs_command}`")


def pod_reason(pod: Pod) -> str | None:
    """Return the reason in the result that a failed pod has left."""
    result = parse_result(_message(pod), TrainResult)
    return result.reason if result is not None and not result.ok else None


def is_late(child: Child) -> bool:
    return child.failure is not None and child.failure.get("reason") == DEADLINE


def _message(pod: Pod | None) -> str | None:
    return str(pod.terminated.get("message", "")) if pod is not None else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
