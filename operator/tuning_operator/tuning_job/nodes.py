"""A training of several pods: how they find each other, and what is seen of each.

Service and NetworkPolicy belong to the TuningJob, not to the Job: they are there before its first pod, and the same for
each attempt, of which one lives at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_tuning.api.conditions import Reason
from llm_tuning.api.tuning_job import KIND, NodeStatus, TuningJobSpec, find_broken_name_rule
from llm_tuning.pod.roles import TRAIN
from tuning_operator.core.cache import NETWORK_POLICIES, SERVICES
from tuning_operator.core.constants import (
    LABEL_ROLE,
    LABEL_UID,
    LONGEST_LOOK_SECONDS,
    NODES_PORT,
)
from tuning_operator.core.drift import has_drifted
from tuning_operator.core.settings import Settings
from tuning_operator.pods.network import build_headless_service, build_policy, together
from tuning_operator.pods.observed import STARTING, Child, Pod, is_owned
from tuning_operator.pods.stuck import find_refusal
from tuning_operator.pods.template import owner_reference
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.job import child_name, labels_of
from tuning_operator.tuning_job.observed import Observed, goes_by_itself

if TYPE_CHECKING:
    from tuning_operator.tuning_job.chain import Chain
    from tuning_operator.tuning_job.stage import JobStage

NODES = "nodes"
"""End of the name of the NetworkPolicy of pods that train together."""
DELETED = "Deleted"
"""State of a pod that somebody deletes while its Job is well."""
DISRUPTIONS = (
    "EvictionByEvictionAPI",
    "PreemptionByScheduler",
    "DeletionByTaintManager",
    "DeletionByPodGC",
    "TerminationByKubelet",
)
"""Of a pod that the cluster ends: Kubernetes' own reasons."""
ENDED_FROM_OUTSIDE = (DELETED, *DISRUPTIONS)
"""States that a pod keeps when it is gone: why the Job fails."""


def find_name_trouble(name: str, nodes: int) -> Trouble | None:
    """Return why pods of a TuningJob of that name cannot find each other, or None."""
    broken = find_broken_name_rule(name, nodes)
    return Trouble(Reason.INVALID_INPUT, f"metadata.name: {broken}") if broken is not None else None


def ranks_of(index: int, spec: TuningJobSpec) -> str:
    """Return the ranks of a pod: `1`, or `2-3` where each has two GPUs."""
    each = max(1, spec.resources.gpus)
    return str(index) if each == 1 else f"{index * each}-{(index + 1) * each - 1}"


def node_name(index: int, ranks: str, place: str) -> str:
    """Name a pod by its ranks: `ranks 2-3 on node 1 (faq-train-1-x7k2p on gpu-7)`."""
    return f"{'ranks' if '-' in ranks else 'rank'} {ranks} on node {index} ({place})"


def node_statuses(child: Child | None, chain: Chain) -> list[NodeStatus] | None:
    """List the newest pod of each index for the status; None without a Job."""
    if child is None or child.nodes == 1:
        return None
    before = {node.index: node for node in chain.observed.status.nodes or ()}
    pods = {index: child.of_index(index).newest_pod for index in range(child.nodes)}
    ended = _ended_from_outside(child, pods, before)
    return [_status(index, pod, before.get(index), chain.spec, index in ended) for index, pod in pods.items()]


def _ended_from_outside(child: Child, pods: Mapping[int, Pod | None], before: Mapping[int, NodeStatus]) -> set[int]:
    """Return which pods went first, while their Job was well: for them it fails, and its controller ends the others.

    That may be seen before the Job says that it fails, so once one is known no other is.
    """
    known = {index for index, node in before.items() if node.state in ENDED_FROM_OUTSIDE}
    known = {index for index in known if (pod := pods.get(index)) is None or pod.name == before[index].pod}
    if known or not child.is_well:
        return known
    gone = {index for index, pod in pods.items() if pod is None and index in before and before[index].pod is not None}
    if gone:
        return gone
    leaving = {index: pod.deleted_at for index, pod in pods.items() if pod and pod.deleted_at}
    failures = [pod.ended_at for pod in child.pods if pod.phase == "Failed" and not pod.is_deleting and pod.ended_at]
    first = min(leaving.values(), default=None)
    if first is None or any(failure <= first for failure in failures):
        return set()  # the controller deletes the others of a pod that has failed, before it says so of the Job
    return {index for index, moment in leaving.items() if moment == first}


def _status(index: int, pod: Pod | None, before: NodeStatus | None, spec: TuningJobSpec, is_first: bool) -> NodeStatus:
    ranks = ranks_of(index, spec)
    if before is not None and is_first and (before.state in ENDED_FROM_OUTSIDE or pod is None):
        return before if before.state in ENDED_FROM_OUTSIDE else before.model_copy(update={"state": DELETED})
    if pod is None:
        return NodeStatus(index=index, ranks=ranks, state="Missing")
    state = pod.phase
    if pod.is_disrupted:
        state = str(pod.condition("DisruptionTarget").get("reason"))
    elif pod.is_deleting:
        state = DELETED if is_first else "Terminating"
    elif pod.phase == "Pending":
        waits = pod.waiting.get("reason")
        unplaced = pod.condition("PodScheduled").get("status") == "False"
        state = "Unschedulable" if unplaced else pod.phase if waits in STARTING else str(waits)
    return NodeStatus(index=index, ranks=ranks, pod=pod.name, node=pod.node, state=state)


def fence(chain: Chain, stage: JobStage) -> bool:
    """Want the Service and the NetworkPolicy of the pods; returns whether they may come."""
    observed = chain.observed
    service, policy = build_service(observed), build_nodes_policy(observed, chain.spec, chain.settings)
    headless, name = observed.headless, policy["metadata"]["name"]
    own = headless if headless is not None and is_owned(headless, observed.uid) else None
    others: dict[str, bool] = {}
    if headless is not None and own is None:
        others[SERVICES] = goes_by_itself(headless, observed.name)
    if name in observed.taken_policies:
        others[NETWORK_POLICIES] = observed.taken_policies[name]
    for kind, word, wanted, there in (
        (SERVICES, "Service", service, own),
        (NETWORK_POLICIES, "NetworkPolicy", policy, observed.policies.get(name)),
    ):
        if kind in others:
            _say_waits(chain, stage, word)
            if not others[kind]:  # a namesake's, of a TuningJob that was deleted, goes with its pods
                taken = f"{word} {wanted['metadata']['name']} has another owner"
                fix = "delete it, or apply this TuningJob under another name"
                chain.draft.stall(Reason.NAME_TAKEN, f"{taken}; {fix}")
            chain.desired.requeue(LONGEST_LOOK_SECONDS)
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


def _say_waits(chain: Chain, stage: JobStage, word: str) -> None:
    words = stage.words(None)
    chain.draft.say(words.phase, words.reason, f"waiting for its {word}", stage=stage.condition)
