"""Why a child Job does not get on, and what to do about it.

A Job says nothing of its pods' troubles, and Kubernetes tells most of them only in words: in this file, and nowhere
else, messages are searched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from llm_tuning.api.conditions import Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from tuning_operator.constants import STUCK_SECONDS
from tuning_operator.observed import Child, Pod, Raw


@dataclass(frozen=True)
class Stuck:
    """A reason and a message that says what is wrong and what to do."""

    reason: str
    message: str


def needs_events(child: Child, now: datetime) -> bool:
    """Whether only Events can tell what the child waits for: it has no pod, or a pod whose container is not made."""
    if child.is_suspended or child.has_ended or child.is_deleting:
        return False
    pod = child.newest_pod
    if pod is None:
        return (now - child.created).total_seconds() >= STUCK_SECONDS
    if pod.phase != "Pending" or pod.waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return False
    scheduled = pod.condition("PodScheduled")
    return scheduled.get("status") == "True" and (now - pod.created).total_seconds() >= STUCK_SECONDS


def find_stuck(child: Child, spec: TuningJobSpec) -> Stuck | None:
    """What the child is stuck at, or None while it gets on as far as can be seen."""
    pod = child.newest_pod
    if pod is None:
        return _from_events(child, _CREATION, spec)
    if pod.phase != "Pending":
        return None
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return _unschedulable(str(scheduled.get("message", "")), spec)
    if pod.waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return _waiting(pod, spec)
    return _from_events(child, _MOUNTING, spec)


def _unschedulable(message: str, spec: TuningJobSpec) -> Stuck:
    claim = spec.volume.claim_name
    if re.search(r'persistentvolumeclaim "[^"]*" not found', message):
        return Stuck(
            Reason.CLAIM_NOT_FOUND,
            f"spec.volume.claimName: there is no PersistentVolumeClaim {claim} in this namespace; create it, with "
            "base/ and datasets/ on it",
        )
    if re.search(
        r"unbound immediate PersistentVolumeClaim|persistent volumes? to bind|PersistentVolumeClaim|storageclass",
        message,
        re.I,
    ):
        return Stuck(
            Reason.CLAIM_PENDING,
            f"PersistentVolumeClaim {claim} is not bound to a volume; see `kubectl describe pvc {claim}`: its "
            f"storageClassName must exist and have room ({_short(message)})",
        )
    wanted = f"{spec.resources.gpus} nvidia.com/gpu, " if spec.resources.gpus else ""
    return Stuck(
        Reason.UNSCHEDULABLE,
        f"no node has room for the pod ({wanted}{spec.resources.cpu} CPU, {spec.resources.memory}): {_short(message)}; "
        "lower spec.resources, check nodeSelector and tolerations, or wait for or add nodes",
    )


def _waiting(pod: Pod, spec: TuningJobSpec) -> Stuck | None:
    reason, message = str(pod.waiting.get("reason")), str(pod.waiting.get("message", ""))
    image = pod.raw["spec"]["containers"][0]["image"]
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"):
        return Stuck(
            Reason.IMAGE_PULL_FAILED,
            f"image {image} cannot be pulled ({reason}); check the operator's image settings (helm values images.*) "
            "and pull secrets, and that the node reaches the registry",
        )
    if reason == "CreateContainerConfigError":
        if found := _NAMED_SECRET.search(message):
            return _secret(found, spec)
        if found := _NAMED_CONFIG_MAP.search(message):
            return _config_map(found, spec)
        return Stuck(Reason.CONTAINER_CONFIG_ERROR, f"the container cannot be made: {_short(message)}")
    if reason in ("CreateContainerError", "RunContainerError", "StartError"):
        return Stuck(Reason.CONTAINER_CONFIG_ERROR, f"the container cannot be started: {_short(message)}")
    return None


Maker = Callable[[re.Match[str], TuningJobSpec], Stuck]


def _secret(found: re.Match[str], spec: TuningJobSpec) -> Stuck:
    name = spec.tracking.credentials_secret.name if spec.tracking.credentials_secret else found["name"]
    return Stuck(
        Reason.SECRET_NOT_FOUND,
        f"spec.tracking.credentialsSecret: there is no Secret {name} in this namespace; create it (kubectl create "
        f"secret generic {name} --from-literal=MLFLOW_TRACKING_PASSWORD=...), the pod then starts by itself",
    )


def _config_map(found: re.Match[str], spec: TuningJobSpec) -> Stuck:
    source = spec.dataset.config_map
    name = source.name if source else found["name"]
    key = f" with the key {source.key}" if source else ""
    return Stuck(
        Reason.CONFIG_MAP_NOT_FOUND,
        f"spec.dataset.configMap: there is no ConfigMap {name}{key} in this namespace; create it, the pod then starts "
        "by itself",
    )


def _config_map_key(found: re.Match[str], spec: TuningJobSpec) -> Stuck:
    source = spec.dataset.config_map
    name, key = (source.name, source.key) if source else ("?", "?")
    return Stuck(
        Reason.CONFIG_MAP_NOT_FOUND,
        f"spec.dataset.configMap: ConfigMap {name} has no key {key}; add it, or correct the name in a new TuningJob",
    )


def _quota(found: re.Match[str], spec: TuningJobSpec) -> Stuck:
    return Stuck(
        Reason.QUOTA_EXCEEDED,
        f"a quota of this namespace forbids the pod: {_short(found.string)}; lower spec.resources, wait until other "
        "work has ended, or have the quota raised",
    )


def _pod_security(found: re.Match[str], spec: TuningJobSpec) -> Stuck:
    return Stuck(
        Reason.POD_SECURITY_DENIED,
        f"Pod Security forbids the pod: {_short(found.string)}; as it is made it fits the restricted profile, so look "
        "for what changes pods in this namespace (injected sidecars, mutating webhooks or policies)",
    )


def _creation(found: re.Match[str], spec: TuningJobSpec) -> Stuck:
    return Stuck(Reason.POD_CREATION_FAILED, f"the pod cannot be created: {_short(found.string)}")


def _mount(found: re.Match[str], spec: TuningJobSpec) -> Stuck:
    return Stuck(
        Reason.VOLUME_MOUNT_FAILED,
        f"a volume cannot be mounted: {_short(found.string)}; see `kubectl describe pvc {spec.volume.claim_name}` and "
        "its PersistentVolume",
    )


_NAMED_SECRET = re.compile(r'secrets? "(?P<name>[^"]+)" not found')
_NAMED_CONFIG_MAP = re.compile(r'configmaps? "(?P<name>[^"]+)" not found')
_CREATION: tuple[tuple[str, re.Pattern[str], Maker], ...] = (
    ("FailedCreate", re.compile(r"exceeded quota|must specify .* for"), _quota),
    ("FailedCreate", re.compile(r"violates PodSecurity"), _pod_security),
    ("FailedCreate", re.compile(r""), _creation),
)
_MOUNTING: tuple[tuple[str, re.Pattern[str], Maker], ...] = (
    ("FailedMount", _NAMED_CONFIG_MAP, _config_map),
    ("FailedMount", _NAMED_SECRET, _secret),
    ("FailedMount", re.compile(r"references non-existent config key"), _config_map_key),
    ("FailedMount", re.compile(r""), _mount),
    ("FailedAttachVolume", re.compile(r""), _mount),
    ("FailedMapVolume", re.compile(r""), _mount),
    ("FailedCreatePodSandBox", re.compile(r""), _creation),
)


def _from_events(
    child: Child, table: tuple[tuple[str, re.Pattern[str], Maker], ...], spec: TuningJobSpec
) -> Stuck | None:
    """By the newest Warning that the table knows."""
    for event in reversed(child.warnings):
        if made := _from_event(event, table, spec):
            return made
    return None


def _from_event(event: Raw, table: tuple[tuple[str, re.Pattern[str], Maker], ...], spec: TuningJobSpec) -> Stuck | None:
    for reason, pattern, make in table:
        if event.get("reason") == reason and (found := pattern.search(str(event.get("message", "")))):
            return make(found, spec)
    return None


_ATTEMPT = re.compile(r'^Error creating: (pods "[^"]*" is forbidden: )?')
"""The name of a pod that was not made is another at each attempt: it would make another message of the same trouble."""


def _short(message: str) -> str:
    text = _ATTEMPT.sub("", " ".join(message.split()))
    return text if len(text) <= 400 else text[:397] + "..."
