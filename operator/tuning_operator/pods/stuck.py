"""Why a workload makes no progress, and what to do about it.

A Job says nothing of its pods' troubles, and Kubernetes reports most of them only in words: in this file, and nowhere
else, messages are searched. What is said of a trouble stays the same while it lasts: every change is a write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from llm_tuning.api.conditions import Reason
from tuning_operator.core.constants import STUCK_SECONDS, UNPLACED_SECONDS
from tuning_operator.pods.observed import IMAGE_TROUBLES, STARTING, Pod, Raw, Workload, event_time, read_time
from tuning_operator.pods.sidecars import find_waiting_sidecar
from tuning_operator.pods.trouble import Trouble

SHOWN_CHARACTERS = 400
"""Of Kubernetes' own words in a message of ours."""


@dataclass(frozen=True)
class PodRequests:
    """What a pod requests, as far as pods get stuck at it, and where that is set."""

    claim: str
    contents: str
    """What is to be on the claim."""
    pod: str
    """What people call the pod: a trainer, a replica."""
    resources: str
    """What the scheduler is to find: `2 nvidia.com/gpu, 4 CPU and 16Gi`."""
    lower: str
    """How that is lowered, by the field or Helm value that sets it; empty where nothing does."""
    secret_field: str
    secret_key: str
    """An example for `kubectl create secret`."""
    secret: str | None = None
    config_map: tuple[str, str] | None = None
    """Name and key, of spec.dataset.configMap."""
    nodes: int = 1
    """How many such pods there are at once, on nodes of their own."""


def shown_resources(cpu: str, memory: str, gpus: int = 0, gpu_resource: str = "") -> str:
    """Format requests for a message: `2 nvidia.com/gpu, 4 CPU and 16Gi`."""
    return f"{f'{gpus} {gpu_resource}, ' if gpus else ''}{cpu} CPU and {memory}"


Maker = Callable[[re.Match[str], PodRequests], Trouble]
Table = tuple[tuple[str, Maker], ...]
"""A pattern of Kubernetes' words and what it means; the first that is found counts."""


def events_due(workload: Workload, now: datetime) -> float | None:
    """Return in how many seconds Events are to be read, as only they have the reason; 0 or less: now. None: no need."""
    if not workload.makes_pods:
        return None
    pod = workload.newest_pod
    if pod is None:
        return _left(workload.created, STUCK_SECONDS, now)
    if pod.phase == "Failed":
        return _left(pod.ended_at or pod.created, STUCK_SECONDS, now)
    if pod.phase != "Pending" or pod.waiting.get("reason") not in STARTING or pod.is_set_up:
        return None
    placed = pod.condition("PodScheduled")
    if placed.get("status") == "True":
        return _left(read_time(placed["lastTransitionTime"]), STUCK_SECONDS, now)
    return None if placed else _left(pod.created, UNPLACED_SECONDS, now)


def find_stuck(workload: Workload, asked: PodRequests) -> Trouble | None:
    """Find what the workload is stuck at, or None while it makes progress as far as can be seen."""
    pod = workload.newest_pod
    if pod is None or pod.phase == "Failed":
        since = pod.created if pod is not None else workload.created
        newer = (w for w in workload.warnings_about(uid=workload.uid) if event_time(w) >= since)
        return _from_events(newer, CREATION, asked)
    if pod.phase != "Pending":
        return None
    placed = pod.condition("PodScheduled")
    if placed.get("status") == "False" and placed.get("reason") == "Unschedulable":
        return of_words(SCHEDULING, str(placed.get("message", "")), asked)
    if pod.waiting.get("reason") not in STARTING:
        return _waiting(pod, asked)
    if pod.is_set_up:
        return None
    if not placed:
        return _from_events(workload.warnings_about(claim=asked.claim), BINDING, asked)
    return _from_events(workload.warnings_about(uid=pod.uid), MOUNTING, asked)


def queue_words(workload: Workload) -> str:
    """Return why Kueue does not admit the Job, in its own words; empty where it has said nothing."""
    said = next((w for w in workload.queue_warnings if w.get("reason") == "Pending"), None)
    return "" if said is None else _short(str(said.get("message", "")))


def find_refusal(message: str, what: str = "Job") -> Trouble:
    """Diagnose from the API server's message why it did not take the Job (or another object, `what`)."""
    if re.search(r"exceeded quota", message):
        return Trouble(
            Reason.QUOTA_EXCEEDED,
            f"a quota of this namespace forbids the {what}: {_short(message)}; delete Jobs that have ended, or have "
            "the quota raised",
        )
    return Trouble(
        Reason.POD_CREATION_FAILED,
        f"the {what} cannot be created: {_short(message)}; check the operator's Role and the admission "
        "webhooks and policies of this namespace",
    )


def _left(since: datetime, seconds: float, now: datetime) -> float:
    return seconds - (now - since).total_seconds()


def _waiting(pod: Pod, asked: PodRequests) -> Trouble | None:
    if pod.waiting_container not in pod.own:
        return find_waiting_sidecar(pod)
    reason, message = str(pod.waiting.get("reason")), str(pod.waiting.get("message", ""))
    if reason in IMAGE_TROUBLES:
        return Trouble(
            Reason.IMAGE_PULL_FAILED,
            f"image {pod.waiting_image} cannot be pulled: see `kubectl describe pod {pod.name}`"
            "; check the operator's image settings (Helm values images.*) and pull secrets, and that the node reaches "
            "the registry",
        )
    return of_words(CONTAINERS.get(reason, ()), message, asked)


def _from_events(warnings: Iterable[Raw], tables: dict[str, Table], asked: PodRequests) -> Trouble | None:
    """Diagnose by the newest Warning that a table explains; None where none does."""
    for warning in warnings:
        if stuck := of_words(tables.get(str(warning.get("reason")), ()), str(warning.get("message", "")), asked):
            return stuck
    return None


def of_words(table: Table, message: str, asked: PodRequests) -> Trouble | None:
    """Return what a message means by a table of (pattern, diagnosis), or None."""
    for pattern, make in table:
        if found := re.search(pattern, message, re.IGNORECASE):
            return make(found, asked)
    return None


# --- what a pattern means --------------------------------------------------------------------------------------------


def _claim_not_found(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.CLAIM_NOT_FOUND,
        f"spec.volume.claimName: there is no PersistentVolumeClaim {asked.claim} in this namespace; create "
        f"it, with {asked.contents} on it",
    )


def _claim_going(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.CLAIM_NOT_FOUND,
        f"spec.volume.claimName: PersistentVolumeClaim {asked.claim} is being deleted; create it again once "
        f"it is gone, with {asked.contents} on it",
    )


def _claim_pending(found: re.Match[str], asked: PodRequests) -> Trouble:
    claim = asked.claim
    return Trouble(
        Reason.CLAIM_PENDING,
        f"PersistentVolumeClaim {claim} is not bound to a volume; see `kubectl describe pvc {claim}`: its "
        f"storageClassName must exist and have room ({_short(found.string)})",
    )


def _unschedulable(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.UNSCHEDULABLE,
        f"no node takes the pod: {_short(found.string)}; {asked.pod} asks for {asked.resources}: {_or_lower(asked)}"
        "check spec.resources.nodeSelector and tolerations, or wait for or add nodes"
        f"{_if_shared(asked) if 'volume node affinity' in found.string else ''}",
    )


def _one_pod_only(found: re.Match[str], asked: PodRequests) -> Trouble:
    fix = _if_shared(asked) or "; wait until that one has ended, or use another claim"
    return Trouble(
        Reason.UNSCHEDULABLE,
        f"another pod uses PersistentVolumeClaim {asked.claim}, whose access mode ReadWriteOncePod is for one{fix}",
    )


def _if_shared(asked: PodRequests) -> str:
    """Say of which kind the claim has to be where several nodes mount it; empty where one does."""
    if asked.nodes == 1:
        return ""
    return (
        f"; spec.resources.nodes is {asked.nodes}, for which PersistentVolumeClaim {asked.claim} must be one that all "
        "these nodes can mount (ReadWriteMany)"
    )


def _or_lower(asked: PodRequests) -> str:
    return f"{asked.lower}, " if asked.lower else ""


def _secret(found: re.Match[str], asked: PodRequests) -> Trouble:
    name = asked.secret or found["name"]
    return Trouble(
        Reason.SECRET_NOT_FOUND,
        f"{asked.secret_field}: there is no Secret {name} in this namespace; create it (kubectl create "
        f"secret generic {name} --from-literal={asked.secret_key}=...), the pod then starts by itself",
    )


def _secret_key(found: re.Match[str], asked: PodRequests) -> Trouble:
    name = asked.secret or found["name"]
    return Trouble(
        Reason.SECRET_NOT_FOUND,
        f"{asked.secret_field}: Secret {name} has no key {found['key']}; add it, or name another (key), the pod then "
        "starts by itself",
    )


def _config_map(found: re.Match[str], asked: PodRequests) -> Trouble:
    source = asked.config_map
    name, key = (source[0], f" with the key {source[1]}") if source else (found["name"], "")
    return Trouble(
        Reason.CONFIG_MAP_NOT_FOUND,
        f"spec.dataset.configMap: there is no ConfigMap {name} in this namespace; create it{key}, the pod then starts "
        "by itself",
    )


def _config_map_key(found: re.Match[str], asked: PodRequests) -> Trouble:
    source = asked.config_map
    what = f"ConfigMap {source[0]} has no key {source[1]}" if source else _short(found.string)
    return Trouble(
        Reason.CONFIG_MAP_NOT_FOUND,
        f"spec.dataset.configMap: {what}; add the key, or apply another TuningJob with the right one",
    )


def _quota(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.QUOTA_EXCEEDED,
        f"a quota of this namespace forbids the pod: {_short(found.string)}; {asked.pod} asks for {asked.resources}: "
        f"{_or_lower(asked)}wait until other work has ended, or have the quota raised",
    )


def _pod_security(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.POD_SECURITY_DENIED,
        f"Pod Security forbids the pod: {_short(found.string)}; as it is made it fits the restricted profile, so look "
        "for what changes pods in this namespace (injected sidecars, mutating webhooks or policies)",
    )


def _runtime_class(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.RUNTIME_CLASS_NOT_FOUND,
        f"spec.resources.runtimeClassName: there is no RuntimeClass {found['name']} in this cluster; "
        "`kubectl get runtimeclass` lists those there are; it comes from the spec, or else from the operator's Helm "
        "value defaults.gpu.runtimeClassName",
    )


def _not_created(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(Reason.POD_CREATION_FAILED, f"the pod cannot be created: {_short(found.string)}")


def _not_mounted(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.VOLUME_MOUNT_FAILED,
        f"a volume cannot be mounted: {_short(found.string)}; see `kubectl describe pvc {asked.claim}` and "
        f"its PersistentVolume{_if_shared(asked) if 'Multi-Attach' in found.string else ''}",
    )


def _no_sandbox(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(
        Reason.POD_CREATION_FAILED,
        f"the node cannot set the pod up: {_short(found.string)}; the node's runtime or network needs a look",
    )


def _not_started(found: re.Match[str], asked: PodRequests) -> Trouble:
    return Trouble(Reason.CONTAINER_CONFIG_ERROR, f"the container cannot be started: {_short(found.string)}")


ANY = r"(?s).*"
NAMED_SECRET = r'secrets? "(?P<name>[^"]+)" not found'
MISSING_KEY = r"couldn't find key (?P<key>\S+) in Secret (\S+/)?(?P<name>[^\s/]+)"
NAMED_CONFIG_MAP = r'configmaps? "(?P<name>[^"]+)" not found'

SCHEDULING: Table = (
    (r'persistentvolumeclaim "[^"]*" not found', _claim_not_found),
    (r'persistentvolumeclaim "[^"]*" is being deleted', _claim_going),
    (r"ReadWriteOncePod", _one_pod_only),
    (r"unbound immediate persistentvolumeclaim|persistent volumes? to bind|persistentvolumeclaim|storageclass",
     _claim_pending),
    (ANY, _unschedulable),
)  # fmt: skip
"""The scheduler's words in the pod's condition PodScheduled."""
CONTAINERS: dict[str, Table] = {
    "CreateContainerConfigError": (
        (NAMED_SECRET, _secret),
        (MISSING_KEY, _secret_key),
        (NAMED_CONFIG_MAP, _config_map),
        (ANY, _not_started),
    ),
    "CreateContainerError": ((ANY, _not_started),),
    "RunContainerError": ((ANY, _not_started),),
}
"""By the reason for which a container waits."""
CREATION: dict[str, Table] = {
    "FailedCreate": (
        (r"exceeded quota|failed quota|must specify .* for", _quota),
        (r"violates PodSecurity", _pod_security),
        (r'RuntimeClass "(?P<name>[^"]+)" not found', _runtime_class),
        (ANY, _not_created),
    ),
}
"""By the reason of an Event about the Job."""
MOUNTING: dict[str, Table] = {
    "FailedMount": (
        (NAMED_CONFIG_MAP, _config_map),
        (NAMED_SECRET, _secret),
        (r"references non-existent config key", _config_map_key),
        (ANY, _not_mounted),
    ),
    "FailedAttachVolume": ((ANY, _not_mounted),),
    "FailedMapVolume": ((ANY, _not_mounted),),
    "FailedCreatePodSandBox": ((ANY, _no_sandbox),),
}
"""By the reason of an Event about the pod."""
BINDING: dict[str, Table] = {"ProvisioningFailed": ((ANY, _claim_pending),)}
"""By the reason of an Event about the claim."""

_ATTEMPT = re.compile(r'^Error creating: (pods "[^"]*" is forbidden: )?')
"""The name of a pod that was not made is another at each attempt: it would make another message of the same trouble."""

_PREEMPTION = re.compile(r"\.? (no new claims to deallocate, )?preemption: .*$")
"""The scheduler's advice on preemption, longer than what is wrong, and another each time."""


def _short(message: str) -> str:
    text = _PREEMPTION.sub("", _ATTEMPT.sub("", " ".join(message.split())))
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
