"""What all kinds see of the cluster: custom resources, Jobs and their pods, as questions that decisions ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from llm_tuning.api.conditions import ConditionType
from llm_tuning.api.tuning_job import read_status
from tuning_operator.core.constants import LABEL_INDEX

Raw = Mapping[str, Any]
STARTING = (None, "ContainerCreating", "PodInitializing")
"""Reasons for which a container waits that are the normal course."""
KUEUE_WORKLOAD = "Workload"
"""The kind of what Kueue makes of a Job; its Events say why it waits."""
IMAGE_TROUBLES = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)


@dataclass(frozen=True)
class ApiObject:
    """An object as the API server has it."""

    raw: Raw

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def created(self) -> datetime:
        return read_time(self.raw["metadata"]["creationTimestamp"])


@dataclass(frozen=True)
class Pod(ApiObject):
    """A pod with the containers that the operator put into it, and whatever was added on its way into the cluster.

    A mesh's proxy or a monitoring agent may stand before and after ours: the kubelet sorts statuses by name, and an
    admission webhook puts containers where it likes. A status is therefore taken by its container's name.
    """

    own: tuple[str, ...] = ()
    """Names of the operator's containers, the one that does the pod's work first."""

    @property
    def index(self) -> int:
        """Which pod of an Indexed Job it is; 0 of any other."""
        return int(self.raw["metadata"].get("labels", {}).get(LABEL_INDEX) or 0)

    @property
    def node(self) -> str | None:
        """The node that it was placed on."""
        found: str | None = self.raw["spec"].get("nodeName")
        return found

    @property
    def place(self) -> str:
        """The pod with its node, in a sentence: `faq-train-1-x7k2p on gpu-7`."""
        return f"{self.name} on {self.node}" if self.node else self.name

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]

    @property
    def deleted_at(self) -> datetime | None:
        """When its deletion was asked for; its deletionTimestamp is when its grace is over."""
        until = self.raw["metadata"].get("deletionTimestamp")
        grace = timedelta(seconds=self.raw["metadata"].get("deletionGracePeriodSeconds", 0))
        return read_time(until) - grace if until else None

    @property
    def phase(self) -> str:
        return str(self.raw.get("status", {}).get("phase", "Pending"))

    @property
    def has_ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @cached_property
    def _statuses(self) -> list[Raw]:
        """Of init containers, then of containers."""
        status = self.raw.get("status", {})
        return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]

    def status_of(self, container: str) -> Raw:
        """Return the status of the named container, or {} while the kubelet has not written it."""
        return next((status for status in self._statuses if status.get("name") == container), {})

    @cached_property
    def _state(self) -> Raw:
        """The state of the container that does the pod's work."""
        return dict(self.status_of(self.own[0]).get("state") or {}) if self.own else {}

    @cached_property
    def _waiting(self) -> Raw:
        """The status of the container that waits for the worst reason: one that is only starting is none."""
        waiting = [status for status in self._statuses if (status.get("state") or {}).get("waiting")]
        waiting.sort(key=lambda status: status.get("name") not in self.own)
        bad = (status for status in waiting if status["state"]["waiting"].get("reason") not in STARTING)
        return next(bad, next(iter(waiting), {}))

    @property
    def waiting_container(self) -> str:
        """The name of the container that cannot start."""
        return str(self._waiting.get("name", ""))

    @property
    def waiting(self) -> Raw:
        """reason and message of a container that cannot start; empty otherwise."""
        return dict((self._waiting.get("state") or {}).get("waiting") or {})

    @property
    def waiting_image(self) -> str:
        """The image of that container."""
        images = {c.get("name"): c.get("image") for c in self.raw["spec"]["containers"]}
        return str(self._waiting.get("image") or images.get(self.waiting_container))

    @property
    def terminated(self) -> Raw:
        """exitCode, reason and message of the pod's work once it has ended; empty before."""
        return dict(self._state.get("terminated") or {})

    @property
    def exit_code(self) -> int | None:
        """Of the pod's work; None until it has ended."""
        return self.terminated.get("exitCode")

    @property
    def running_since(self) -> datetime | None:
        started = (self._state.get("running") or {}).get("startedAt")
        return read_time(started) if started else None

    @property
    def ended_at(self) -> datetime | None:
        ended = self.terminated.get("finishedAt")
        return read_time(ended) if ended else None

    @property
    def sidecars(self) -> list[str]:
        """Containers of others that still run though the pod's work has ended.

        A native sidecar, an init container that the kubelet ends by itself, is none.
        """
        if self.phase != "Running" or not self.terminated:
            return []
        statuses = self.raw["status"].get("containerStatuses") or ()
        return [s["name"] for s in statuses if s["name"] not in self.own and "running" in (s.get("state") or {})]

    @property
    def holding(self) -> Raw:
        """The status of an added init container that runs and that the operator's containers wait for, or an empty one.

        A pod is Initialized when the native sidecars among those have started and the others have ended, in order.
        """
        if not self.is_set_up or self.condition("Initialized").get("status") != "False":
            return {}
        statuses = self.raw["status"].get("initContainerStatuses") or ()
        running = [status for status in statuses if "running" in (status.get("state") or {})]
        return running[-1] if running and running[-1].get("name") not in self.own else {}

    @property
    def added(self) -> list[Raw]:
        """Statuses of containers that are not the operator's."""
        return [status for status in self._statuses if status.get("name") not in self.own]

    @property
    def failed_sidecar(self) -> Raw | None:
        """The status of an added container that has failed, or None."""
        for status in self.added:
            if ((status.get("state") or {}).get("terminated") or {}).get("exitCode"):
                return status
        return None

    @property
    def logs_command(self) -> str:
        """What shows the log of the pod's work; kubectl would take the first container, which may be another's."""
        several = len(self.raw["spec"]["containers"]) > 1
        return f"kubectl logs {self.name}" + (f" -c {self.own[0]}" if several and self.own else "")

    @property
    def is_disrupted(self) -> bool:
        """Evicted, preempted or drained away: no fault of its own, and no retry of the Job."""
        return self.condition("DisruptionTarget").get("status") == "True"

    @property
    def is_set_up(self) -> bool:
        """Volumes and network are there: what Events say of them is over, and the image may take its time."""
        return self.condition("PodReadyToStartContainers").get("status") == "True"

    def condition(self, kind: str) -> Raw:
        """Return the pod's condition of that type, or {}."""
        return next((c for c in self.raw.get("status", {}).get("conditions") or () if c["type"] == kind), {})


@dataclass(frozen=True)
class Workload(ApiObject):
    """What makes pods, a Job or a Deployment: with its pods, oldest first, and Warning Events, newest last."""

    pods: Sequence[Pod] = ()
    warnings: tuple[Raw, ...] = ()

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]

    @property
    def makes_pods(self) -> bool:
        """Whether it is to have pods now."""
        return not self.is_deleting

    @property
    def newest_pod(self) -> Pod | None:
        return self.pods[-1] if self.pods else None

    @property
    def queue_warnings(self) -> list[Raw]:
        """List Warning Events about what Kueue has made of this Job, newest first."""
        ours = re.compile(rf"job-{re.escape(self.name)}-[0-9a-f]+")
        involved = [(warning, warning.get("involvedObject", {})) for warning in reversed(self.warnings)]
        return [w for w, of in involved if of.get("kind") == KUEUE_WORKLOAD and ours.fullmatch(str(of.get("name")))]

    def warnings_about(self, *, uid: str | None = None, claim: str | None = None) -> list[Raw]:
        """List Warning Events about a workload or pod of that uid, or about the claim of that name; newest first."""
        wanted = ("uid", uid) if uid is not None else ("name", claim)
        return [w for w in reversed(self.warnings) if w.get("involvedObject", {}).get(wanted[0]) == wanted[1]]


class Child(Workload):
    """A Job of a TuningJob."""

    @property
    def makes_pods(self) -> bool:
        return not (self.is_suspended or self.has_ended or self.is_deleting)

    @property
    def is_suspended(self) -> bool:
        """Kueue has not admitted it, or took it back."""
        return bool(self.raw["spec"].get("suspend"))

    @property
    def is_complete(self) -> bool:
        return self._condition("Complete") is not None

    @property
    def failure(self) -> Raw | None:
        """The Job's condition Failed, or None."""
        return self._condition("Failed")

    @property
    def failure_reason(self) -> str:
        """The Job controller's word for why it fails, or has failed; empty where it does not."""
        return str((self._condition("Failed") or self._condition("FailureTarget") or {}).get("reason", ""))

    @property
    def has_ended(self) -> bool:
        return self.is_complete or self.failure is not None

    @property
    def fails_since(self) -> datetime | None:
        """When its failure was decided: the Job controller then ends its pods, and says Failed once all have ended."""
        condition = self._condition("FailureTarget") or self._condition("Failed")
        return read_time(condition["lastTransitionTime"]) if condition else None

    @property
    def has_failed(self) -> bool:
        """Failed by itself: pods of a Job that is being deleted are ended from outside."""
        return self.failure is not None and not self.is_deleting

    @property
    def ended_at(self) -> datetime | None:
        condition = self._condition("Complete") or self._condition("Failed")
        return read_time(condition["lastTransitionTime"]) if condition else None

    @property
    def failed_pods(self) -> list[Pod]:
        """Those that the Job counts as failures."""
        return [pod for pod in self.pods if pod.phase == "Failed" and not pod.is_disrupted]

    @property
    def failures(self) -> int:
        """How often a pod has failed, by the Job's own count or by what is seen where that is more."""
        return max(len(self.failed_pods), int(self.raw.get("status", {}).get("failed") or 0))

    @property
    def succeeded_pod(self) -> Pod | None:
        return next((pod for pod in self._with_result if pod.phase == "Succeeded"), None)

    @property
    def done_pod(self) -> Pod | None:
        """The pod whose work has ended well, whatever other containers of it do; rather one that has ended whole."""
        done = (pod for pod in self._with_result if pod.exit_code == 0)
        return self.succeeded_pod or next(done, None)

    @property
    def _with_result(self) -> list[Pod]:
        """Pods that leave the result: of several that work together that of index 0."""
        return [pod for pod in self.pods if pod.index == 0]

    @property
    def nodes(self) -> int:
        """How many pods it has at the same time."""
        return int(self.raw["spec"].get("completions") or 1)

    def of_index(self, index: int) -> Child:
        """Return this Job with the pods of one index alone."""
        return Child(self.raw, tuple(pod for pod in self.pods if pod.index == index), self.warnings)

    @property
    def is_well(self) -> bool:
        """Whether it has pods and wants them: one that goes now is ended from outside."""
        status = self.raw.get("status", {})
        return bool(status.get("active")) and not status.get("failed") and self.fails_since is None and self.makes_pods

    @property
    def backoff_limit(self) -> int:
        return int(self.raw["spec"].get("backoffLimit", 6))

    def _condition(self, kind: str) -> Raw | None:
        conditions = self.raw.get("status", {}).get("conditions") or ()
        return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


@dataclass(frozen=True)
class AdapterJob:
    """The TuningJob whose adapter this one starts from, as far as it is there."""

    name: str
    exists: bool = False
    finished: bool = False
    succeeded: bool = False
    model_id: str | None = None
    rank: int = 0
    """Of its LoRA, by its spec."""
    chain: tuple[str, ...] = ()
    """This job, the one that it waits for itself, and so on: TuningJobs that have not finished."""


def adapter_job(name: str, raw: Raw | None, chain: tuple[str, ...]) -> AdapterJob:
    """Build the view of a TuningJob that others have which want its adapter; `raw` is None if it does not exist."""
    if raw is None:
        return AdapterJob(name)
    status = read_status(raw.get("status"))
    true = {condition.type for condition in status.conditions if condition.status == "True"}
    return AdapterJob(
        name,
        exists=True,
        finished=ConditionType.FINISHED in true,
        succeeded=ConditionType.SUCCEEDED in true,
        model_id=status.model_id,
        rank=((raw.get("spec") or {}).get("lora") or {}).get("rank") or 0,
        chain=chain,
    )


def read_time(text: str) -> datetime:
    """Parse an RFC 3339 time of Kubernetes."""
    return datetime.fromisoformat(text)


def event_time(event: Raw) -> datetime:
    """Return when an Event last happened."""
    series = (event.get("series") or {}).get("lastObservedTime")
    times = (series, event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((read_time(time) for time in times if time), datetime.fromtimestamp(0, UTC))


def is_owned(raw: Raw, uid: str) -> bool:
    """Return whether an object has an owner reference with that uid."""
    return any(owner.get("uid") == uid for owner in raw["metadata"].get("ownerReferences") or ())
