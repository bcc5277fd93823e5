"""A training of several pods: how they find each other, what is seen of each, and why a Job of them has failed.

None of the pods works without the others, so the first that fails ends their Job, and the next attempt is a new Job.
How many have failed is in the status before such a Job is deleted: each is counted once, also by an operator that was
killed in between.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llm_tuning.api.conditions import Reason
from llm_tuning.api.tuning_job import KIND, Attempts, NodeStatus, TuningJobSpec
from llm_tuning.errors import EXIT_INPUT
from llm_tuning.pod.contract import PodReason
from llm_tuning.pod.roles import TRAIN
from tuning_operator.core.cache import NETWORK_POLICIES, SERVICES
from tuning_operator.core.constants import LABEL_ROLE, LABEL_UID, LONGEST_LOOK_SECONDS, NODES_PORT, SETTLED_SECONDS
from tuning_operator.core.drift import has_drifted
from tuning_operator.core.settings import Settings
from tuning_operator.pods.network import build_headless_service, build_policy, together
from tuning_operator.pods.observed import STARTING, Child, Pod, is_owned
from tuning_operator.pods.stuck import find_refusal
from tuning_operator.pods.template import owner_reference
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.job import child_name, labels_of
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import failure_of, is_late, pod_failure, pod_reason

if TYPE_CHECKING:
    from tuning_operator.tuning_job.chain import Chain
    from tuning_operator.tuning_job.stage import JobStage

NODES = "nodes"
"""End of the name of the NetworkPolicy of pods that train together."""
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MESSAGE_CHARACTERS = 1000
FOLLOWING = (PodReason.NODE_LOST, PodReason.STOPPED)
"""Reasons of a pod that ended because of another."""
UNCOUNTED = (PodReason.STOPPED,)
"""Of a Job that was asked to end from outside: as a disruption, it costs no retry."""


def find_name_trouble(name: str, nodes: int) -> Trouble | None:
    """Return why pods of a TuningJob of that name cannot find each other, or None."""
    if nodes == 1 or LABEL.fullmatch(name):
        return None
    return Trouble(
        Reason.INVALID_INPUT,
        f"metadata.name: must be lower case letters, digits and -, beginning with a letter, where spec.resources.nodes "
        f"is above 1, got {name}: the pods find each other by a Service of that name; apply it under another name, or "
        "with nodes 1",
    )


def ranks_of(index: int, spec: TuningJobSpec) -> str:
    """Return the ranks of a pod: `1`, or `2-3` where each has two GPUs."""
    each = max(1, spec.resources.gpus)
    return str(index) if each == 1 else f"{index * each}-{(index + 1) * each - 1}"


def node_statuses(child: Child, spec: TuningJobSpec) -> list[NodeStatus]:
    """List the newest pod of each index for the status."""
    return [_status(index, child.of_index(index).newest_pod, spec) for index in range(spec.resources.nodes)]


def _status(index: int, pod: Pod | None, spec: TuningJobSpec) -> NodeStatus:
    ranks = ranks_of(index, spec)
    if pod is None:
        return NodeStatus(index=index, ranks=ranks, state="Missing")
    state = pod.phase
    if pod.phase == "Pending":
        waits = pod.waiting.get("reason")
        unplaced = pod.condition("PodScheduled").get("status") == "False"
        state = "Unschedulable" if unplaced else pod.phase if waits in STARTING else str(waits)
    return NodeStatus(index=index, ranks=ranks, pod=pod.name, node=pod.node, state=state)


def fence(chain: Chain, stage: JobStage) -> bool:
    """Want the Service and the NetworkPolicy of the pods; returns whether they may come."""
    observed = chain.observed
    service, policy = build_service(observed), build_nodes_policy(observed, chain.spec, chain.settings)
    own = observed.headless if observed.headless is None or is_owned(observed.headless, observed.uid) else None
    name = policy["metadata"]["name"]
    for kind, word, wanted, there, taken in (
        (SERVICES, "Service", service, own, observed.headless is not own),
        (NETWORK_POLICIES, "NetworkPolicy", policy, observed.policies.get(name), name in observed.taken_policies),
    ):
        if taken:
            _wait_for(chain, stage, word, wanted["metadata"]["name"])
            return False
        if there is None:
            chain.desired.create.append((kind, wanted))
        elif has_drifted(wanted, there):
            chain.desired.apply.append((kind, wanted))
        if (refused := observed.refusals.get(kind)) is not None:
            stuck = find_refusal(refused, word)
            _say_waits(chain, stage, word)
            chain.draft.stall(stuck.reason, stuck.message, steady=True)
            return False
    return True


def build_service(observed: Observed) -> dict[str, Any]:
    """Build the headless Service of the training's pods: one for all attempts, of which one lives at a time."""
    pods = {LABEL_UID: observed.uid, LABEL_ROLE: TRAIN}
    name, labels = child_name(observed.name, TRAIN), labels_of(observed)
    owner = owner_reference(observed, KIND)
    return build_headless_service(name, observed.namespace, labels, owner, ports={"nodes": NODES_PORT}, pods=pods)


def build_nodes_policy(observed: Observed, spec: TuningJobSpec, settings: Settings) -> dict[str, Any]:
    """Build the NetworkPolicy that lets the pods of the training reach each other, and nobody else reach them."""
    selector = {"matchLabels": {LABEL_UID: observed.uid, LABEL_ROLE: TRAIN}}
    name, owner = child_name(observed.name, NODES), owner_reference(observed, KIND)
    wanted = together(selector, settings, spec.tracking.uri)
    return build_policy(name, observed.namespace, labels_of(observed), owner, wanted)


def _wait_for(chain: Chain, stage: JobStage, word: str, name: str) -> None:
    _say_waits(chain, stage, word)
    message = f"{word} {name} has another owner; delete it, or apply this TuningJob under another name"
    chain.draft.stall(Reason.NAME_TAKEN, message)
    chain.desired.requeue(LONGEST_LOOK_SECONDS)


def _say_waits(chain: Chain, stage: JobStage, word: str) -> None:
    words = stage.words(None)
    chain.draft.say(words.phase, words.reason, f"waiting for its {word}", stage=stage.condition)


# --- attempts ---------------------------------------------------------------------------------------------------------


def starts_again(chain: Chain, stage: JobStage, child: Child) -> bool:
    """Have a failed Job followed by another, or return False where it was the last.

    First the status counts it, then it is deleted; the next one is made once its pods have ended.
    """
    cause = find_cause(child, stage, chain.spec)
    if cause is None:
        return False
    trouble, counts = cause
    before = chain.observed.status.attempts or Attempts()
    failed = before.failed + (counts and before.job_uid != child.uid)
    if failed > chain.spec.retries:
        return False
    attempts = Attempts(
        failed=failed, job_uid=child.uid, reason=trouble.reason, message=trouble.message[:MESSAGE_CHARACTERS]
    )
    words = stage.words(None)
    chain.draft.say(words.phase, words.reason, words.message, stage=stage.condition)
    stall_on(chain, attempts)
    if before.job_uid == child.uid:
        chain.delete(child)
    else:
        chain.draft.fields["attempts"] = attempts
        chain.desired.requeue(0)
    return True


def stall_on(chain: Chain, attempts: Attempts) -> None:
    """Say why the last attempt has failed, while the next is no better yet."""
    if attempts.reason is None or attempts.message is None:
        return
    which = f"attempt {attempts.failed} of {chain.spec.retries + 1} failed" if attempts.failed else "ended, and goes on"
    chain.draft.stall(attempts.reason, f"{which}: {attempts.message}")


def seconds_unsettled(child: Child, now: datetime) -> float | None:
    """Return in how many seconds an attempt that runs is trusted, 0 or less: it is; None while a pod does not run."""
    newest = (child.of_index(index).newest_pod for index in range(child.nodes))
    since = [pod and (pod.running_since or (pod.phase == "Succeeded" and pod.created)) for pod in newest]
    if not all(since):
        return None
    return SETTLED_SECONDS - min((now - moment).total_seconds() for moment in since if moment)


def final_trouble(chain: Chain, stage: JobStage, child: Child) -> Trouble:
    """Return why a Job has failed that no other follows."""
    cause = find_cause(child, stage, chain.spec)
    if cause is None:
        return _refused(child, stage, chain.spec) or failure_of(child, stage, chain.spec)
    times = chain.spec.retries + 1
    shown = f" {times} times; last" if times > 1 else ""
    return Trouble(Reason.RETRIES_EXHAUSTED, f"{stage.work} failed{shown}: {cause[0].message}")


def find_cause(child: Child, stage: JobStage, spec: TuningJobSpec) -> tuple[Trouble, bool] | None:
    """Return why a Job of several pods has failed, and whether that counts as a retry; None where none may follow."""
    if is_late(child) or _refused(child, stage, spec) is not None:
        return None
    failed = sorted((pod for pod in child.pods if pod.phase == "Failed"), key=_ended)
    disrupted = next((pod for pod in failed if pod.is_disrupted), None)
    if disrupted is not None:
        said = disrupted.condition("DisruptionTarget")
        why = str(said.get("message") or said.get("reason") or "no reason is given")
        return Trouble(PodReason.NODE_LOST, f"{_name(disrupted, spec)} was ended by the cluster: {why}"), False
    if not failed:  # a pod that fails by itself stays: one was deleted, and the Job controller has deleted the others
        message = "a pod was deleted, and the others with it; see the Events of the Job for why"
        return Trouble(PodReason.NODE_LOST, message), False
    first = next((pod for pod in failed if pod_reason(pod) not in FOLLOWING), failed[0])
    trouble = pod_failure(first, stage, spec)
    message = trouble.message if " on node " in trouble.message else f"{_name(first, spec)}: {trouble.message}"
    return Trouble(trouble.reason, message), pod_reason(first) not in UNCOUNTED


def _refused(child: Child, stage: JobStage, spec: TuningJobSpec) -> Trouble | None:
    pod = next((pod for pod in child.pods if pod.exit_code == EXIT_INPUT), None)
    return pod_failure(pod, stage, spec) if pod is not None else None


def _name(pod: Pod, spec: TuningJobSpec) -> str:
    ranks = ranks_of(pod.index, spec)
    several = "ranks" if "-" in ranks else "rank"
    return f"{several} {ranks} on node {pod.index} ({pod.name}{f' on {pod.node}' if pod.node else ''})"


def _ended(pod: Pod) -> tuple[bool, float]:
    return pod.ended_at is None, pod.ended_at.timestamp() if pod.ended_at is not None else 0.0
