"""One Job of a training after the other: why it failed, whether that counts, and when the next begins.

None of several pods works without the others, so the first that fails ends their Job, and the next attempt is a new
Job. How many have failed is in the status before such a Job is deleted: each is counted once, also by an operator that
was killed in between. A single pod is tried again by its Job itself; another Job follows only where the claim is full,
until there is room: the work that is on it would be lost otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from llm_tuning.api.conditions import Reason
from llm_tuning.api.tuning_job import Attempts, NodeStatus, TuningJobSpec
from llm_tuning.errors import EXIT_INPUT
from llm_tuning.pod.contract import PodReason
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.constants import GRACE_PERIOD_SECONDS, SETTLED_SECONDS
from tuning_operator.pods.observed import Child, Pod, read_time
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.nodes import DISRUPTIONS, ENDED_FROM_OUTSIDE, node_name, ranks_of
from tuning_operator.tuning_job.outcome import DEADLINE, TELLING, failure_of, pod_failure, pod_reason

if TYPE_CHECKING:
    from tuning_operator.tuning_job.chain import Chain
    from tuning_operator.tuning_job.stage import JobStage

LOGS_HINT = re.compile(r"; see `kubectl logs [^`]+`")
"""Of a pod that goes with its Job, and its log with it."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 600.0
"""Between attempts: the Job controller's own, which doubles."""
MESSAGE_CHARACTERS = 1000
FOLLOWING = (PodReason.NODE_LOST, PodReason.STOPPED)
"""Reasons of a pod that ended because of another."""
UNCOUNTED = (PodReason.STOPPED, PodReason.VOLUME_FULL)
"""They cost no retry: of a Job that was asked to end from outside, and of one that found no room."""
ROOM_PAUSE_SECONDS = 300.0
"""Between attempts on a full claim: each asks for its cards, though it ends before the first step."""


def starts_again(chain: Chain, stage: JobStage, child: Child) -> bool:
    """Have a failed Job followed by another, or return False where it was the last.

    First the status counts it, then it is deleted; the next one is made once its pods have ended.
    """
    before, words = chain.observed.status.attempts or Attempts(), stage.words(None)
    if before.job_uid == child.uid:  # its pods may be gone already
        chain.draft.say(words.phase, words.reason, words.message, stage=stage.condition)
        _stall_on(chain, before)
        chain.delete(child)
        return True
    cause = find_cause(chain, stage, child)
    if cause is None:
        return False
    failed = before.failed + cause.counts
    if failed > chain.spec.retries:
        return False
    chain.draft.say(words.phase, words.reason, words.message, stage=stage.condition)
    attempts = Attempts(
        failed=failed,
        job_uid=child.uid,
        reason=cause.reason,
        message=LOGS_HINT.sub("", cause.message)[:MESSAGE_CHARACTERS],
        time=timestamp(chain.now) if cause.counts or cause.reason == PodReason.VOLUME_FULL else None,
    )
    _stall_on(chain, attempts)
    chain.draft.fields["attempts"] = attempts
    chain.desired.requeue(0)
    return True


def seconds_to_pause(attempts: Attempts | None, now: datetime) -> float:
    """Return how long the next attempt is put off yet: as by the Job controller, longer where there is no room."""
    if attempts is None or attempts.time is None:
        return 0.0
    pause = ROOM_PAUSE_SECONDS
    if attempts.reason != PodReason.VOLUME_FULL:
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(attempts.failed - 1, 10), LONGEST_PAUSE_SECONDS)
    return pause - (now - read_time(attempts.time)).total_seconds()


def say_why_it_failed(chain: Chain, stage: JobStage, child: Child | None) -> None:
    """Say why the Job fails while its pods end, or why the last one did while this one is no better yet."""
    if child is not None and child.fails_since is not None and not child.is_deleting:
        cause, open_for = find_cause(chain, stage, child), (chain.now - child.fails_since).total_seconds()
        if cause is not None:
            _stall_until_all_end(chain, cause.reason, cause.message, child, open_for)
        return
    attempts = chain.observed.status.attempts
    if attempts is None or attempts.reason is None or attempts.message is None:
        return
    if child is not None and child.is_deleting:
        since = read_time(child.raw["metadata"]["deletionTimestamp"])
        _stall_until_all_end(
            chain, attempts.reason, _shown(attempts, chain), child, (chain.now - since).total_seconds()
        )
        return
    left = None if child is None else _seconds_unsettled(child, chain.now)
    if left is None or left > 0:
        _stall_on(chain, attempts)
    if left is not None and left > 0:
        chain.desired.requeue(left)


def _stall_until_all_end(chain: Chain, reason: str, message: str, child: Child, seconds: float) -> None:
    """Stall, and where a pod takes long to end name it: the kubelet of a node that is gone says nothing."""
    alive = [pod for pod in child.pods if not pod.has_ended]
    if seconds < GRACE_PERIOD_SECONDS:
        chain.desired.requeue(GRACE_PERIOD_SECONDS - seconds)
    elif alive:
        message += (
            f"; the next attempt waits for the end of pod {alive[0].place}, which Kubernetes does not confirm: see "
            "whether that node is there, and delete it from the cluster if it is not to come back"
        )
    chain.draft.stall(reason, message)


def _stall_on(chain: Chain, attempts: Attempts) -> None:
    if attempts.reason is not None:
        chain.draft.stall(attempts.reason, _shown(attempts, chain))


def _shown(attempts: Attempts, chain: Chain) -> str:
    if attempts.reason == PodReason.VOLUME_FULL:
        return (
            f"{attempts.message}; it is started again every {ROOM_PAUSE_SECONDS / 60:.0f} minutes until there is room"
        )
    counts = attempts.time is not None
    which = f"attempt {attempts.failed} of {chain.spec.retries + 1} failed" if counts else "ended, and goes on"
    return f"{which}: {attempts.message}"


def _seconds_unsettled(child: Child, now: datetime) -> float | None:
    """Return in how many seconds an attempt that runs is trusted, 0 or less: it is; None while a pod does not run."""
    newest = (child.of_index(index).newest_pod for index in range(child.nodes))
    since = [pod and (pod.running_since or (pod.phase == "Succeeded" and pod.created)) for pod in newest]
    if not all(since):
        return None
    return SETTLED_SECONDS - min((now - moment).total_seconds() for moment in since if moment)


def final_trouble(chain: Chain, stage: JobStage, child: Child) -> Trouble:
    """Return why a Job has failed that no other follows."""
    cause = find_cause(chain, stage, child)
    if cause is None:
        return _refused(child, stage, chain.spec) or failure_of(child, stage, chain.spec)
    times = chain.spec.retries + 1
    shown = f" {times} times; last" if times > 1 else ""
    reason = cause.reason if cause.reason in TELLING else Reason.RETRIES_EXHAUSTED
    return Trouble(reason, f"{stage.work} failed{shown}: {cause.message}")


# --- why --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause(Trouble):
    """Why a Job fails that another may follow."""

    counts: bool
    """Whether as a retry: not where the cluster or somebody has ended a pod, or the claim is full."""


def find_cause(chain: Chain, stage: JobStage, child: Child) -> Cause | None:
    """Return why a Job fails; None where no other may follow."""
    spec = chain.spec
    if child.nodes == 1:
        last = child.failed_pods[-1] if child.failed_pods and child.failure_reason != DEADLINE else None
        if last is None or pod_reason(last) != PodReason.VOLUME_FULL:
            return None
        trouble = pod_failure(last, stage, spec)
        return Cause(trouble.reason, trouble.message, counts=False)
    if child.failure_reason == DEADLINE or _refused(child, stage, spec) is not None:
        return None
    failed = sorted((pod for pod in child.pods if pod.phase == "Failed"), key=_ended)
    disrupted = next((pod for pod in child.pods if pod.is_disrupted), None)
    if disrupted is not None:
        said = disrupted.condition("DisruptionTarget")
        why = str(said.get("message") or said.get("reason") or "no reason is given")
        return Cause(PodReason.NODE_LOST, f"{_name(disrupted, spec)} was ended by the cluster: {why}", counts=False)
    first = next((pod for pod in failed if not _follows(pod)), None)
    known = chain.observed.status.nodes or ()
    loses = any(pod_reason(pod) == PodReason.NODE_LOST for pod in failed)
    if first is None and (gone := _gone(child, known, loses=loses)) is not None:
        return Cause(PodReason.NODE_LOST, gone, counts=False)
    if first is None and not failed:
        return Cause(
            PodReason.NODE_LOST,
            f"{stage.work} failed ({child.failure_reason}), and no pod of it is left to tell why",
            counts=False,
        )
    first = first or failed[0]
    trouble = pod_failure(first, stage, spec)
    message = trouble.message if " on node " in trouble.message else f"{_name(first, spec)}: {trouble.message}"
    counts = pod_reason(first) not in UNCOUNTED
    return Cause(trouble.reason, f"{message}{_where(message, child, known)}", counts=counts)


def _follows(pod: Pod) -> bool:
    """Return whether a failed pod ended because of another, or as it was deleted and left no word."""
    reason = pod_reason(pod)
    return reason in FOLLOWING or (reason is None and pod.is_deleting)


def _gone(child: Child, known: Sequence[NodeStatus], *, loses: bool) -> str | None:
    """Say which pod was ended from outside: the one that was seen to go first, or all that are gone.

    None for one that another pod has not heard of (`loses`), unless it was seen to go before that.
    """
    there = {pod.name for pod in child.pods if not pod.is_deleting}
    gone = [node for node in known if node.pod is not None and node.pod not in there]
    seen = [node for node in gone if node.state in ENDED_FROM_OUTSIDE]
    names = " or ".join(node_name(node.index, node.ranks, _place(node)) for node in seen or ([] if loses else gone))
    if seen and seen[0].state in DISRUPTIONS:
        return f"{names} was ended by the cluster: {seen[0].state}"
    return f"{names} was deleted, and not by this operator" if names else None


def _where(message: str, child: Child, known: Sequence[NodeStatus]) -> str:
    """Say where the pods run that a message of theirs names: they know each other by index only."""
    places = {node.index: _place(node) for node in known if node.node is not None}
    places |= {pod.index: pod.place for pod in child.pods if pod.node is not None}
    said = [place for index, place in sorted(places.items()) if f"({child.name}-{index}." in message]
    said = [place for place in said if place not in message]
    return f" ({', '.join(said)})" if said else ""


def _place(node: NodeStatus) -> str:
    return f"{node.pod} on {node.node}" if node.node else str(node.pod)


def _refused(child: Child, stage: JobStage, spec: TuningJobSpec) -> Trouble | None:
    pod = next((pod for pod in child.pods if pod.exit_code == EXIT_INPUT), None)
    return pod_failure(pod, stage, spec) if pod is not None else None


def _name(pod: Pod, spec: TuningJobSpec) -> str:
    return node_name(pod.index, ranks_of(pod.index, spec), pod.place)


def _ended(pod: Pod) -> tuple[bool, float]:
    return pod.ended_at is None, pod.ended_at.timestamp() if pod.ended_at is not None else 0.0
